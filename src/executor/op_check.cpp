#include "executor/op_check.h"
namespace strata::executor {
absl::Status check_op(const ggml_tensor &) { return absl::OkStatus(); }
absl::InlinedVector<IndexRule, 2> index_rules(const ggml_tensor &) { return {}; }
absl::Status check_indices(const IndexRule &) { return absl::OkStatus(); }
}
