#pragma once

#include "base/status.h"

#include <chrono>
#include <string>

namespace strata::engine {

struct DriverProcessOptions {
    std::string socket;
    std::chrono::milliseconds drain{10000};          // for running requests, after SIGTERM
    std::chrono::milliseconds orphan_timeout{60000}; // 0: never
};

// Serves the Engine service on the socket until SIGTERM, SIGINT, or until the process that started this one has been
// gone for the orphan timeout without a call from anybody. Called once, by the main thread, before there are other
// threads.
absl::Status run_driver_process(const DriverProcessOptions & options);

} // namespace strata::engine
