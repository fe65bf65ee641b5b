#pragma once

#include "base/digest.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "layers/disk.h"
#include "layers/store_lock.h"

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace strata::layers {

// A file that is being written under tmp/. Locked (flock) while it is open, so that garbage collection can tell the
// file of a living writer from what a killed one left. Removed when it goes away before it was moved.
class TempFile {
public:
    TempFile(Disk & disk, UniqueFd fd, std::filesystem::path path)
        : disk_(&disk)
        , fd_(std::move(fd))
        , path_(std::move(path)) {}
    TempFile(TempFile && other) noexcept
        : disk_(other.disk_)
        , fd_(std::move(other.fd_))
        , path_(std::move(other.path_)) {
        other.path_.clear();
    }
    TempFile & operator=(TempFile &&) = delete;
    ~TempFile();

    absl::Status append(std::span<const std::byte> data);
    absl::Status sync();
    absl::Status move_to(const std::filesystem::path & to);
    uint64_t size() const { return size_; }
    int fd() const { return fd_.get(); }

private:
    void begin_writeback();

    Disk * disk_;
    UniqueFd fd_;
    std::filesystem::path path_;
    uint64_t size_ = 0;
    uint64_t handed_to_kernel_ = 0;
};

// The files of a store and how they may be changed. Knows blobs, but nothing of manifests and models. Thread-safe.
//   oci-layout, index.json, blobs/sha256/<hex>   the OCI image layout
//   tmp/      files that are being written, locked by their writers
//   leases/   one file per lease, locked by its holder
//   lock      see StoreLock
//   verified  see VerifiedBlobs
class StoreFiles {
public:
    StoreFiles(std::filesystem::path root, Disk & disk)
        : root_(std::move(root))
        , disk_(disk) {}

    // Makes what is missing of the layout.
    absl::Status create();

    Disk & disk() const { return disk_; }
    const std::filesystem::path & root() const { return root_; }
    std::filesystem::path blobs() const { return root_ / "blobs" / "sha256"; }
    std::filesystem::path blob(const Digest & digest) const { return blobs() / digest.hex(); }
    std::filesystem::path index() const { return root_ / "index.json"; }
    std::filesystem::path temporary() const { return root_ / "tmp"; }
    std::filesystem::path leases() const { return root_ / "leases"; }
    std::filesystem::path verified() const { return root_ / "verified"; }

    absl::StatusOr<StoreLock> lock(StoreLock::Mode mode) const { return StoreLock::take(root_ / "lock", mode); }
    absl::StatusOr<StoreLock> lock_shared() const { return lock(StoreLock::Mode::kShared); }
    absl::StatusOr<StoreLock> lock_exclusive() const { return lock(StoreLock::Mode::kExclusive); }

    // Bytes of a blob; nothing when it is not there (a link or a device is no blob).
    std::optional<uint64_t> blob_size(const Digest & digest) const;
    // Whether the blob is there with these very bytes: reads and hashes it.
    bool is_whole(const Digest & digest, uint64_t size) const;
    // A small blob whole, its digest checked: kNotFound, kResourceExhausted above `limit`, kDataLoss.
    absl::StatusOr<std::string> read_blob(const Digest & digest, uint64_t limit) const;

    absl::StatusOr<TempFile> new_temp(const StoreLock & lock) const;
    // Replaces index.json, and makes what was renamed into blobs/ before durable first.
    absl::Status replace_index(std::string_view text, const StoreLock & exclusive) const;
    // Replaces the list of verified blobs.
    absl::Status replace_verified(std::string_view text, const StoreLock & exclusive) const;

private:
    absl::Status write_whole(const std::filesystem::path & to, std::string_view text, const StoreLock & lock) const;

    std::filesystem::path root_;
    Disk & disk_;
};

// A name for a file that no other process or thread uses: "<pid>-<random>".
std::string unique_file_name();

// Opens a regular file for reading; never follows a link at its end and never blocks on a device or pipe.
struct OpenFile {
    UniqueFd fd;
    uint64_t size = 0;
};
absl::StatusOr<OpenFile> open_regular(const std::filesystem::path & path);

// A file whole. kResourceExhausted above `limit` bytes, without reading it.
absl::StatusOr<std::string> read_whole(const OpenFile & file, const std::filesystem::path & path, uint64_t limit);
// The first `length` bytes; kDataLoss when there are fewer.
absl::StatusOr<std::string> read_first(const OpenFile & file, const std::filesystem::path & path, uint64_t length);
absl::StatusOr<std::string> read_regular(const std::filesystem::path & path, uint64_t limit);

// Hands `length` bytes from `offset` of a file to `consume` piece by piece; kDataLoss when the file ends before.
absl::Status read_range(const OpenFile & file, const std::filesystem::path & path, uint64_t offset, uint64_t length,
                        const std::function<absl::Status(std::span<const std::byte>)> & consume);
// The digest of the same bytes. `advance`, if any, gets the length of each piece; its error ends the reading.
absl::StatusOr<Digest> hash_range(const OpenFile & file, const std::filesystem::path & path, uint64_t offset,
                                  uint64_t length, const std::function<absl::Status(uint64_t)> & advance = {});

// Calls `visit` with the name of each entry of a folder. In no order.
absl::Status for_each_entry(const std::filesystem::path & folder,
                            const std::function<absl::Status(std::string_view)> & visit);

} // namespace strata::layers
