#pragma once

#include "cluster/store.h"

#include <string>
#include <string_view>

namespace strata::cluster {

// The first key behind all that begin with the prefix. Keys are ASCII, so that there is one.
std::string behind(std::string_view prefix);

// What every store refuses: keys that are no keys, values that are too large, a key that is written twice.
// kInvalidArgument.
absl::Status check_key(std::string_view key);
absl::Status check(const Transaction & transaction);
absl::Status check_lease_time(int64_t ttl_ms);

} // namespace strata::cluster
