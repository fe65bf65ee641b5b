#pragma once

#include "ggml.h"

#include <span>
#include <string>

namespace strata::executor {

// A node as ggml's constructors and llama.cpp's graphs make it, for tests.
struct NodeRecipe {
    std::string name;
    ggml_tensor * (*make)(ggml_context *);
    // src0 is a weight that may lie in a CPU_REPACK buffer.
    bool repackable = false;
};

std::span<const NodeRecipe> node_recipes();

} // namespace strata::executor
