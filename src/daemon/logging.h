#pragma once

#include "base/status.h"

#include <filesystem>
#include <string>

namespace strata::daemon {

// Where spdlog's messages go: the file, rotated by size, and stderr, unless that is the same file already; or, as JSON
// lines {"time":…,"level":…,"message":…}, stdout. `level` is one of spdlog's names: trace, debug, info, warn, error.
enum class Console { kText, kJson };
absl::Status set_up_logging(const std::filesystem::path & file, const std::string & level, Console console);

} // namespace strata::daemon
