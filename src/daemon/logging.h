#pragma once

#include "base/status.h"

#include <filesystem>
#include <string>

namespace strata::daemon {

// Where spdlog's messages go: the file, rotated by size, and stderr, unless that is the same file already. `level` is
// one of spdlog's names: trace, debug, info, warn, error.
absl::Status set_up_logging(const std::filesystem::path & file, const std::string & level);

} // namespace strata::daemon
