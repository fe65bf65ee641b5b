#pragma once

#include "base/status.h"

#include <filesystem>
#include <string>

namespace strata::cli {

// All of a file, or of stdin, as text. kResourceExhausted beyond 16 MiB: no model takes that much.
absl::StatusOr<std::string> read_file(const std::string & path);
absl::StatusOr<std::string> read_stdin();

// The last `lines` lines of a file without the last newline, at most 1 MiB; empty when it can't be read.
std::string last_lines(const std::filesystem::path & file, int lines);

} // namespace strata::cli
