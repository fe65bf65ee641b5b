#include "layers/verified_blobs.h"

#include "layers/limits.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <chrono>
#include <sstream>

namespace strata::layers {

namespace {

constexpr std::chrono::seconds kFresh{2}; // the coarsest clock of a file system in use (FAT)

int64_t nanoseconds(const timespec & time) {
    return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

} // namespace

std::optional<FileStamp> FileStamp::of(const OpenFile & file) {
    struct stat info {};
    if (::fstat(file.fd.get(), &info) != 0) return std::nullopt;
    return FileStamp{info.st_ino, static_cast<uint64_t>(info.st_size), nanoseconds(info.st_mtim),
                     nanoseconds(info.st_ctim)};
}

bool FileStamp::is_fresh() const {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::nanoseconds(changed_ns) > now - kFresh;
}

VerifiedBlobs VerifiedBlobs::read(const StoreFiles & files) {
    VerifiedBlobs blobs;
    const absl::StatusOr<std::string> text = read_regular(files.verified(), limits::kVerifiedBytes);
    if (!text.ok()) return blobs;
    std::istringstream lines(*text);
    FileStamp stamp;
    for (std::string hex; lines >> hex >> stamp.inode >> stamp.size >> stamp.modified_ns >> stamp.changed_ns;) {
        if (const auto digest = Digest::parse_hex(hex); digest.ok()) blobs.insert(*digest, stamp);
    }
    return blobs;
}

bool VerifiedBlobs::contains(const StoreFiles & files, const Digest & digest) const {
    const auto known = stamps_.find(digest);
    if (known == stamps_.end()) return false;
    const absl::StatusOr<OpenFile> file = open_regular(files.blob(digest));
    return file.ok() && FileStamp::of(*file) == known->second;
}

absl::Status VerifiedBlobs::merge_into(const StoreFiles & files, const StoreLock & exclusive) const {
    VerifiedBlobs all = read(files);
    for (const auto & [digest, stamp] : stamps_) all.insert(digest, stamp);
    std::string text;
    for (const auto & [digest, stamp] : all.stamps_) {
        if (!files.blob_size(digest)) continue;
        fmt::format_to(std::back_inserter(text), "{} {} {} {} {}\n", digest.hex(), stamp.inode, stamp.size,
                       stamp.modified_ns, stamp.changed_ns);
    }
    return files.replace_verified(text, exclusive);
}

} // namespace strata::layers
