#pragma once

#include "base/status.h"
#include "base/unique_fd.h"

#include <cstddef>
#include <filesystem>
#include <span>

namespace strata::layers {

// The operations of the store that change the disk, behind an interface so that tests can fail or stop them at any
// point. Thread-safe. Reading goes to the file system directly.
class Disk {
public:
    virtual ~Disk() = default;

    // A new file for writing and reading; kAlreadyExists when it is there.
    virtual absl::StatusOr<UniqueFd> create(const std::filesystem::path & path) = 0;
    virtual absl::Status write(int fd, std::span<const std::byte> data, const std::filesystem::path & path) = 0;
    // Makes the file this long; what is added takes no room and reads as zeros.
    virtual absl::Status resize(int fd, uint64_t size, const std::filesystem::path & path) = 0;
    virtual absl::Status sync(int fd, const std::filesystem::path & path) = 0;
    virtual absl::Status sync_folder(const std::filesystem::path & path) = 0;
    virtual absl::Status rename(const std::filesystem::path & from, const std::filesystem::path & to) = 0;
    // A file or an empty folder. kNotFound when it is not there.
    virtual absl::Status remove(const std::filesystem::path & path) = 0;
    // kAlreadyExists when it is there.
    virtual absl::Status make_folder(const std::filesystem::path & path) = 0;
    // Sets the time of change to now.
    virtual absl::Status touch(const std::filesystem::path & path) = 0;
    virtual absl::Status symlink(const std::filesystem::path & target, const std::filesystem::path & link) = 0;

    static Disk & real();
};

} // namespace strata::layers
