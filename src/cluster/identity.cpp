#include "cluster/identity.h"

#include "base/unique_fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <string_view>

namespace strata::cluster {

namespace fs = std::filesystem;

namespace {

constexpr size_t kFileBytes = 64 << 10;

absl::Status sync_folder(const fs::path & path) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    return fd.valid() && ::fsync(fd.get()) == 0 ? absl::OkStatus() : errno_status(errno, "write", path.native());
}

absl::Status write_file(const fs::path & path, std::string_view text) {
    const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, S_IRUSR | S_IWUSR));
    if (!fd.valid()) return errno_status(errno, "make", path.native());
    while (!text.empty()) {
        const ssize_t written = ::write(fd.get(), text.data(), text.size());
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return errno_status(errno, "write", path.native());
        text.remove_prefix(static_cast<size_t>(written));
    }
    return ::fsync(fd.get()) == 0 ? absl::OkStatus() : errno_status(errno, "write", path.native());
}

absl::StatusOr<std::string> read_file(const fs::path & path) {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid()) return errno_status(errno, "read", path.native());
    std::string text(kFileBytes, '\0');
    size_t size = 0;
    while (size < text.size()) {
        const ssize_t got = ::read(fd.get(), text.data() + size, text.size() - size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno_status(errno, "read", path.native());
        if (got == 0) break;
        size += static_cast<size_t>(got);
    }
    text.resize(size);
    return text;
}

} // namespace

absl::Status IdentityFolder::write(const IdentityFiles & files) const {
    std::error_code failed;
    fs::create_directories(path_.parent_path(), failed);
    if (failed) return errno_status(failed.value(), "make the folder", path_.parent_path().native());
    std::string folder = path_.native() + ".XXXXXX";
    if (::mkdtemp(folder.data()) == nullptr) return errno_status(errno, "make the folder", folder);
    const fs::path made(folder), link(folder + ".link"), old = fs::read_symlink(path_, failed);
    absl::Status status;
    for (const auto & [name, text] : {std::pair<const char *, const std::string &>{"ca.pem", files.ca},
                                      {"cert.pem", files.certificate},
                                      {"key.pem", files.key}}) {
        if (status.ok()) status = write_file(made / name, text);
    }
    if (status.ok()) status = sync_folder(made);
    if (status.ok()) {
        fs::create_symlink(made.filename(), link, failed);
        if (!failed) fs::rename(link, path_, failed);
        if (failed) status = errno_status(failed.value(), "replace", path_.native());
    }
    fs::remove(link, failed);
    if (!status.ok()) {
        fs::remove_all(made, failed);
        return status;
    }
    // The one before stays for those who are reading it; older ones, and what a killed daemon left, go.
    const std::string prefix = path_.filename().native() + ".";
    for (const fs::directory_entry & entry : fs::directory_iterator(path_.parent_path(), failed)) {
        const fs::path name = entry.path().filename();
        if (name.native().starts_with(prefix) && name != made.filename() && name != old.filename()) {
            fs::remove_all(entry.path(), failed);
        }
    }
    return sync_folder(path_.parent_path());
}

absl::StatusOr<IdentityFiles> IdentityFolder::read() const {
    IdentityFiles files;
    STRATA_ASSIGN_OR_RETURN(files.ca, read_file(path_ / "ca.pem"));
    STRATA_ASSIGN_OR_RETURN(files.certificate, read_file(path_ / "cert.pem"));
    STRATA_ASSIGN_OR_RETURN(files.key, read_file(path_ / "key.pem"));
    return files;
}

absl::Status IdentityFolder::remove() const {
    std::error_code failed;
    const std::string name = path_.filename().native();
    for (const fs::directory_entry & entry : fs::directory_iterator(path_.parent_path(), failed)) {
        const std::string found = entry.path().filename().native();
        if (found == name || found.starts_with(name + ".")) fs::remove_all(entry.path(), failed);
    }
    const bool there = fs::exists(fs::symlink_status(path_));
    return there ? errno_status(failed ? failed.value() : EIO, "remove", path_.native()) : absl::OkStatus();
}

} // namespace strata::cluster
