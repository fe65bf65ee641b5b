#include "daemon/home_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

namespace strata::daemon {

namespace fs = std::filesystem;

namespace {

absl::Status make_private(const fs::path & folder) {
    std::error_code failed;
    fs::create_directories(folder.parent_path(), failed);
    if (failed) return errno_status(failed.value(), "make the folder", folder.parent_path().native());
    if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
        return errno_status(errno, "make the folder", folder.native());
    }
    // Sockets of a long home lie under /tmp, where anybody can make a folder of that name first.
    struct stat made {};
    if (::lstat(folder.c_str(), &made) != 0) return errno_status(errno, "look at", folder.native());
    if (!S_ISDIR(made.st_mode) || made.st_uid != ::geteuid()) {
        return absl::FailedPreconditionError(
            fmt::format("{} is not a folder of this user; remove it or use another --home", folder.native()));
    }
    if ((made.st_mode & 0077) != 0 && ::chmod(folder.c_str(), 0700) != 0) {
        return errno_status(errno, "make private", folder.native());
    }
    return absl::OkStatus();
}

} // namespace

absl::StatusOr<UniqueFd> take_home(const Home & home) {
    std::error_code failed;
    fs::create_directories(home.root, failed); // with the rights that its owner gave or gives it
    if (failed) return errno_status(failed.value(), "make the folder", home.root.native());
    for (const fs::path & folder : {home.logs(), home.run(), home.sockets()}) {
        STRATA_RETURN_IF_ERROR(make_private(folder));
    }

    const fs::path path = home.run() / "stratad.lock";
    UniqueFd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!lock.valid()) return errno_status(errno, "open", path.native());
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) return errno_status(errno, "lock", path.native());
        std::array<char, 32> pid{};
        const ssize_t bytes = ::pread(lock.get(), pid.data(), pid.size() - 1, 0);
        return absl::AlreadyExistsError(
            fmt::format("{} is served by another stratad, process {}; \"strata stop --daemon\" ends it",
                        home.root.native(), std::string(pid.data(), bytes > 0 ? static_cast<size_t>(bytes) : 0)));
    }
    const std::string pid = std::to_string(::getpid());
    if (::ftruncate(lock.get(), 0) != 0 || ::pwrite(lock.get(), pid.data(), pid.size(), 0) < 0) {
        return errno_status(errno, "write", path.native());
    }
    return lock;
}

} // namespace strata::daemon
