#include "daemon/log_file.h"

#include "base/digest.h"
#include "base/text.h"
#include "daemon/limits.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

namespace strata::daemon {

namespace fs = std::filesystem;

namespace {

constexpr size_t kReasonWindow = 16 << 10;
constexpr size_t kReasonLength = 300;

std::string read_at(int fd, uint64_t offset, size_t bytes) {
    std::string text(bytes, '\0');
    size_t done = 0;
    while (done < bytes) {
        const ssize_t got = ::pread(fd, text.data() + done, bytes - done, static_cast<off_t>(offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        done += static_cast<size_t>(got);
    }
    text.resize(done);
    return text;
}

// What llama.cpp, ggml and the C++ runtime print before they end a process. A backtrace may follow it.
bool gives_reason(std::string_view line) {
    constexpr std::array<std::string_view, 6> signs = {"GGML_ASSERT", "check failed", "terminate called",
                                                       "  what():",   "fatal error",  "ggml_abort"};
    return std::any_of(signs.begin(), signs.end(),
                       [&](std::string_view sign) { return line.find(sign) != std::string_view::npos; });
}

// 'I' of "2026-01-01T00:00:00.000 I text", a line of the engine's log; kNoLevel of what is printed past the log.
constexpr char kNoLevel = '\0';
char level_of(std::string_view line) {
    constexpr std::string_view kTime = "2026-01-01T00:00:00.000";
    if (line.size() < kTime.size() + 2) return kNoLevel;
    for (size_t i = 0; i < kTime.size(); ++i) {
        const bool digit = line[i] >= '0' && line[i] <= '9';
        if (kTime[i] >= '0' && kTime[i] <= '9' ? !digit : line[i] != kTime[i]) return kNoLevel;
    }
    if (line[kTime.size()] != ' ') return kNoLevel;
    return line[kTime.size() + 1];
}

} // namespace

std::string engine_log_name(std::string_view deployment) {
    constexpr size_t kLongestName = 200;
    std::string name = "engine-";
    // Names have neither "__" nor "@" in them, so that different names stay different.
    for (const char c : deployment) {
        if (c == '/') {
            name += "__";
        } else {
            name += c == ':' ? '@' : c;
        }
    }
    if (name.size() > kLongestName) {
        name = name.substr(0, kLongestName) + "-" + Digest::of(deployment).hex().substr(0, 12);
    }
    return name + ".log";
}

absl::StatusOr<UniqueFd> LogFile::open_for_append() const {
    UniqueFd file(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
    if (!file.valid()) return errno_status(errno, "open", path_.native());
    return file;
}

uint64_t LogFile::size() const {
    std::error_code none;
    const uint64_t bytes = fs::file_size(path_, none);
    return none ? 0 : bytes;
}

void LogFile::rotate_when_large() const {
    if (size() <= limits::kLogBytes) return;
    // A log that can't be rotated only grows; that is no reason to stop anything.
    std::error_code ignored;
    const auto older = [&](int number) { return fs::path(fmt::format("{}.{}", path_.native(), number)); };
    for (int number = limits::kLogFiles - 1; number >= 1; --number) {
        fs::rename(older(number), older(number + 1), ignored);
    }
    std::error_code failed;
    fs::copy_file(path_, older(1), fs::copy_options::overwrite_existing, failed);
    if (!failed) ::truncate(path_.c_str(), 0);
}

std::string LogFile::reason_since(uint64_t offset) const {
    const UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file.valid()) return {};
    const uint64_t end = size();
    if (offset > end) offset = 0; // rotated since
    const uint64_t start = std::max<uint64_t>(offset, end > kReasonWindow ? end - kReasonWindow : 0);
    const std::string text = read_at(file.get(), start, end - start);

    std::string_view last; // that may be a reason
    std::string_view reason;
    // A cut line would look like one that is not of the log.
    for (size_t begin = start > offset ? text.find('\n') + 1 : 0; begin < text.size();) {
        const size_t line_end = std::min(text.find('\n', begin), text.size());
        std::string_view line(text.data() + begin, line_end - begin);
        begin = line_end + 1;
        while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
        if (line.empty()) continue;
        const char level = level_of(line);
        if (level == kNoLevel && gives_reason(line)) reason = line;
        if (level == kNoLevel || level == 'E') {
            last = line;
        } else if (level_of(last) == 'E') {
            last = {}; // the engine went on, so that was the end of a request only
        }
    }
    return printable(reason.empty() ? last : reason, kReasonLength);
}

bool LogTail::reopen_when_replaced() {
    struct stat now {};
    if (::stat(path_.c_str(), &now) != 0) return false;
    if (file_.valid() && inode_ == now.st_ino) {
        if (offset_ > static_cast<uint64_t>(now.st_size)) offset_ = 0;
        return true;
    }
    file_.reset(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file_.valid() || ::fstat(file_.get(), &now) != 0) return false;
    inode_ = now.st_ino;
    offset_ = 0;
    return true;
}

absl::StatusOr<std::string> LogTail::last_lines(int lines) {
    if (!reopen_when_replaced()) {
        return absl::NotFoundError(fmt::format("there is no log {}", path_.native()));
    }
    struct stat now {};
    if (::fstat(file_.get(), &now) != 0) return errno_status(errno, "read", path_.native());
    const auto end = static_cast<uint64_t>(now.st_size);

    // Backwards in chunks until there are enough line ends; one more than asked for, as the text ends with one.
    std::string text;
    uint64_t start = end;
    size_t found = 0;
    while (start > 0 && found <= static_cast<size_t>(lines)) {
        const uint64_t chunk = std::min<uint64_t>(start, limits::kLogChunkBytes);
        start -= chunk;
        const std::string piece = read_at(file_.get(), start, chunk);
        found += static_cast<size_t>(std::count(piece.begin(), piece.end(), '\n'));
        text.insert(0, piece);
    }
    offset_ = end;
    size_t begin = 0;
    const size_t wanted = static_cast<size_t>(lines) + (text.empty() || text.back() == '\n' ? 0 : -1);
    for (; found > wanted; --found) begin = text.find('\n', begin) + 1;
    return text.substr(begin);
}

std::string LogTail::read_new() {
    if (!reopen_when_replaced()) return {};
    std::string text = read_at(file_.get(), offset_, limits::kLogChunkBytes);
    offset_ += text.size();
    return text;
}

} // namespace strata::daemon
