#pragma once

#include "ggml.h"

#include <absl/container/inlined_vector.h>
#include <absl/status/status.h>

#include <cstdint>

namespace strata::executor {

// Views, and nodes without elements, which graphs of llama.cpp have (states to clear, when there are none): to be left
// out of what is sent. Sources without elements stay: CONCAT has such.
bool computes_nothing(const ggml_tensor & node);

// Whether ggml's CPU kernels can run `node` without an assertion failing or an access outside of its tensors' memory.
// Looks at op, op_params, types, shapes and strides of the node and its sources and where they lie, never at what they
// hold: for that there are index_rules.
//
// Expects of the caller that every tensor's span, as computed from shape and strides (ggml_nbytes, without overflow),
// lies in memory of the one who sent it; that memory is written by nobody else while the node runs; that `extra` and
// `buffer` are its own (a weight that ggml has repacked has an `extra`). An op that is not on the list is refused, and
// so is a node that computes nothing.
//
// Holds for ggml built with NDEBUG, as all that is shipped: its assert()s look at values. An accepted node can still
// ask for much scratch memory or time: see op_cost.h. InvalidArgument names the op and what is wrong
// with it.
absl::Status check_op(const ggml_tensor & node);

// What a kernel relies on in the values of a source.
struct IndexRule {
    const ggml_tensor * index;
    // Integers: every value is in [min, limit). F32: no value is a NaN (it breaks the order that std::sort relies on).
    int64_t min;
    int64_t limit;
    // No value occurs twice in a row of `index`.
    bool distinct;
};

inline constexpr size_t kMaxIndexRules = 1;

// The rules of a node that passed check_op. They hold for what the memory holds when the node runs, not before: an
// earlier node may write it.
absl::InlinedVector<IndexRule, kMaxIndexRules> index_rules(const ggml_tensor & node);

// Reads the values, which are in host memory. InvalidArgument names the first that breaks the rule.
absl::Status check_indices(const IndexRule & rule);

} // namespace strata::executor
