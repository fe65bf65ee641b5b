#pragma once

#include "base/status.h"
#include "base/unique_fd.h"

#include <filesystem>
#include <functional>
#include <utility>

namespace strata::layers {

// A lock between processes (and threads) by a file of its own, which goes away with the lock. A killed holder's lock
// ends with its process, and its file is used again.
class FileLock {
public:
    // Waits while another has it, asking `keep_going` a few times a second; kCancelled when that says no.
    static absl::StatusOr<FileLock> take(const std::filesystem::path & path, const std::function<bool()> & keep_going);

    FileLock(FileLock && other) noexcept
        : path_(std::exchange(other.path_, {}))
        , fd_(std::move(other.fd_)) {}
    FileLock & operator=(FileLock &&) = delete;
    ~FileLock();

private:
    FileLock(std::filesystem::path path, UniqueFd fd)
        : path_(std::move(path))
        , fd_(std::move(fd)) {}

    std::filesystem::path path_;
    UniqueFd fd_;
};

} // namespace strata::layers
