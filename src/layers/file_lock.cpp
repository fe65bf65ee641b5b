#include "layers/file_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace strata::layers {

namespace {

constexpr auto kPoll = std::chrono::milliseconds(100);

} // namespace

absl::StatusOr<FileLock> FileLock::take(const std::filesystem::path & path, const std::function<bool()> & keep_going) {
    while (true) {
        UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644));
        if (!fd.valid()) return errno_status(errno, "open", path.native());
        while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
            if (errno != EWOULDBLOCK && errno != EINTR) return errno_status(errno, "lock", path.native());
            if (!keep_going())
                return absl::CancelledError(fmt::format("cancelled while waiting for {}", path.native()));
            std::this_thread::sleep_for(kPoll);
        }
        // Who had the lock may have removed the file meanwhile, and a third made a new one.
        struct stat ours = {};
        struct stat there = {};
        if (::fstat(fd.get(), &ours) != 0) return errno_status(errno, "look at", path.native());
        const bool same =
            ::stat(path.c_str(), &there) == 0 && ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
        if (same) return FileLock(path, std::move(fd));
    }
}

FileLock::~FileLock() {
    // While the lock is held, so that nobody else's file is removed.
    if (fd_.valid()) ::unlink(path_.c_str());
}

} // namespace strata::layers
