#pragma once

#include "executor/fuzz_input.h"
#include "executor/op_check_nodes.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace strata::executor {

// A node with sources that belong to nobody else, so that it can be changed at will.
struct OwnedNode {
    std::vector<ggml_tensor> tensors;   // the node first
    std::vector<const void *> storages; // of each: which of them lie in the same memory
    ggml_tensor & node() { return tensors[0]; }
    const ggml_tensor & node() const { return tensors[0]; }
    // Op, parameters, types, shapes and strides on one line.
    std::string text() const;
};

void make_contiguous(ggml_tensor & tensor);

// Its tensors lie far apart, at addresses where there is no memory.
OwnedNode make_node(const NodeRecipe & recipe);

// What a fuzzer's input makes of a recipe.
const NodeRecipe & chosen_recipe(FuzzInput & input);
OwnedNode changed_node(FuzzInput & input, const NodeRecipe & recipe);

// Runs nodes on ggml's CPU backend such that an access outside of a tensor's memory, or of ggml's scratch memory, is a
// crash: they lie directly before or after memory that must not be touched.
class NodeRunner {
public:
    NodeRunner();
    ~NodeRunner();

    struct Result {
        bool possible = false; // a decoder would let it through: its spans are within memory
        bool accepted = false;
        bool ran = false;
        std::string refusal;
    };

    // Takes a recipe, changes it, checks it and runs it when it is accepted, all as `bytes` says. What a fuzzer calls.
    Result run(std::span<const uint8_t> bytes);
    Result run(OwnedNode node, bool repack, int threads, uint64_t data_seed);

    // Called with what is about to be checked and run.
    std::function<void(const std::string &)> on_description = [](const std::string &) {};

private:
    struct Memory;
    std::unique_ptr<Memory> memory_;
};

} // namespace strata::executor
