#include "cluster/identity.h"

#include "base/unique_fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>

namespace strata::cluster {

namespace fs = std::filesystem;

namespace {

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
    std::ifstream file(path, std::ios::binary);
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!file) return errno_status(errno == 0 ? EIO : errno, "read", path.native());
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
    if (status.ok()) {
        fs::create_symlink(made.filename(), link, failed);
        if (!failed) fs::rename(link, path_, failed);
        if (failed) status = errno_status(failed.value(), "replace", path_.native());
    }
    fs::remove(link, failed);
    if (!status.ok()) {
        fs::remove_all(made, failed);
    } else if (!old.empty()) {
        fs::remove_all(path_.parent_path() / old.filename(), failed);
    }
    return status;
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
    const fs::path folder = fs::read_symlink(path_, failed);
    if (failed) return absl::OkStatus(); // there is none
    fs::remove(path_, failed);
    if (!failed) fs::remove_all(path_.parent_path() / folder.filename(), failed);
    return failed ? errno_status(failed.value(), "remove", path_.native()) : absl::OkStatus();
}

} // namespace strata::cluster
