#include "executor/op_check_runner.h"

// A node of a stranger, changed as the input says, on its way through check_op and, when that accepts it, ggml's
// kernels.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static strata::executor::NodeRunner runner;
    (void)runner.run(std::span(data, size));
    return 0;
}
