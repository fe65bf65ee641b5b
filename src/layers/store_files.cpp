#include "layers/store_files.h"

#include "base/check.h"
#include "base/text.h"
#include "layers/limits.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <vector>

namespace strata::layers {

namespace {

constexpr std::string_view kLayoutFile = R"({"imageLayoutVersion":"1.0.0"})";
constexpr std::string_view kEmptyIndex =
    R"({"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]})";

bool is_there(const std::filesystem::path & path) {
    struct stat info {};
    return ::lstat(path.c_str(), &info) == 0;
}

absl::Status make_folder(Disk & disk, const std::filesystem::path & path) {
    const absl::Status made = disk.make_folder(path);
    return absl::IsAlreadyExists(made) ? absl::OkStatus() : made;
}

} // namespace

TempFile::~TempFile() {
    if (!path_.empty()) disk_->remove(path_).IgnoreError(); // garbage collection finds what stays
}

absl::Status TempFile::append(std::span<const std::byte> data) {
    // Pieces, so that the kernel starts to write before a large span is through, and the last sync has little left.
    while (!data.empty()) {
        const auto piece = data.first(std::min<size_t>(data.size(), limits::kWritebackBytes));
        STRATA_RETURN_IF_ERROR(disk_->write(fd_.get(), piece, path_));
        size_ += piece.size();
        data = data.subspan(piece.size());
        begin_writeback();
    }
    return absl::OkStatus();
}

void TempFile::begin_writeback() {
    if (size_ - handed_to_kernel_ < limits::kWritebackBytes) return;
#ifdef __linux__
    // Only a hint: errors come with the sync.
    ::sync_file_range(fd_.get(), static_cast<off64_t>(handed_to_kernel_),
                      static_cast<off64_t>(size_ - handed_to_kernel_), SYNC_FILE_RANGE_WRITE);
#endif
    handed_to_kernel_ = size_;
}

absl::Status TempFile::sync() {
    return disk_->sync(fd_.get(), path_);
}

absl::Status TempFile::move_to(const std::filesystem::path & to) {
    STRATA_RETURN_IF_ERROR(disk_->rename(path_, to));
    path_.clear();
    return absl::OkStatus();
}

absl::Status StoreFiles::create() {
    if (!is_there(root_)) {
        std::vector<std::filesystem::path> missing;
        for (std::filesystem::path path = root_; !path.empty() && !is_there(path); path = path.parent_path()) {
            missing.push_back(path);
        }
        for (auto path = missing.rbegin(); path != missing.rend(); ++path) {
            STRATA_RETURN_IF_ERROR(make_folder(disk_, *path));
        }
    }
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, lock_exclusive());
    for (const std::filesystem::path & folder : {root_ / "blobs", blobs(), temporary(), leases()}) {
        if (!is_there(folder)) STRATA_RETURN_IF_ERROR(make_folder(disk_, folder));
    }
    // oci-layout is last: a folder that has it has the rest.
    if (!is_there(index())) STRATA_RETURN_IF_ERROR(replace_index(kEmptyIndex, lock));
    if (!is_there(root_ / "oci-layout")) {
        STRATA_RETURN_IF_ERROR(write_whole(root_ / "oci-layout", kLayoutFile, lock));
        STRATA_RETURN_IF_ERROR(disk_.sync_folder(root_));
    }
    return absl::OkStatus();
}

std::optional<uint64_t> StoreFiles::blob_size(const Digest & digest) const {
    struct stat info {};
    if (::lstat(blob(digest).c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
    return static_cast<uint64_t>(info.st_size);
}

bool StoreFiles::is_whole(const Digest & digest, uint64_t size) const {
    if (blob_size(digest) != size) return false;
    const absl::StatusOr<OpenFile> file = open_regular(blob(digest));
    if (!file.ok()) return false;
    const absl::StatusOr<Digest> found = hash_range(*file, blob(digest), 0, size);
    return found.ok() && *found == digest;
}

absl::StatusOr<std::string> StoreFiles::read_blob(const Digest & digest, uint64_t limit) const {
    STRATA_ASSIGN_OR_RETURN(std::string bytes, read_regular(blob(digest), limit));
    if (Digest::of(bytes) != digest) {
        return absl::DataLossError(fmt::format("the blob {} is damaged: its bytes have another digest; "
                                               "import or pull its model again",
                                               blob(digest).native()));
    }
    return bytes;
}

absl::StatusOr<TempFile> StoreFiles::new_temp(const StoreLock &) const {
    // The caller's lock keeps garbage collection away until the new file is locked.
    const std::filesystem::path path = temporary() / unique_file_name();
    STRATA_ASSIGN_OR_RETURN(UniqueFd fd, disk_.create(path));
    const int raw = fd.get();
    TempFile file(disk_, std::move(fd), path);
    if (::flock(raw, LOCK_EX | LOCK_NB) != 0) return errno_status(errno, "lock", path.native());
    return file;
}

absl::Status StoreFiles::write_whole(const std::filesystem::path & to, std::string_view text,
                                     const StoreLock & lock) const {
    STRATA_ASSIGN_OR_RETURN(TempFile file, new_temp(lock));
    STRATA_RETURN_IF_ERROR(file.append(std::as_bytes(std::span(text.data(), text.size()))));
    STRATA_RETURN_IF_ERROR(file.sync());
    return file.move_to(to);
}

absl::Status StoreFiles::replace_index(std::string_view text, const StoreLock & exclusive) const {
    STRATA_CHECK(exclusive.mode() == StoreLock::Mode::kExclusive);
    STRATA_RETURN_IF_ERROR(disk_.sync_folder(blobs()));
    STRATA_RETURN_IF_ERROR(write_whole(index(), text, exclusive));
    return disk_.sync_folder(root_);
}

absl::Status StoreFiles::replace_verified(std::string_view text, const StoreLock & exclusive) const {
    STRATA_CHECK(exclusive.mode() == StoreLock::Mode::kExclusive);
    return write_whole(verified(), text, exclusive);
}

std::string unique_file_name() {
    uint64_t random = 0;
    STRATA_CHECK(::getentropy(&random, sizeof random) == 0);
    return fmt::format("{}-{:016x}", ::getpid(), random);
}

absl::StatusOr<OpenFile> open_regular(const std::filesystem::path & path) {
    OpenFile file;
    file.fd.reset(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!file.fd.valid()) return errno_status(errno, "open", path.native());
    struct stat info {};
    if (::fstat(file.fd.get(), &info) != 0) return errno_status(errno, "look at", path.native());
    if (!S_ISREG(info.st_mode)) {
        return absl::FailedPreconditionError(fmt::format("{} is not a regular file", path.native()));
    }
    file.size = static_cast<uint64_t>(info.st_size);
    return file;
}

absl::Status read_range(const OpenFile & file, const std::filesystem::path & path, uint64_t offset, uint64_t length,
                        const std::function<absl::Status(std::span<const std::byte>)> & consume) {
    std::vector<std::byte> buffer(std::min(length, limits::kReadBytes));
    while (length > 0) {
        const ssize_t got = ::pread(file.fd.get(), buffer.data(), std::min<uint64_t>(length, buffer.size()),
                                    static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno_status(errno, "read", path.native());
        if (got == 0) return absl::DataLossError(fmt::format("{} ends too early, at byte {}", path.native(), offset));
        STRATA_RETURN_IF_ERROR(consume(std::span(buffer.data(), static_cast<size_t>(got))));
        offset += static_cast<uint64_t>(got);
        length -= static_cast<uint64_t>(got);
    }
    return absl::OkStatus();
}

absl::StatusOr<Digest> hash_range(const OpenFile & file, const std::filesystem::path & path, uint64_t offset,
                                  uint64_t length, const std::function<absl::Status(uint64_t)> & advance) {
    Sha256 hasher;
    STRATA_RETURN_IF_ERROR(read_range(file, path, offset, length, [&](std::span<const std::byte> piece) {
        hasher.update(piece);
        return advance ? advance(piece.size()) : absl::OkStatus();
    }));
    return hasher.finish();
}

absl::StatusOr<std::string> read_regular(const std::filesystem::path & path, uint64_t limit) {
    STRATA_ASSIGN_OR_RETURN(const OpenFile file, open_regular(path));
    return read_whole(file, path, limit);
}

absl::StatusOr<std::string> read_whole(const OpenFile & file, const std::filesystem::path & path, uint64_t limit) {
    if (file.size > limit) {
        return absl::ResourceExhaustedError(
            fmt::format("{} has {}; at most {} are read", path.native(), human_bytes(file.size), human_bytes(limit)));
    }
    return read_first(file, path, file.size);
}

absl::StatusOr<std::string> read_first(const OpenFile & file, const std::filesystem::path & path, uint64_t length) {
    std::string bytes;
    bytes.reserve(length);
    STRATA_RETURN_IF_ERROR(read_range(file, path, 0, length, [&bytes](std::span<const std::byte> piece) {
        bytes.append(reinterpret_cast<const char *>(piece.data()), piece.size());
        return absl::OkStatus();
    }));
    return bytes;
}

absl::Status for_each_entry(const std::filesystem::path & folder,
                            const std::function<absl::Status(std::string_view)> & visit) {
    struct Closer {
        void operator()(DIR * dir) const { ::closedir(dir); }
    };
    const std::unique_ptr<DIR, Closer> dir(::opendir(folder.c_str()));
    if (dir == nullptr) return errno_status(errno, "list the folder", folder.native());
    while (true) {
        errno = 0;
        const dirent * entry = ::readdir(dir.get());
        if (entry == nullptr) return errno == 0 ? absl::OkStatus() : errno_status(errno, "list", folder.native());
        const std::string_view name = entry->d_name;
        if (name != "." && name != "..") STRATA_RETURN_IF_ERROR(visit(name));
    }
}

} // namespace strata::layers
