#pragma once

#include "base/home.h"
#include "base/status.h"
#include "cli/client.h"
#include "cli/output.h"

#include <filesystem>
#include <string>
#include <vector>

namespace strata::cli {

// stratad beside this program, else the one in $PATH. kNotFound when there is none.
absl::StatusOr<std::filesystem::path> find_stratad();

// Where a daemon that was started in the background writes what it says.
std::filesystem::path daemon_log(const Home & home);

// Starts stratad in the background, in a session of its own, and returns once it answers. When it dies instead, the
// error quotes what it wrote last. Fine when another process starts one at the same time. Must not run while this
// process has other threads that fork.
absl::Status start_daemon(const Home & home, const std::vector<std::string> & arguments, const Output & output);

// Replaces this process by stratad; returns only when that fails.
absl::Status exec_daemon(const Home & home, const std::vector<std::string> & arguments);

// Ends the daemon (SIGTERM; it finishes running requests within its drain time) and returns when it is gone.
absl::Status stop_daemon(const v1::Node & node);

} // namespace strata::cli
