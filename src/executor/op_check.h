#pragma once
#include "base/status.h"
#include <absl/container/inlined_vector.h>
#include <ggml.h>
namespace strata::executor {
absl::Status check_op(const ggml_tensor & node);
struct IndexRule {
    const ggml_tensor * index;
    int64_t min;
    int64_t limit;
};
absl::InlinedVector<IndexRule, 2> index_rules(const ggml_tensor & node);
absl::Status check_indices(const IndexRule & rule);
}
