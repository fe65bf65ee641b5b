#pragma once

#include "base/status.h"

#include <ggml-backend.h>

namespace strata::executor {

// Computes a node, whose tensors lie in a device's memory, on the host: for what the device can't compute. What it
// reads and writes is copied there, and the result back.
absl::Status compute_on_host(ggml_backend_t host, const ggml_tensor & node);

} // namespace strata::executor
