#include "cli/input.h"

#include "base/unique_fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace strata::cli {

namespace {

constexpr size_t kMaxInputBytes = 16 << 20;

absl::StatusOr<std::string> read_all(int fd, const std::string & name) {
    std::string text;
    std::array<char, 65536> piece;
    while (true) {
        const ssize_t got = ::read(fd, piece.data(), piece.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno_status(errno, "read", name);
        if (got == 0) return text;
        text.append(piece.data(), static_cast<size_t>(got));
        if (text.size() > kMaxInputBytes) {
            return absl::ResourceExhaustedError(fmt::format("{} has more than 16 MiB; give less of it", name));
        }
    }
}

} // namespace

absl::StatusOr<std::string> read_file(const std::string & path) {
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return errno_status(errno, "open", path);
    return read_all(file.get(), path);
}

absl::StatusOr<std::string> read_stdin() {
    return read_all(STDIN_FILENO, "stdin");
}

} // namespace strata::cli
