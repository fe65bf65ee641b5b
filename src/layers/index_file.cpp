#include "layers/index_file.h"

#include "layers/limits.h"
#include "layers/store_files.h"

#include <cerrno>

namespace strata::layers {

namespace {

bool is_same_file(const struct stat & a, const struct stat & b) {
    return a.st_dev == b.st_dev && a.st_ino == b.st_ino && a.st_size == b.st_size &&
           a.st_mtim.tv_sec == b.st_mtim.tv_sec && a.st_mtim.tv_nsec == b.st_mtim.tv_nsec;
}

} // namespace

absl::StatusOr<std::shared_ptr<const oci::Index>> IndexFile::read() const {
    const std::lock_guard lock(mutex_);
    STRATA_ASSIGN_OR_RETURN(OpenFile file, open_regular(path_));
    struct stat info {};
    if (::fstat(file.fd.get(), &info) != 0) return errno_status(errno, "look at", path_.native());
    if (cached_ != nullptr && is_same_file(info, cached_stat_)) return cached_;

    STRATA_ASSIGN_OR_RETURN(const std::string text, read_whole(file, path_, limits::kStoreIndexBytes));
    STRATA_ASSIGN_OR_RETURN(oci::Index index, oci::parse_index(text, path_.native()));
    cached_ = std::make_shared<const oci::Index>(std::move(index));
    cached_file_ = std::move(file.fd);
    cached_stat_ = info;
    return cached_;
}

} // namespace strata::layers
