#include "executor/op_check.h"
#include "executor/op_check_runner.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace strata::executor {
namespace {

using testing::HasSubstr;

const NodeRecipe & recipe(std::string_view name) {
    for (const NodeRecipe & each : node_recipes()) {
        if (each.name == name) return each;
    }
    ADD_FAILURE() << "there is no recipe " << name;
    std::abort();
}

std::string refusal(const OwnedNode & node) {
    return std::string(check_op(node.node()).message());
}

TEST(OpCheck, NamesWhatIsWrong) {
    OwnedNode node = make_node(recipe("mul_mat Q4_0"));
    node.tensors[2].ne[0] = 32;
    EXPECT_EQ(check_op(node.node()).message(), "MUL_MAT: src0 has 256 columns, src1 32");
    node = make_node(recipe("rope"));
    node.node().src[1] = nullptr;
    EXPECT_EQ(check_op(node.node()).message(), "ROPE: src1 is missing");
    node.node().op = static_cast<ggml_op>(GGML_OP_COUNT);
    EXPECT_EQ(check_op(node.node()).message(), fmt::format("there is no op {}", static_cast<int>(GGML_OP_COUNT)));
}

TEST(OpCheck, RefusesOpsThatAreNotOnTheList) {
    OwnedNode node = make_node(recipe("add"));
    for (const ggml_op op :
         {GGML_OP_NONE, GGML_OP_VIEW, GGML_OP_RESHAPE, GGML_OP_PERMUTE, GGML_OP_TRANSPOSE, GGML_OP_MAP_CUSTOM1,
          GGML_OP_MAP_CUSTOM2, GGML_OP_MAP_CUSTOM3, GGML_OP_CUSTOM, GGML_OP_CONV_2D, GGML_OP_FLASH_ATTN_BACK}) {
        node.node().op = op;
        EXPECT_THAT(refusal(node), HasSubstr("is not on the list")) << ggml_op_name(op);
    }
}

// As a driver asks what executors can run.
TEST(OpCheck, AcceptsNodesWithoutMemory) {
    for (const NodeRecipe & each : node_recipes()) {
        OwnedNode node = make_node(each);
        for (ggml_tensor & tensor : node.tensors) tensor.data = nullptr;
        EXPECT_EQ(check_op(node.node()), absl::OkStatus()) << each.name;
    }
}

TEST(OpCheck, NodesThatComputeNothing) {
    OwnedNode node = make_node(recipe("scale"));
    EXPECT_FALSE(computes_nothing(node.node()));
    node.node().ne[1] = 0;
    EXPECT_TRUE(computes_nothing(node.node()));
    EXPECT_THAT(refusal(node), HasSubstr("no elements"));
    node.node().op = GGML_OP_VIEW;
    node.node().ne[1] = 1;
    EXPECT_TRUE(computes_nothing(node.node()));
}

// A layer with most of what ggml can differentiate, its loss and the steps of an optimizer.
TEST(OpCheck, AcceptsTrainingGraphs) {
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> owner(ggml_init({size_t{1} << 22, nullptr, true}),
                                                                    ggml_free);
    ggml_context * c = owner.get();
    const auto weight = [c](std::initializer_list<int64_t> ne) {
        ggml_tensor * out = ggml_new_tensor(c, GGML_TYPE_F32, static_cast<int>(ne.size()), ne.begin());
        ggml_set_param(out);
        return out;
    };
    ggml_tensor * tokens = ggml_new_tensor_1d(c, GGML_TYPE_I32, 5);
    ggml_tensor * x = ggml_get_rows(c, weight({32, 64}), tokens);
    ggml_tensor * normed = ggml_mul(c, ggml_rms_norm(c, x, 1e-5F), weight({32}));
    const auto heads = [&](int64_t count, bool turned) {
        ggml_tensor * out = ggml_reshape_3d(c, ggml_mul_mat(c, weight({32, 8 * count}), normed), 8, count, 5);
        if (turned) out = ggml_rope(c, out, ggml_new_tensor_1d(c, GGML_TYPE_I32, 5), 8, GGML_ROPE_TYPE_NEOX);
        return ggml_permute(c, out, 0, 2, 1, 3);
    };
    ggml_tensor * scores =
        ggml_diag_mask_inf(c, ggml_scale(c, ggml_mul_mat(c, heads(2, true), heads(4, true)), 0.3F), 0);
    ggml_tensor * values = ggml_cont(c, ggml_transpose(c, heads(2, false)));
    ggml_tensor * mixed = ggml_mul_mat(c, values, ggml_soft_max_ext(c, scores, nullptr, 0.5F, 0.0F));
    x = ggml_add(c, x, ggml_cont_2d(c, ggml_permute(c, mixed, 0, 2, 1, 3), 32, 5));
    ggml_tensor * hidden =
        ggml_mul(c, ggml_silu(c, ggml_mul_mat(c, weight({32, 48}), x)), ggml_mul_mat(c, weight({32, 48}), x));
    hidden = ggml_swiglu_split(c, hidden, ggml_sqr(c, ggml_add(c, hidden, ggml_repeat(c, weight({48}), hidden))));
    x = ggml_sub(c, x, ggml_div(c, ggml_mul_mat(c, weight({48, 32}), hidden), ggml_exp(c, x)));
    ggml_tensor * logits = ggml_mul_mat(c, weight({32, 64}), x);
    ggml_tensor * loss = ggml_cross_entropy_loss(c, logits, ggml_new_tensor_2d(c, GGML_TYPE_F32, 64, 5));
    loss = ggml_add(c, loss, ggml_mean(c, ggml_sum_rows(c, ggml_reshape_1d(c, ggml_sqrt(c, ggml_log(c, x)), 160))));
    ggml_set_loss(loss);
    ggml_cgraph * graph = ggml_new_graph_custom(c, 4096, true);
    ggml_build_forward_expand(graph, loss);
    ggml_build_forward_expand(graph,
                              ggml_count_equal(c, ggml_argmax(c, logits), ggml_new_tensor_1d(c, GGML_TYPE_I32, 5)));
    const int forward_nodes = ggml_graph_n_nodes(graph);
    ggml_build_backward_expand(c, graph, nullptr);
    for (int i = forward_nodes - 1; i >= 0; --i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        for (ggml_tensor * source : node->src) {
            if (source == nullptr || (source->flags & GGML_TENSOR_FLAG_PARAM) == 0) continue;
            ggml_tensor * grad = ggml_graph_get_grad(graph, source);
            const auto state = [&] { return ggml_dup_tensor(c, source); };
            ggml_build_forward_expand(
                graph, ggml_opt_step_adamw(c, source, grad, state(), state(), ggml_new_tensor_1d(c, GGML_TYPE_F32, 7)));
            ggml_build_forward_expand(graph,
                                      ggml_opt_step_sgd(c, source, grad, ggml_new_tensor_1d(c, GGML_TYPE_F32, 2)));
        }
    }
    uintptr_t next = uintptr_t{1} << 40;
    for (ggml_tensor * each = ggml_get_first_tensor(c); each != nullptr; each = ggml_get_next_tensor(c, each)) {
        if (each->view_src != nullptr) {
            each->data = static_cast<char *>(each->view_src->data) + each->view_offs;
        } else {
            each->data = reinterpret_cast<void *>(next); // NOLINT(performance-no-int-to-ptr): never read
        }
        next += uintptr_t{1} << 20;
    }
    EXPECT_GT(ggml_graph_n_nodes(graph), 2 * forward_nodes);
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        if (computes_nothing(*node)) continue;
        EXPECT_EQ(check_op(*node), absl::OkStatus()) << i;
    }
}

struct Hostile {
    std::string_view recipe;
    void (*change)(OwnedNode &);
    std::string_view refusal;
};

void set_param(OwnedNode & node, int param, float value) {
    std::memcpy(&node.node().op_params[param], &value, sizeof value);
}

// Nearly all of them end the process when they are run; the others read or write what they must not, on some machine.
const Hostile kHostile[] = {
    // Any op.
    {"add", [](OwnedNode & n) { n.tensors[1].type = GGML_TYPE_COUNT; }, "src0: type"},
    {"add", [](OwnedNode & n) { n.tensors[1].type = static_cast<ggml_type>(-1); }, "src0: type"},
    {"add", [](OwnedNode & n) { n.tensors[1].type = static_cast<ggml_type>(4); }, "src0: type"},
    {"add", [](OwnedNode & n) { n.tensors[2].ne[1] = 0; }, "no elements"},
    {"add", [](OwnedNode & n) { n.tensors[2].ne[1] = -1; }, "out of range"},
    {"add", [](OwnedNode & n) { n.node().src[2] = n.node().src[1]; }, "src2 is one too many"},
    {"add", [](OwnedNode & n) { n.tensors[2].nb[1] = 2; }, "a stride of 2"},
    {"add", [](OwnedNode & n) { n.tensors[2].nb[1] = size_t{1} << 62; }, "a stride of"},
    {"add", [](OwnedNode & n) { n.tensors[2].data = reinterpret_cast<void *>(2); }, "not aligned"},
    {"add", [](OwnedNode & n) { n.node().nb[1] = 0; }, "its elements overlap"},
    {"sum", [](OwnedNode & n) { n.tensors[1].ne[2] = 1 << 20, n.tensors[1].nb[2] = 0; }, "many times over"},
    {"sum", [](OwnedNode & n) { n.tensors[1].ne[2] = n.tensors[1].ne[3] = 1 << 20; }, "too large"},
    {"get_rows Q4_0", [](OwnedNode & n) { n.tensors[1].nb[0] = 0; }, "side by side"},
    {"get_rows Q4_0", [](OwnedNode & n) { n.tensors[1].ne[0] = n.node().ne[0] = 250; }, "no whole blocks"},
    // Dispatch on types that are taken for others.
    {"silu", [](OwnedNode & n) { n.tensors[1].type = GGML_TYPE_F16; }, "src0"},
    {"gelu",
     [](OwnedNode & n) {
         n.node().type = GGML_TYPE_I8;
         n.node().nb[0] = 1;
     },
     "src0 has type f32, dst has i8"},
    {"clamp",
     [](OwnedNode & n) {
         n.node().type = GGML_TYPE_F16;
         n.node().nb[0] = 2;
     },
     "dst has f16"},
    {"soft_max_ext",
     [](OwnedNode & n) {
         n.tensors[2].type = GGML_TYPE_I8;
         n.tensors[2].nb[0] = 1;
     },
     "src1 has type i8"},
    {"flash_attn_ext F16", [](OwnedNode & n) { n.node().src[3]->type = GGML_TYPE_I8; }, "src3"},
    {"cast F32 to I32",
     [](OwnedNode & n) {
         n.tensors[1].type = GGML_TYPE_F16;
         n.tensors[1].nb[0] = 2;
     },
     "no copy from f16 to i32"},
    {"cont of permuted heads", [](OwnedNode & n) { n.node().type = GGML_TYPE_Q4_0; }, "dst"},
    // The layout of src1 is where blocks are unpacked to.
    {"cast Q8_0 to F32", [](OwnedNode & n) { n.node().src[1] = nullptr; }, "src1 is missing"},
    {"cpy Q8_0 to F32", [](OwnedNode & n) { n.tensors[2].nb[1] *= 2; }, "src1 and dst differ in their strides"},
    // Work memory that is planned with other numbers than it is used with.
    {"cast F16 to Q8_0",
     [](OwnedNode & n) {
         n.node().ne[0] = 32;
         n.node().ne[1] = 24;
         n.node().nb[1] = 34;
         n.node().nb[2] = 34 * 24;
     },
     "shorter rows"},
    {"set_rows F16 to F16",
     [](OwnedNode & n) {
         n.node().type = GGML_TYPE_F32;
         for (auto & nb : n.node().nb) nb *= 2;
     },
     "of f16 in f32"},
    {"mul_mat_id F32",
     [](OwnedNode & n) {
         for (int i : {0, 2, 3}) n.tensors[i].ne[i == 3 ? 1 : 2] = 1 << 20;
         for (int i : {0, 2, 3}) n.tensors[i].nb[i == 3 ? 1 : 2] = 0;
     },
     "overlap"},
    {"mul_mat_id F32",
     [](OwnedNode & n) {
         n.tensors[1].ne[2] = 1 << 20;
         n.tensors[1].nb[2] = n.tensors[1].nb[0] * 256;
     },
     "1048576 experts"},
    // Divisions by zero and loops without an end.
    {"rope", [](OwnedNode & n) { n.node().op_params[1] = 0; }, "turns 0 channels"},
    {"rope", [](OwnedNode & n) { n.node().op_params[1] = 7; }, "turns 7 channels"},
    {"rope", [](OwnedNode & n) { n.node().op_params[15] = INT_MAX - 1; }, "turns 16 channels"},
    {"rope", [](OwnedNode & n) { n.node().op_params[2] = 4; }, "no mode 4"},
    {"rope", [](OwnedNode & n) { n.node().op_params[2] = 1; }, "no mode 1"},
    {"rope_multi", [](OwnedNode & n) { n.node().op_params[11] = -6; }, "a section of -6"},
    {"rope_multi", [](OwnedNode & n) { n.tensors[2].ne[0] = 5; }, "src1 has shape"},
    {"rope of some channels",
     [](OwnedNode & n) {
         for (int i : {0, 1}) n.tensors[i].ne[0] = 15;
     },
     "in rows of 15"},
    {"rope", [](OwnedNode & n) { n.tensors[3].ne[0] = 7; }, "7 frequency factors"},
    {"rope of some channels",
     [](OwnedNode & n) {
         n.node().src[2] = n.node().src[0];
         n.tensors[1].ne[0] = 8;
     },
     "ROPE"},
    {"pool_2d",
     [](OwnedNode & n) {
         n.tensors[1].ne[2] = n.tensors[1].ne[3] = 1;
         n.tensors[1].nb[2] = 0;
     },
     "POOL_2D"},
    {"group_norm", [](OwnedNode & n) { n.node().op_params[0] = 0; }, "0 groups"},
    {"rwkv_wkv6",
     [](OwnedNode & n) {
         n.tensors[6].ne[1] = 8;
         n.tensors[6].ne[0] = 288;
     },
     "RWKV_WKV6"},
    {"gated_delta_net with snapshots", [](OwnedNode & n) { n.tensors[1].ne[3] = 5; }, "5 sequences for 2"},
    // What lies behind a tensor.
    {"rwkv_wkv7",
     [](OwnedNode & n) {
         for (int i = 1; i <= 6; ++i)
             n.tensors[i].ne[0] = 65, n.tensors[i].nb[1] = 260, n.tensors[i].nb[2] = 520, n.tensors[i].nb[3] = 2080;
     },
     "RWKV_WKV7"},
    {"rms_norm in place",
     [](OwnedNode & n) {
         n.node().nb[0] = 12;
         n.node().nb[1] = 4;
     },
     "not side by side"},
    {"scale with a bias",
     [](OwnedNode & n) {
         for (int i : {0, 1}) n.tensors[i].ne[1] = 1, make_contiguous(n.tensors[i]);
         n.node().nb[1] = 4000;
     },
     "not evenly apart"},
    {"diag_mask_inf",
     [](OwnedNode & n) {
         for (int i : {0, 1})
             n.tensors[i].ne[2] = 1, n.tensors[i].ne[3] = 4, n.tensors[i].nb[2] = 512, n.tensors[i].nb[3] = 128;
     },
     "planes of dst"},
    {"flash_attn_ext F16", [](OwnedNode & n) { n.node().src[3]->ne[1] = 4; }, "a mask of shape"},
    {"flash_attn_ext F16", [](OwnedNode & n) { n.node().src[4]->ne[0] = 3; }, "src4 has shape"},
    {"flash_attn_ext F16", [](OwnedNode & n) { n.node().src[2]->ne[1] = 39; }, "40 keys, 39 values"},
    {"flash_attn_ext F16", [](OwnedNode & n) { n.node().src[1]->ne[2] = 3; }, "queries"},
    {"flash_attn_ext F16", [](OwnedNode & n) { n.node().op_params[3] = 20; }, "precision 20"},
    {"flash_attn_ext F16", [](OwnedNode & n) { n.node().nb[1] += 4; }, "its elements overlap"},
    {"set", [](OwnedNode & n) { n.node().op_params[3] = -8; }, "parameter 3 is -8"},
    {"set", [](OwnedNode & n) { n.node().op_params[3] = 200; }, "would end at byte"},
    {"acc", [](OwnedNode & n) { n.node().op_params[0] = INT_MAX; }, "would end at byte"},
    {"pad", [](OwnedNode & n) { n.node().op_params[0] = -3; }, "pads by -3"},
    {"pad in a circle",
     [](OwnedNode & n) {
         n.node().op_params[0] = 8;
         n.node().ne[0] = 14;
     },
     "PAD"},
    {"count_equal",
     [](OwnedNode & n) {
         for (int i : {1, 2}) n.tensors[i].ne[3] = 2;
     },
     "src0 has shape"},
    {"concat 0", [](OwnedNode & n) { n.node().op_params[0] = 4; }, "along dimension 4"},
    {"concat 0", [](OwnedNode & n) { n.tensors[1].ne[3] = 0; }, "do not make"},
    {"top_k", [](OwnedNode & n) { n.node().ne[0] = 41, make_contiguous(n.node()); }, "the first 41 of 40"},
    {"im2col 2d", [](OwnedNode & n) { n.tensors[2].nb[1] = 4; }, "not side by side"},
    {"ssm_scan Mamba 2",
     [](OwnedNode & n) {
         n.tensors[1].ne[3] = 1;
         n.tensors[1].nb[3] = 1 << 20;
     },
     "not side by side"},
    {"ssm_scan Mamba 2", [](OwnedNode & n) { n.node().op_params[0] = INT_MAX; }, "dst has"},
    {"get_rows of weights of experts", [](OwnedNode & n) { n.tensors[2].ne[1] = 6; }, "src1 has shape"},
    {"opt_step_adamw", [](OwnedNode & n) { n.tensors[5].ne[0] = 6; }, "src4 has shape"},
    {"mul_mat by a Hadamard matrix",
     [](OwnedNode & n) {
         for (int i : {1, 2}) n.tensors[i].ne[0] = 48;
     },
     "no Hadamard"},
    {"solve_tri", [](OwnedNode & n) { n.tensors[1].ne[0] = n.tensors[1].ne[1] = 4; }, "SOLVE_TRI"},
    // Assertions.
    {"rms_norm in place", [](OwnedNode & n) { set_param(n, 0, -1); }, "epsilon is -1"},
    {"norm", [](OwnedNode & n) { set_param(n, 0, std::nanf("")); }, "epsilon is nan"},
    {"arange", [](OwnedNode & n) { set_param(n, 2, 0); }, "steps"},
    {"arange", [](OwnedNode & n) { set_param(n, 1, 11); }, "dst has shape"},
    {"neg", [](OwnedNode & n) { n.node().op_params[0] = GGML_UNARY_OP_COUNT; }, "no unary op"},
    {"swiglu split", [](OwnedNode & n) { n.node().op_params[0] = -1; }, "no GLU op"},
    {"swiglu_clamp split", [](OwnedNode & n) { set_param(n, 3, -7); }, "its limit is -7"},
    {"argsort", [](OwnedNode & n) { n.node().op_params[0] = 2; }, "no order 2"},
    {"tri", [](OwnedNode & n) { n.node().op_params[0] = 9; }, "no triangle 9"},
    {"soft_max_back", [](OwnedNode & n) { set_param(n, 1, 1); }, "a bias of 1"},
    {"dsv4_hc_comb", [](OwnedNode & n) { n.node().op_params[1] = 0; }, "0 rounds"},
    {"diag_mask_inf", [](OwnedNode & n) { n.node().op_params[0] = -1; }, "masks after -1"},
    {"mul_mat F32", [](OwnedNode & n) { n.tensors[1].type = GGML_TYPE_Q8_K, make_contiguous(n.tensors[1]); },
     "src0 has type q8_K"},
    {"mul_mat F32", [](OwnedNode & n) { n.node().nb[3] = 4; }, "permuted"},
    {"mul_mat keys by queries", [](OwnedNode & n) { n.tensors[1].ne[2] = 3; }, "does not repeat"},
};

TEST(OpCheck, RefusesHostileNodes) {
    for (const Hostile & each : kHostile) {
        OwnedNode node = make_node(recipe(each.recipe));
        ASSERT_EQ(check_op(node.node()), absl::OkStatus());
        each.change(node);
        const absl::Status status = check_op(node.node());
        EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << each.recipe << ": " << node.text();
        EXPECT_THAT(std::string(status.message()), HasSubstr(each.refusal)) << node.text();
    }
}

TEST(OpCheck, RepackedWeightsMustBeWhatWasPacked) {
    int mark = 0;
    OwnedNode node = make_node(recipe("mul_mat Q4_0"));
    node.tensors[1].extra = &mark;
    EXPECT_EQ(check_op(node.node()), absl::OkStatus());
    node.tensors[2].nb[1] = sizeof(float);
    EXPECT_THAT(refusal(node), HasSubstr("rows of src1 overlap"));
    node = make_node(recipe("mul_mat Q4_0"));
    node.tensors[1].extra = &mark;
    node.tensors[1].nb[1] = 0;
    EXPECT_THAT(refusal(node), HasSubstr("src0 is not contiguous"));
}

TEST(OpCheck, AResultMustNotLieOverItsIndices) {
    std::array<int32_t, 256> memory{};
    for (const std::string_view name : {"get_rows F32", "set_rows F32", "mul_mat_id F32", "add_id", "ssm_scan Mamba",
                                        "argsort", "top_k", "get_rows_back"}) {
        OwnedNode node = make_node(recipe(name));
        const auto rules = index_rules(node.node());
        const ggml_tensor * index = rules.empty() ? node.node().src[0] : rules[0].index;
        node.node().data = memory.data();
        const_cast<ggml_tensor *>(index)->data = memory.data() + 2;
        EXPECT_THAT(refusal(node), HasSubstr("dst overlaps src")) << name;
        const_cast<ggml_tensor *>(index)->data = reinterpret_cast<char *>(memory.data()) + ggml_nbytes(&node.node());
        EXPECT_EQ(check_op(node.node()), absl::OkStatus()) << name;
    }
}

TEST(OpCheck, WhatIsCopiedMustNotLieHalfOverItsCopy) {
    std::array<float, 4096> memory{};
    for (const std::string_view name :
         {"concat 2", "cpy to another shape", "cont of permuted heads", "scale", "rms_norm"}) {
        OwnedNode node = make_node(recipe(name));
        auto & source = const_cast<ggml_tensor &>(*node.node().src[0]);
        node.node().data = memory.data();
        source.data = memory.data() + 2;
        EXPECT_THAT(refusal(node), HasSubstr("dst overlaps src0")) << name;
        source.data = reinterpret_cast<char *>(memory.data()) + ggml_nbytes(&node.node());
        EXPECT_EQ(check_op(node.node()), absl::OkStatus()) << name;
    }
    OwnedNode in_place = make_node(recipe("scale in place"));
    in_place.node().data = const_cast<ggml_tensor *>(in_place.node().src[0])->data = memory.data();
    EXPECT_EQ(check_op(in_place.node()), absl::OkStatus());
}

// The values of the index that a recipe's node has, and what check_indices says to them.
template <typename T>
absl::Status check_values(std::string_view name, std::vector<T> values, bool repacked = false) {
    OwnedNode node = make_node(recipe(name));
    if (repacked) node.node().src[0]->extra = &node;
    const auto rules = index_rules(node.node());
    EXPECT_EQ(rules.size(), 1U);
    EXPECT_EQ(ggml_nelements(rules[0].index), static_cast<int64_t>(values.size())) << name;
    const_cast<ggml_tensor *>(rules[0].index)->data = values.data();
    return check_indices(rules[0]);
}

TEST(OpCheck, IndicesMustBeInRange) {
    using I32 = std::vector<int32_t>;
    EXPECT_EQ(check_values("get_rows F32", I32{0, 6, 3}), absl::OkStatus());
    EXPECT_EQ(check_values("get_rows F32", I32{0, 7, 3}).message(), "index 7 at 1 of row 0 is not in 0 ... 6");
    EXPECT_FALSE(check_values("get_rows F32", I32{0, 6, -1}).ok());
    EXPECT_FALSE(check_values("get_rows_back", I32{0, 1, 7}).ok());
    EXPECT_EQ(check_values("set_rows F32", std::vector<int64_t>{9, 0, 9}), absl::OkStatus());
    EXPECT_FALSE(check_values("set_rows F32", std::vector<int64_t>{9, 0, int64_t{1} << 32}).ok());
    EXPECT_FALSE(check_values("ssm_scan Mamba", I32{0, 3}).ok());
    EXPECT_FALSE(check_values("add_id", I32{0, 1, 2, 3, 0, 1, 2, 3, 0, 4}).ok());
    EXPECT_TRUE(index_rules(make_node(recipe("add")).node()).empty());
}

TEST(OpCheck, RepackedExpertsAreTakenOncePerToken) {
    const std::vector<int32_t> twice = {0, 1, 2, 3, 3, 3, 2, 1, 0, 1};
    EXPECT_EQ(check_values("mul_mat_id Q4_0", twice), absl::OkStatus());
    EXPECT_EQ(check_values("mul_mat_id Q4_0", twice, true).message(), "index 3 twice in row 2");
}

TEST(OpCheck, WhatIsSortedIsNumbers) {
    std::vector<float> values(200, 1.0F);
    EXPECT_EQ(check_values("argsort", values), absl::OkStatus());
    values[77] = std::nanf("");
    EXPECT_EQ(check_values("argsort", values).message(), "no number at 37 of row 1");
}

// ---- nodes that are run, in processes that may crash

struct Progress {
    uint64_t current;
    uint64_t possible;
    uint64_t accepted;
    uint64_t ran;
    char description[4096];
};

// Calls `run` with the numbers from `first` to `last` in child processes, and goes on after the one that ended a child.
// Returns what was under way then, with how it ended.
template <typename Run>
std::vector<std::string> run_in_children(uint64_t first, uint64_t last, Progress & progress, const Run & run) {
    constexpr uint64_t kPerChild = 2000;
    constexpr unsigned kMostSeconds = 20;
    std::vector<std::string> crashes;
    for (uint64_t next = first; next < last;) {
        const uint64_t end = std::min(next + kPerChild, last);
        const pid_t child = fork();
        if (child == 0) {
            setenv("GGML_NO_BACKTRACE", "1", 1);
            NodeRunner runner;
            for (uint64_t number = next; number < end; ++number) {
                progress.current = number;
                alarm(kMostSeconds);
                run(runner, number, progress);
            }
            _exit(0);
        }
        int status = 0;
        EXPECT_EQ(waitpid(child, &status, 0), child);
        next = end;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
        const std::string how = WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit";
        crashes.push_back(fmt::format("{} at {}: {}", how, progress.current, progress.description));
        next = progress.current + 1;
    }
    return crashes;
}

struct SharedProgress {
    SharedProgress()
        : progress(static_cast<Progress *>(
              mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
    ~SharedProgress() { munmap(progress, sizeof(Progress)); }
    Progress * progress;
};

std::vector<uint8_t> bytes_of(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<uint8_t> out(160);
    for (uint8_t & byte : out) byte = static_cast<uint8_t>(random());
    return out;
}

void describe(const std::string & text, Progress & progress) {
    progress.description[text.copy(progress.description, sizeof progress.description - 1)] = '\0';
}

void note_result(const NodeRunner::Result & result, Progress & progress) {
    progress.possible += result.possible ? 1 : 0;
    progress.accepted += result.accepted ? 1 : 0;
    progress.ran += result.ran ? 1 : 0;
}

void run_seed(NodeRunner & runner, uint64_t seed, Progress & progress) {
    runner.on_description = [&](const std::string & text) { describe(text, progress); };
    note_result(runner.run(bytes_of(seed)), progress);
}

// Every recipe as it is, on one and on two threads, with and without repacked weights.
void run_recipe(NodeRunner & runner, uint64_t number, Progress & progress) {
    const NodeRecipe & each = node_recipes()[number / 4];
    const bool repack = number % 2 == 1;
    const int threads = 1 + static_cast<int>(number / 2 % 2);
    describe(each.name, progress);
    if (repack && !each.repackable) return;
    const NodeRunner::Result result = runner.run(make_node(each), repack, threads, number);
    note_result(result, progress);
    if (!result.accepted) {
        std::fprintf(stderr, "%s: %s\n", each.name.c_str(), result.refusal.c_str());
        _exit(1);
    }
}

// ggml's assert()s, which a debug build has, look at values: any NaN ends the process.
#ifdef NDEBUG
constexpr bool kNodesCanRun = true;
#else
constexpr bool kNodesCanRun = false;
#endif

TEST(OpCheck, WhatTheConstructorsMakeIsAcceptedAndRuns) {
    if (!kNodesCanRun) GTEST_SKIP() << "a debug build";
    const SharedProgress shared;
    const auto crashes = run_in_children(0, node_recipes().size() * 4, *shared.progress, run_recipe);
    for (const std::string & crash : crashes) ADD_FAILURE() << crash;
    EXPECT_GE(shared.progress->ran, node_recipes().size() * 2);
}

// STRATA_OP_CHECK_SECONDS: for how long; STRATA_OP_CHECK_SEED: from where on (or which one, with 0 seconds).
TEST(OpCheck, MutatedNodesThatAreAcceptedDoNotCrash) {
    if (!kNodesCanRun) GTEST_SKIP() << "a debug build";
    const auto number_of = [](const char * name, uint64_t otherwise) {
        const char * text = std::getenv(name);
        return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
    };
    const std::chrono::seconds seconds(number_of("STRATA_OP_CHECK_SECONDS", 3));
    uint64_t seed = number_of("STRATA_OP_CHECK_SEED", 1);
    const SharedProgress shared;
    const auto until = std::chrono::steady_clock::now() + seconds;
    const uint64_t count = seconds.count() == 0 ? 1 : 500;
    do {
        for (const std::string & crash : run_in_children(seed, seed + count, *shared.progress, run_seed)) {
            ADD_FAILURE() << crash;
        }
        seed += count;
    } while (std::chrono::steady_clock::now() < until);
    std::printf("up to seed %llu: %llu possible, %llu accepted, %llu ran\n", static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(shared.progress->possible),
                static_cast<unsigned long long>(shared.progress->accepted),
                static_cast<unsigned long long>(shared.progress->ran));
}

} // namespace
} // namespace strata::executor
