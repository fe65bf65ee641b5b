#include "layers/disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace strata::layers {

namespace {

class RealDisk final : public Disk {
public:
    absl::StatusOr<UniqueFd> create(const std::filesystem::path & path) override {
        UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
        if (!fd.valid()) return errno_status(errno, "create", path.native());
        return fd;
    }

    absl::Status write(int fd, std::span<const std::byte> data, const std::filesystem::path & path) override {
        while (!data.empty()) {
            const ssize_t written = ::write(fd, data.data(), data.size());
            if (written >= 0) {
                data = data.subspan(static_cast<size_t>(written));
            } else if (errno != EINTR) {
                return errno_status(errno, "write", path.native());
            }
        }
        return absl::OkStatus();
    }

    absl::Status sync(int fd, const std::filesystem::path & path) override {
        // Not repeated after EIO: the kernel may have dropped the pages, and a second call would lie.
        return ::fsync(fd) == 0 ? absl::OkStatus() : errno_status(errno, "write to the disk", path.native());
    }

    absl::Status sync_folder(const std::filesystem::path & path) override {
        const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (!fd.valid()) return errno_status(errno, "open the folder", path.native());
        return sync(fd.get(), path);
    }

    absl::Status rename(const std::filesystem::path & from, const std::filesystem::path & to) override {
        return check(::rename(from.c_str(), to.c_str()), "rename a file to", to);
    }

    absl::Status remove(const std::filesystem::path & path) override {
        return check(::remove(path.c_str()), "remove", path);
    }

    absl::Status make_folder(const std::filesystem::path & path) override {
        return check(::mkdir(path.c_str(), 0755), "make the folder", path);
    }

    absl::Status touch(const std::filesystem::path & path) override {
        return check(::utimensat(AT_FDCWD, path.c_str(), nullptr, AT_SYMLINK_NOFOLLOW), "change the time of", path);
    }

    absl::Status resize(int fd, uint64_t size, const std::filesystem::path & path) override {
        return check(::ftruncate(fd, static_cast<off_t>(size)), "make room in", path);
    }

    absl::Status symlink(const std::filesystem::path & target, const std::filesystem::path & link) override {
        return check(::symlink(target.c_str(), link.c_str()), "make the link", link);
    }

private:
    static absl::Status check(int result, std::string_view what, const std::filesystem::path & path) {
        return result == 0 ? absl::OkStatus() : errno_status(errno, what, path.native());
    }
};

} // namespace

Disk & Disk::real() {
    static RealDisk disk;
    return disk;
}

} // namespace strata::layers
