#pragma once

#include "layers/store_files.h"

#include <map>
#include <optional>

namespace strata::layers {

// What a file system says of a file. Whoever changes the file's bytes changes it: the time of change can't be set.
struct FileStamp {
    uint64_t inode = 0;
    uint64_t size = 0;
    int64_t modified_ns = 0;
    int64_t changed_ns = 0;
    bool operator==(const FileStamp &) const = default;

    static std::optional<FileStamp> of(const OpenFile & file);
    // Whether the file was changed so short a time ago that another change could leave the same stamp.
    bool is_fresh() const;
};

// The blobs that were whole when they were hashed last, so that a model need not be hashed for each load. Kept in the
// store's file "verified", a line per blob: digest, inode, size, times. It may be lost, damaged or from another disk:
// then blobs are hashed again. Not thread-safe.
class VerifiedBlobs {
public:
    static VerifiedBlobs read(const StoreFiles & files);

    // Whether the blob's file is the one that was hashed, unchanged since.
    bool contains(const StoreFiles & files, const Digest & digest) const;
    void insert(const Digest & digest, const FileStamp & stamp) { stamps_[digest] = stamp; }

    // Adds these to what is in the file, without the blobs that are gone.
    absl::Status merge_into(const StoreFiles & files, const StoreLock & exclusive) const;

private:
    std::map<Digest, FileStamp> stamps_;
};

} // namespace strata::layers
