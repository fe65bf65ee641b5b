#pragma once

#include "base/home.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace strata::daemon {

// Makes the folders of a home, for this user only, and takes it: one daemon serves a home. The home is free again when
// the descriptor is closed, also by a kill. kAlreadyExists names the process that has it.
absl::StatusOr<UniqueFd> take_home(const Home & home);

} // namespace strata::daemon
