#pragma once

#include "base/status.h"

namespace strata::engine {

// Starts what llama.cpp needs once per process: its backends, plug-ins included, and the log. The first call does it,
// the others return the same status. Thread-safe.
absl::Status start_runtime();

} // namespace strata::engine
