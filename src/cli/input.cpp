#include "cli/input.h"

#include "base/unique_fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>

namespace strata::cli {

namespace {

constexpr size_t kMaxInputBytes = 16 << 20;
constexpr std::streamoff kMaxTailBytes = 1 << 20;

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

std::string last_lines(const std::filesystem::path & file, int lines) {
    std::ifstream in(file, std::ios::binary | std::ios::ate);
    if (!in) return {};
    const std::streamoff size = in.tellg();
    const std::streamoff start = std::max<std::streamoff>(size - kMaxTailBytes, 0);
    in.seekg(start);
    std::string text(static_cast<size_t>(size - start), '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(std::max<std::streamsize>(in.gcount(), 0)));
    while (text.ends_with('\n')) text.pop_back();
    size_t from = text.size();
    for (int i = 0; i < lines && from != std::string::npos && from > 0; ++i) from = text.rfind('\n', from - 1);
    return from == std::string::npos || from == 0 ? text : text.substr(from + 1);
}

} // namespace strata::cli
