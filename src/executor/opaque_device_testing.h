#pragma once

#include <ggml-backend.h>

namespace strata::executor {

// A device of ggml as a GPU is one: memory of its own, which nobody else can look into (its addresses lead nowhere),
// and ops that it lacks (SET_ROWS, ROPE, GET_ROWS). It computes as the CPU does. Lives as long as the process.
ggml_backend_dev_t opaque_device();

} // namespace strata::executor
