#include "layers/store_lock.h"

#include "layers/limits.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace strata::layers {

absl::StatusOr<StoreLock> StoreLock::take(const std::filesystem::path & file, Mode mode) {
    UniqueFd fd(::open(file.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (!fd.valid()) return errno_status(errno, "open the store's lock", file.native());

    // Polled, because flock has no time limit and a holder that was stopped must not hang everybody else.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(limits::kLockWaitMs);
    auto pause = std::chrono::microseconds(50);
    const int operation = mode == Mode::kShared ? LOCK_SH : LOCK_EX;
    while (::flock(fd.get(), operation | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) return errno_status(errno, "lock", file.native());
        if (std::chrono::steady_clock::now() >= deadline) {
            return absl::UnavailableError(
                fmt::format("another process has held {} for {} s; end it and try again (lsof shows which one it is)",
                            file.native(), limits::kLockWaitMs / 1000));
        }
        std::this_thread::sleep_for(pause);
        pause = std::min(pause * 2, std::chrono::microseconds(2000));
    }
    return StoreLock(std::move(fd), mode);
}

} // namespace strata::layers
