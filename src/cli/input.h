#pragma once

#include "base/status.h"

#include <string>

namespace strata::cli {

// All of a file, or of stdin, as text. kResourceExhausted beyond 16 MiB: no model takes that much.
absl::StatusOr<std::string> read_file(const std::string & path);
absl::StatusOr<std::string> read_stdin();

} // namespace strata::cli
