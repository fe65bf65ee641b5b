#pragma once

#include "base/status.h"

#include <chrono>
#include <string_view>

namespace strata {

// "500ms", "30s", "10m", "2h", or "0"; kInvalidArgument says what is allowed.
absl::StatusOr<std::chrono::milliseconds> parse_duration(std::string_view text);

} // namespace strata
