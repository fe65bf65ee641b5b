#pragma once

#include "base/unique_fd.h"
#include "layers/oci.h"

#include <sys/stat.h>

#include <filesystem>
#include <memory>
#include <mutex>

namespace strata::layers {

// Reads an index.json, and does not parse it again while it is the same file. Thread-safe.
class IndexFile {
public:
    explicit IndexFile(std::filesystem::path path)
        : path_(std::move(path)) {}

    // kNotFound; kResourceExhausted when it is too large; kInvalidArgument when it is no index.
    absl::StatusOr<std::shared_ptr<const oci::Index>> read() const;

private:
    const std::filesystem::path path_;
    mutable std::mutex mutex_;
    // Held open, so that the number of its inode is not given to a file that replaces it.
    mutable UniqueFd cached_file_;
    mutable struct stat cached_stat_ {};
    mutable std::shared_ptr<const oci::Index> cached_;
};

} // namespace strata::layers
