#pragma once

#include "ggml.h"

#include <absl/status/status.h>

namespace strata::executor {

// What a node that passed check_op asks of a device.
struct OpCost {
    // Multiply-adds, and whatever else a kernel does in the time of as many. A core does about 1e10 in a second.
    double operations = 0;
    // At most so much scratch memory of ggml's CPU kernels on so many threads.
    double scratch_bytes = 0;
};
OpCost op_cost(const ggml_tensor & node, int threads);

// ResourceExhausted, by the limits in limits.h: of memory that it has not written a client has as much as it likes.
absl::Status check_cost(const ggml_tensor & node, const OpCost & cost);

} // namespace strata::executor
