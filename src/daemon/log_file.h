#pragma once

#include "base/status.h"
#include "base/unique_fd.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace strata::daemon {

// "engine-NAME@TAG.log": the log of a deployment's engine. A name that is too long for a file is cut and gets a hash.
std::string engine_log_name(std::string_view deployment);

// A file that engines append to by themselves, also while no daemon runs; so it is rotated by copying it away and
// cutting it to nothing, which an appending writer does not notice. What it writes in between is lost.
class LogFile {
public:
    explicit LogFile(std::filesystem::path path)
        : path_(std::move(path)) {}

    const std::filesystem::path & path() const { return path_; }
    absl::StatusOr<UniqueFd> open_for_append() const;
    // Bytes now; 0 when there is none.
    uint64_t size() const;
    // Moves the log to NAME.1, NAME.1 to NAME.2 ... when it has grown beyond the limit.
    void rotate_when_large() const;

    // Of what was written since the offset: the line that says why a process ended (an assertion), else the last one
    // that was printed past the log, or an error that the log ends with; made printable and short. Empty when there is
    // none: a process that is killed says nothing, and what its log ended with is not the reason.
    std::string reason_since(uint64_t offset) const;

private:
    std::filesystem::path path_;
};

// Reads a growing log. Not thread-safe.
class LogTail {
public:
    explicit LogTail(std::filesystem::path path)
        : path_(std::move(path)) {}

    // The last `lines` lines; the next read_new goes on after them. kNotFound when there is no such file.
    absl::StatusOr<std::string> last_lines(int lines);
    // What was added, at most limits::kLogChunkBytes a call. Starts anew when the file was cut or replaced.
    std::string read_new();

private:
    bool reopen_when_replaced();

    std::filesystem::path path_;
    UniqueFd file_;
    uint64_t inode_ = 0;
    uint64_t offset_ = 0;
};

} // namespace strata::daemon
