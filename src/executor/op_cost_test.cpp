#include "executor/op_check.h"
#include "executor/op_check_runner.h"
#include "executor/op_cost.h"

#include <gmock/gmock.h>

namespace strata::executor {
namespace {

using testing::HasSubstr;

// That scratch memory is not larger than it says is checked by NodeRunner, for all that it runs.
TEST(OpCost, all_ops_cost_something_and_what_models_do_is_allowed) {
    for (const NodeRecipe & recipe : node_recipes()) {
        const OwnedNode node = make_node(recipe);
        const OpCost cost = op_cost(node.node(), 256);
        EXPECT_GT(cost.operations, 0) << recipe.name;
        EXPECT_LT(cost.operations, 1e9) << recipe.name;
        EXPECT_TRUE(check_cost(node.node(), cost).ok()) << recipe.name;
    }
}

class Product : public testing::Test {
protected:
    Product(int64_t k, int64_t m, int64_t n) {
        weights.type = input.type = result.type = GGML_TYPE_F32;
        shape(weights, k, m);
        shape(input, k, n);
        shape(result, m, n);
        result.op = GGML_OP_MUL_MAT;
        result.src[0] = &weights;
        result.src[1] = &input;
    }
    Product()
        : Product(16384, 128256, 512) {}

    static void shape(ggml_tensor & tensor, int64_t columns, int64_t rows) {
        tensor.ne[0] = columns;
        tensor.ne[1] = rows;
        tensor.ne[2] = tensor.ne[3] = 1;
        tensor.nb[0] = sizeof(float);
        tensor.nb[1] = sizeof(float) * static_cast<size_t>(columns);
        tensor.nb[2] = tensor.nb[3] = tensor.nb[1] * static_cast<size_t>(rows);
    }

    ggml_tensor weights{}, input{}, result{};
};

TEST_F(Product, is_counted) {
    EXPECT_NEAR(op_cost(result, 1).operations, 16384.0 * 128256 * 512, 1e9);
    EXPECT_TRUE(check_cost(result, op_cost(result, 256)).ok());
}

TEST_F(Product, that_takes_hours_is_refused) {
    shape(input, 16384, 1 << 20);
    shape(result, 128256, 1 << 20);
    EXPECT_TRUE(check_op(result).ok()) << check_op(result);
    EXPECT_THAT(check_cost(result, op_cost(result, 1)).message(), HasSubstr("MUL_MAT: 2.2e+15 operations"));
}

TEST_F(Product, that_needs_much_scratch_memory_is_refused) {
    shape(weights, 1 << 20, 1);
    shape(input, 1 << 20, 1 << 16);
    shape(result, 1, 1 << 16);
    weights.type = GGML_TYPE_Q4_0;
    EXPECT_THAT(check_cost(result, op_cost(result, 1)).message(), HasSubstr("bytes of scratch memory"));
}

} // namespace
} // namespace strata::executor
