#include "executor/op_check_nodes.h"

#include <cstring>
#include <initializer_list>
#include <vector>

namespace strata::executor {

namespace {

using C = ggml_context;
using T = ggml_tensor;

T * tensor(C * c, ggml_type type, std::initializer_list<int64_t> ne) {
    return ggml_new_tensor(c, type, static_cast<int>(ne.size()), ne.begin());
}
T * f32(C * c, std::initializer_list<int64_t> ne) {
    return tensor(c, GGML_TYPE_F32, ne);
}
T * f16(C * c, std::initializer_list<int64_t> ne) {
    return tensor(c, GGML_TYPE_F16, ne);
}
T * i32(C * c, std::initializer_list<int64_t> ne) {
    return tensor(c, GGML_TYPE_I32, ne);
}

// A third of the columns of a fused projection, as heads.
T * heads_view(C * c, int64_t width, int64_t heads, int64_t tokens) {
    T * fused = f32(c, {width * heads * 3, tokens});
    return ggml_view_3d(c, fused, width, heads, tokens, width * sizeof(float), fused->nb[1],
                        width * heads * sizeof(float));
}

template <ggml_type W, ggml_type X, int64_t M, int64_t N>
T * mul_mat(C * c) {
    return ggml_mul_mat(c, tensor(c, W, {256, M}), tensor(c, X, {256, N}));
}

// As recurrent models do with a batch of sequences.
template <ggml_type W, int64_t Tokens>
T * mul_mat_planes(C * c) {
    return ggml_mul_mat(c, tensor(c, W, {256, 16}), f32(c, {256, Tokens, 3}));
}

template <ggml_type W, int64_t M, int64_t N>
T * mul_mat_id(C * c) {
    return ggml_mul_mat_id(c, tensor(c, W, {256, M, 4}), f32(c, {256, 2, N}), i32(c, {2, N}));
}

template <ggml_type K, ggml_type V, int64_t Queries, int64_t Keys, bool Masked>
T * attention(C * c) {
    // Heads and positions are swapped by views of the caches, queries are permuted.
    T * q = ggml_permute(c, f32(c, {64, 4, Queries}), 0, 2, 1, 3);
    T * k = ggml_permute(c, tensor(c, K, {64, 2, Keys}), 0, 2, 1, 3);
    T * v = ggml_permute(c, tensor(c, V, {64, 2, Keys}), 0, 2, 1, 3);
    T * node = ggml_flash_attn_ext(c, q, k, v, Masked ? f16(c, {Keys, Queries}) : nullptr, 0.125F, 0.0F, 0.0F);
    if (Masked) ggml_flash_attn_ext_add_sinks(node, f32(c, {4}));
    return node;
}

template <ggml_type To>
T * set_rows(C * c) {
    return ggml_set_rows(c, tensor(c, To, {64, 10}), f32(c, {64, 3}), tensor(c, GGML_TYPE_I64, {3}));
}

template <ggml_type From>
T * get_rows(C * c) {
    return ggml_get_rows(c, tensor(c, From, {256, 7}), i32(c, {3}));
}

template <ggml_type From, ggml_type To>
T * cast(C * c) {
    return ggml_cast(c, tensor(c, From, {256, 3, 2}), To);
}

template <ggml_type To>
T * copy_permuted(C * c) {
    return ggml_cpy(c, ggml_permute(c, f32(c, {8, 4, 3}), 0, 2, 1, 3), tensor(c, To, {8, 12}));
}

template <ggml_unary_op Op>
T * unary(C * c) {
    return ggml_unary(c, f32(c, {33, 3, 2}), Op);
}

template <int Mode>
T * rope(C * c) {
    return ggml_rope_ext(c, heads_view(c, 16, 2, 5), i32(c, {5}), f32(c, {8}), 16, Mode, 4096, 10000, 1, 0, 1, 32, 1);
}

template <int Mode>
T * rope_multi(C * c) {
    int sections[4] = {3, 3, 2, 0};
    const int turned = Mode == GGML_ROPE_TYPE_VISION ? 8 : 16;
    return ggml_rope_multi(c, f32(c, {16, 2, 5}), i32(c, {20}), nullptr, turned, sections, Mode, 4096, 10000, 1, 0, 1,
                           32, 1);
}

template <ggml_glu_op Op>
T * glu_split(C * c) {
    T * fused = f32(c, {48, 5});
    T * node = ggml_glu_split(c, ggml_view_2d(c, fused, 24, 5, fused->nb[1], 0),
                              ggml_view_2d(c, fused, 24, 5, fused->nb[1], 24 * sizeof(float)), Op);
    const float limit = 7.0F;
    std::memcpy(&node->op_params[3], &limit, sizeof limit);
    return node;
}

template <ggml_type A, ggml_type B>
T * add(C * c) {
    return ggml_add(c, tensor(c, A, {12, 6, 2}), tensor(c, B, {12, 1, 2}));
}

T * parameter(T * t) {
    ggml_set_param(t);
    return t;
}

const std::vector<NodeRecipe> kRecipes = {
    {"dup of a transposed view", [](C * c) { return ggml_dup(c, ggml_transpose(c, f32(c, {6, 9}))); }},
    {"cont of permuted heads", [](C * c) { return ggml_cont(c, ggml_permute(c, f32(c, {8, 4, 3}), 0, 2, 1, 3)); }},
    {"cont of a window of a quantised row",
     [](C * c) {
         T * t = tensor(c, GGML_TYPE_Q8_0, {64, 5});
         return ggml_cont(c, ggml_view_2d(c, t, 32, 5, t->nb[1], 34));
     }},
    {"cont_2d of a view", [](C * c) { return ggml_cont_2d(c, ggml_permute(c, f32(c, {8, 4, 3}), 0, 2, 1, 3), 24, 4); }},
    {"cpy to another shape", copy_permuted<GGML_TYPE_F32>},
    {"cpy to F16", copy_permuted<GGML_TYPE_F16>},
    {"cpy into a transposed cache",
     [](C * c) {
         T * cache = f16(c, {32, 6});
         T * view = ggml_view_2d(c, cache, 3, 6, cache->nb[1], 8);
         return ggml_cpy(c, ggml_transpose(c, f32(c, {6, 3})), view);
     }},
    {"cpy of a recurrent state",
     [](C * c) {
         T * states = f32(c, {40, 4});
         return ggml_cpy(c, ggml_view_1d(c, f32(c, {100}), 40, 16), ggml_view_1d(c, states, 40, 320));
     }},
    {"cpy F32 to Q4_0",
     [](C * c) { return ggml_cpy(c, f32(c, {64, 3}), ggml_view_1d(c, tensor(c, GGML_TYPE_Q4_0, {64, 8}), 192, 72)); }},
    {"cast F32 to F16", cast<GGML_TYPE_F32, GGML_TYPE_F16>},
    {"cast BF16 to F16", cast<GGML_TYPE_BF16, GGML_TYPE_F16>},
    {"cast I32 to F32", cast<GGML_TYPE_I32, GGML_TYPE_F32>},
    {"cast F32 to I32", cast<GGML_TYPE_F32, GGML_TYPE_I32>},
    {"cast F16 to Q8_0", cast<GGML_TYPE_F16, GGML_TYPE_Q8_0>},
    {"cast F32 to IQ4_NL", cast<GGML_TYPE_F32, GGML_TYPE_IQ4_NL>},
    {"cast Q8_0 to F32", cast<GGML_TYPE_Q8_0, GGML_TYPE_F32>},
    {"cpy Q8_0 to F32",
     [](C * c) { return ggml_cpy(c, tensor(c, GGML_TYPE_Q8_0, {64, 3}), f32(c, {64, 3})); }},
    {"cast Q4_K to F32", cast<GGML_TYPE_Q4_K, GGML_TYPE_F32>},
    {"set", [](C * c) { return ggml_set_2d(c, f32(c, {10, 6}), f32(c, {3, 2}), 40, 88); }},
    {"set in place", [](C * c) { return ggml_set_1d_inplace(c, i32(c, {10}), i32(c, {3}), 8); }},
    {"acc", [](C * c) { return ggml_acc(c, f32(c, {10, 6}), f32(c, {3, 2}), 40, 240, 240, 88); }},
    {"repeat", [](C * c) { return ggml_repeat_4d(c, f32(c, {5, 1, 2}), 10, 3, 2, 2); }},
    {"repeat F16", [](C * c) { return ggml_repeat_4d(c, f16(c, {5, 1, 2}), 10, 3, 2, 2); }},
    {"repeat_back", [](C * c) { return ggml_repeat_back(c, f32(c, {10, 3, 2}), f32(c, {5, 1, 2})); }},
    {"concat 0",
     [](C * c) { return ggml_concat(c, f32(c, {3, 4, 2}), ggml_transpose(c, f32(c, {4, 5, 2})), 0); }},
    {"concat 2", [](C * c) { return ggml_concat(c, f16(c, {3, 4, 2}), f16(c, {3, 4, 5}), 2); }},
    {"concat I8",
     [](C * c) {
         return ggml_concat(c, tensor(c, GGML_TYPE_I8, {3, 4}), tensor(c, GGML_TYPE_I8, {3, 1}), 1);
     }},
    {"concat with nothing", [](C * c) { return ggml_concat(c, f32(c, {0, 4, 2}), f32(c, {3, 4, 2}), 0); }},
    {"concat Q8_0",
     [](C * c) { return ggml_concat(c, tensor(c, GGML_TYPE_Q8_0, {32, 4}), tensor(c, GGML_TYPE_Q8_0, {64, 4}), 0); }},
    {"pad", [](C * c) { return ggml_pad(c, ggml_transpose(c, f32(c, {5, 4, 2})), 3, 2, 1, 0); }},
    {"pad in a circle", [](C * c) { return ggml_pad_ext_circular(c, f32(c, {5, 4, 2}), 2, 1, 0, 3, 1, 1, 0, 0); }},
    {"fill", [](C * c) { return ggml_fill(c, f32(c, {5, 4}), 1.5F); }},
    {"arange", [](C * c) { return ggml_arange(c, 0, 10, 1.5F); }},
    {"abs", unary<GGML_UNARY_OP_ABS>},
    {"neg", unary<GGML_UNARY_OP_NEG>},
    {"tanh", unary<GGML_UNARY_OP_TANH>},
    {"relu", unary<GGML_UNARY_OP_RELU>},
    {"sigmoid", unary<GGML_UNARY_OP_SIGMOID>},
    {"gelu", unary<GGML_UNARY_OP_GELU>},
    {"gelu_erf", unary<GGML_UNARY_OP_GELU_ERF>},
    {"gelu_quick F16", [](C * c) { return ggml_gelu_quick(c, f16(c, {33, 3})); }},
    {"silu", unary<GGML_UNARY_OP_SILU>},
    {"silu of a window", [](C * c) { return ggml_silu(c, heads_view(c, 8, 2, 5)); }},
    {"exp", unary<GGML_UNARY_OP_EXP>},
    {"softplus", unary<GGML_UNARY_OP_SOFTPLUS>},
    {"round", unary<GGML_UNARY_OP_ROUND>},
    {"xielu", [](C * c) { return ggml_xielu(c, f32(c, {33, 3}), 0.5F, 0.5F, 0.1F, 1e-3F); }},
    {"sqr", [](C * c) { return ggml_sqr(c, f32(c, {33, 3})); }},
    {"sqrt BF16", [](C * c) { return ggml_sqrt(c, tensor(c, GGML_TYPE_BF16, {33, 3})); }},
    {"log", [](C * c) { return ggml_log(c, f32(c, {33, 3})); }},
    {"sin", [](C * c) { return ggml_sin(c, f32(c, {33, 3})); }},
    {"cos", [](C * c) { return ggml_cos(c, f32(c, {33, 3})); }},
    {"leaky_relu", [](C * c) { return ggml_leaky_relu(c, f32(c, {33, 3}), 0.1F, false); }},
    {"clamp", [](C * c) { return ggml_clamp(c, f32(c, {33, 3}), -1, 1); }},
    {"scale", [](C * c) { return ggml_scale(c, f32(c, {33, 3}), 2); }},
    {"scale with a bias", [](C * c) { return ggml_scale_bias(c, f32(c, {33, 3, 2}), 2, 1); }},
    {"scale in place", [](C * c) { return ggml_scale_inplace(c, f32(c, {33, 3}), 2); }},
    {"swiglu of halves", [](C * c) { return ggml_swiglu(c, f32(c, {48, 5})); }},
    {"geglu of halves F16", [](C * c) { return ggml_geglu_swapped(c, f16(c, {48, 5, 2})); }},
    {"swiglu split", glu_split<GGML_GLU_OP_SWIGLU>},
    {"reglu split", glu_split<GGML_GLU_OP_REGLU>},
    {"geglu_erf split", glu_split<GGML_GLU_OP_GEGLU_ERF>},
    {"geglu_quick split", glu_split<GGML_GLU_OP_GEGLU_QUICK>},
    {"swiglu_oai", [](C * c) { return ggml_swiglu_oai(c, f32(c, {24, 5}), f32(c, {24, 5}), 1.7F, 7.0F); }},
    {"swiglu_clamp split", glu_split<GGML_GLU_OP_SWIGLU_CLAMP>},
    {"silu_back", [](C * c) { return ggml_silu_back(c, f32(c, {33, 3}), f32(c, {33, 3})); }},
    {"add", add<GGML_TYPE_F32, GGML_TYPE_F32>},
    {"add F16 and F32", add<GGML_TYPE_F16, GGML_TYPE_F32>},
    {"add BF16", add<GGML_TYPE_BF16, GGML_TYPE_BF16>},
    {"add of a transposed view", [](C * c) { return ggml_add(c, f32(c, {4, 6}), ggml_transpose(c, f32(c, {6, 4}))); }},
    {"add in place", [](C * c) { return ggml_add_inplace(c, f32(c, {33, 3}), f32(c, {33})); }},
    {"add_cast", [](C * c) { return ggml_add_cast(c, f16(c, {33, 3}), f32(c, {33, 3}), GGML_TYPE_F32); }},
    {"sub", [](C * c) { return ggml_sub(c, f32(c, {33, 3}), f32(c, {1, 3})); }},
    {"mul by a norm's weight", [](C * c) { return ggml_mul(c, f32(c, {64, 3, 2}), f32(c, {64})); }},
    {"mul of a window", [](C * c) { return ggml_mul(c, heads_view(c, 8, 2, 5), f32(c, {8, 2})); }},
    {"div", [](C * c) { return ggml_div(c, f32(c, {33, 3}), f32(c, {1, 3})); }},
    {"add1", [](C * c) { return ggml_add1(c, f32(c, {33, 3}), f32(c, {1})); }},
    {"add_id", [](C * c) { return ggml_add_id(c, f32(c, {12, 2, 5}), f32(c, {12, 4}), i32(c, {2, 5})); }},
    {"tri", [](C * c) { return ggml_tri(c, f32(c, {8, 8, 3}), GGML_TRI_TYPE_LOWER_DIAG); }},
    {"diag", [](C * c) { return ggml_diag(c, f32(c, {8, 1, 3})); }},
    {"diag_mask_inf", [](C * c) { return ggml_diag_mask_inf(c, f32(c, {8, 4, 3}), 4); }},
    {"diag_mask_zero in place", [](C * c) { return ggml_diag_mask_zero_inplace(c, f32(c, {8, 4, 3}), 4); }},
    {"sum", [](C * c) { return ggml_sum(c, f32(c, {33, 3})); }},
    {"sum_rows", [](C * c) { return ggml_sum_rows(c, heads_view(c, 8, 2, 5)); }},
    {"mean", [](C * c) { return ggml_mean(c, f32(c, {33, 3, 2})); }},
    {"cumsum", [](C * c) { return ggml_cumsum(c, f32(c, {33, 3, 2})); }},
    {"argmax", [](C * c) { return ggml_argmax(c, f32(c, {33, 6})); }},
    {"count_equal", [](C * c) { return ggml_count_equal(c, i32(c, {33}), i32(c, {33})); }},
    {"norm", [](C * c) { return ggml_norm(c, f32(c, {33, 3, 2}), 1e-5F); }},
    {"norm of a window", [](C * c) { return ggml_norm(c, heads_view(c, 8, 2, 5), 1e-5F); }},
    {"rms_norm", [](C * c) { return ggml_rms_norm(c, heads_view(c, 8, 2, 5), 1e-5F); }},
    {"rms_norm in place", [](C * c) { return ggml_rms_norm_inplace(c, f32(c, {33, 3}), 1e-5F); }},
    {"rms_norm_back", [](C * c) { return ggml_rms_norm_back(c, f32(c, {33, 3}), f32(c, {33, 3}), 1e-5F); }},
    {"l2_norm", [](C * c) { return ggml_l2_norm(c, heads_view(c, 8, 2, 5), 1e-5F); }},
    {"group_norm", [](C * c) { return ggml_group_norm(c, f32(c, {5, 3, 8}), 3, 1e-5F); }},
    {"soft_max", [](C * c) { return ggml_soft_max(c, f32(c, {33, 3, 4})); }},
    {"soft_max_ext",
     [](C * c) {
         T * node = ggml_soft_max_ext(c, f32(c, {32, 3, 4, 2}), f16(c, {32, 3, 1, 2}), 0.1F, 8.0F);
         ggml_soft_max_add_sinks(node, f32(c, {4}));
         return node;
     }},
    {"soft_max_ext F32", [](C * c) { return ggml_soft_max_ext(c, f32(c, {32, 3, 4}), f32(c, {32, 8}), 0.1F, 0.0F); }},
    {"soft_max_back", [](C * c) { return ggml_soft_max_ext_back(c, f32(c, {33, 3}), f32(c, {33, 3}), 0.1F, 0.0F); }},
    {"argsort", [](C * c) { return ggml_argsort(c, f32(c, {40, 5}), GGML_SORT_ORDER_DESC); }},
    {"top_k", [](C * c) { return ggml_top_k(c, f32(c, {40, 5}), 8); }},
    {"get_rows F32", get_rows<GGML_TYPE_F32>},
    {"get_rows F16", get_rows<GGML_TYPE_F16>},
    {"get_rows BF16", get_rows<GGML_TYPE_BF16>},
    {"get_rows I32", get_rows<GGML_TYPE_I32>},
    {"get_rows Q4_0", get_rows<GGML_TYPE_Q4_0>},
    {"get_rows Q6_K", get_rows<GGML_TYPE_Q6_K>},
    {"get_rows IQ3_S", get_rows<GGML_TYPE_IQ3_S>},
    {"get_rows IQ1_M", get_rows<GGML_TYPE_IQ1_M>},
    {"get_rows MXFP4", get_rows<GGML_TYPE_MXFP4>},
    {"get_rows of weights of experts",
     [](C * c) { return ggml_get_rows(c, ggml_reshape_3d(c, f32(c, {8, 5}), 1, 8, 5), i32(c, {2, 5})); }},
    {"get_rows_back", [](C * c) { return ggml_get_rows_back(c, f32(c, {12, 3}), i32(c, {3}), f32(c, {12, 7})); }},
    {"set_rows F32", set_rows<GGML_TYPE_F32>},
    {"set_rows F16", set_rows<GGML_TYPE_F16>},
    {"set_rows Q8_0", set_rows<GGML_TYPE_Q8_0>},
    {"set_rows Q4_1", set_rows<GGML_TYPE_Q4_1>},
    {"set_rows F16 to F16",
     [](C * c) { return ggml_set_rows(c, f16(c, {64, 10}), f16(c, {64, 3}), tensor(c, GGML_TYPE_I64, {3})); }},
    {"set_rows of single elements",
     [](C * c) { return ggml_set_rows(c, f16(c, {1, 640}), f32(c, {1, 192}), tensor(c, GGML_TYPE_I64, {192})); }},
    {"set_rows with streams",
     [](C * c) { return ggml_set_rows(c, f32(c, {8, 10, 4, 2}), f32(c, {8, 3, 4, 2}), i32(c, {3, 2, 1})); }},
    {"mul_mat F32", mul_mat<GGML_TYPE_F32, GGML_TYPE_F32, 17, 5>, true},
    {"mul_mat F32 by a vector", mul_mat<GGML_TYPE_F32, GGML_TYPE_F32, 17, 1>},
    {"mul_mat F16", mul_mat<GGML_TYPE_F16, GGML_TYPE_F32, 17, 5>},
    {"mul_mat F16 by F16", mul_mat<GGML_TYPE_F16, GGML_TYPE_F16, 17, 5>},
    {"mul_mat BF16", mul_mat<GGML_TYPE_BF16, GGML_TYPE_F32, 17, 5>},
    {"mul_mat Q4_0", mul_mat<GGML_TYPE_Q4_0, GGML_TYPE_F32, 24, 9>, true},
    {"mul_mat Q4_0 by a vector", mul_mat<GGML_TYPE_Q4_0, GGML_TYPE_F32, 24, 1>, true},
    {"mul_mat Q8_0", mul_mat<GGML_TYPE_Q8_0, GGML_TYPE_F32, 16, 5>, true},
    {"mul_mat Q2_K", mul_mat<GGML_TYPE_Q2_K, GGML_TYPE_F32, 16, 5>, true},
    {"mul_mat Q4_K", mul_mat<GGML_TYPE_Q4_K, GGML_TYPE_F32, 16, 6>, true},
    {"mul_mat Q5_K", mul_mat<GGML_TYPE_Q5_K, GGML_TYPE_F32, 16, 5>, true},
    {"mul_mat Q6_K", mul_mat<GGML_TYPE_Q6_K, GGML_TYPE_F32, 16, 5>, true},
    {"mul_mat Q4_K by sequences", mul_mat_planes<GGML_TYPE_Q4_K, 5>, true},
    {"mul_mat Q2_K by sequences", mul_mat_planes<GGML_TYPE_Q2_K, 7>, true},
    {"mul_mat Q4_0 by sequences", mul_mat_planes<GGML_TYPE_Q4_0, 5>, true},
    {"mul_mat MXFP4 by sequences", mul_mat_planes<GGML_TYPE_MXFP4, 9>, true},
    {"mul_mat IQ4_NL", mul_mat<GGML_TYPE_IQ4_NL, GGML_TYPE_F32, 16, 5>, true},
    {"mul_mat MXFP4", mul_mat<GGML_TYPE_MXFP4, GGML_TYPE_F32, 16, 5>, true},
    {"mul_mat IQ2_XS", mul_mat<GGML_TYPE_IQ2_XS, GGML_TYPE_F32, 16, 40>},
    {"mul_mat IQ3_XXS", mul_mat<GGML_TYPE_IQ3_XXS, GGML_TYPE_F32, 16, 5>},
    {"mul_mat IQ1_S", mul_mat<GGML_TYPE_IQ1_S, GGML_TYPE_F32, 16, 33>},
    {"mul_mat TQ1_0", mul_mat<GGML_TYPE_TQ1_0, GGML_TYPE_F32, 16, 5>},
    {"mul_mat NVFP4", mul_mat<GGML_TYPE_NVFP4, GGML_TYPE_F32, 16, 5>},
    {"mul_mat Q1_0", mul_mat<GGML_TYPE_Q1_0, GGML_TYPE_F32, 16, 5>},
    {"mul_mat keys by queries",
     [](C * c) {
         T * k = ggml_permute(c, f16(c, {32, 2, 20}), 0, 2, 1, 3);
         return ggml_mul_mat(c, k, ggml_permute(c, f32(c, {32, 4, 3}), 0, 2, 1, 3));
     }},
    {"mul_mat by a Hadamard matrix",
     [](C * c) {
         T * node = ggml_mul_mat(c, f32(c, {64, 64}), f32(c, {64, 3, 2}));
         ggml_mul_mat_set_hint(node, GGML_HINT_SRC0_IS_HADAMARD);
         return node;
     }},
    {"mul_mat_id F32", mul_mat_id<GGML_TYPE_F32, 12, 5>},
    {"mul_mat_id F16", mul_mat_id<GGML_TYPE_F16, 12, 5>},
    {"mul_mat_id Q4_0", mul_mat_id<GGML_TYPE_Q4_0, 16, 5>, true},
    {"mul_mat_id Q4_K", mul_mat_id<GGML_TYPE_Q4_K, 16, 5>, true},
    {"mul_mat_id Q8_0", mul_mat_id<GGML_TYPE_Q8_0, 16, 5>, true},
    {"mul_mat_id IQ2_XXS", mul_mat_id<GGML_TYPE_IQ2_XXS, 16, 80>},
    {"mul_mat_id with one row for all experts",
     [](C * c) {
         return ggml_mul_mat_id(c, tensor(c, GGML_TYPE_MXFP4, {64, 16, 4}), f32(c, {64, 1, 5}), i32(c, {2, 5}));
     },
     true},
    {"mul_mat_id with ids of an argsort",
     [](C * c) {
         T * ids = i32(c, {8, 5});
         return ggml_mul_mat_id(c, tensor(c, GGML_TYPE_IQ4_NL, {64, 16, 8}), f32(c, {64, 1, 5}),
                                ggml_view_2d(c, ids, 3, 5, ids->nb[1], 0));
     },
     true},
    {"out_prod", [](C * c) { return ggml_out_prod(c, f32(c, {40, 35}), ggml_transpose(c, f32(c, {35, 7}))); }},
    {"out_prod with heads", [](C * c) { return ggml_out_prod(c, f32(c, {16, 5, 2}), f32(c, {7, 5, 4})); }},
    {"out_prod F16", [](C * c) { return ggml_out_prod(c, f16(c, {40, 5}), f32(c, {7, 5})); }},
    {"out_prod Q4_0", [](C * c) { return ggml_out_prod(c, tensor(c, GGML_TYPE_Q4_0, {64, 5}), f32(c, {7, 5})); }},
    {"solve_tri", [](C * c) { return ggml_solve_tri(c, f32(c, {8, 8, 3}), f32(c, {5, 8, 3}), true, true, false); }},
    {"rope", rope<GGML_ROPE_TYPE_NORMAL>},
    {"rope NeoX", rope<GGML_ROPE_TYPE_NEOX>},
    {"rope F16", [](C * c) { return ggml_rope(c, f16(c, {16, 2, 5}), i32(c, {5}), 16, GGML_ROPE_TYPE_NEOX); }},
    {"rope of some channels",
     [](C * c) {
         return ggml_rope(c, f32(c, {16, 2, 5}), i32(c, {5}), 8, GGML_ROPE_TYPE_NEOX);
     }},
    {"rope of the last channels",
     [](C * c) {
         T * node = ggml_rope(c, f32(c, {16, 2, 5}), i32(c, {5}), 8, GGML_ROPE_TYPE_NORMAL);
         ggml_rope_set_offset(node, 8);
         return node;
     }},
    {"rope in place", [](C * c) { return ggml_rope_inplace(c, f32(c, {16, 2, 5}), i32(c, {5}), 16, 0); }},
    {"rope_multi", rope_multi<GGML_ROPE_TYPE_MROPE>},
    {"rope_multi interleaved", rope_multi<GGML_ROPE_TYPE_IMROPE>},
    {"rope_multi vision", rope_multi<GGML_ROPE_TYPE_VISION>},
    {"rope_back",
     [](C * c) {
         return ggml_rope_ext_back(c, f32(c, {16, 2, 5}), i32(c, {5}), nullptr, 16, 0, 0, 1e4F, 1, 0, 1, 32, 1);
     }},
    {"flash_attn_ext F16", attention<GGML_TYPE_F16, GGML_TYPE_F16, 5, 40, true>},
    {"flash_attn_ext F16 in tiles", attention<GGML_TYPE_F16, GGML_TYPE_F16, 70, 80, true>},
    {"flash_attn_ext F32 in tiles", attention<GGML_TYPE_F32, GGML_TYPE_F32, 64, 30, false>},
    {"flash_attn_ext F16 over many keys", attention<GGML_TYPE_F16, GGML_TYPE_F16, 1, 520, true>},
    {"flash_attn_ext Q8_0", attention<GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, 5, 40, true>},
    {"flash_attn_ext Q4_0 and F16", attention<GGML_TYPE_Q4_0, GGML_TYPE_F16, 5, 40, true>},
    {"flash_attn_ext BF16", attention<GGML_TYPE_BF16, GGML_TYPE_BF16, 5, 40, false>},
    {"lightning_indexer",
     [](C * c) {
         return ggml_lightning_indexer(c, f32(c, {32, 4, 5, 2}), f16(c, {32, 1, 11, 2}), f32(c, {4, 5, 1, 2}),
                                       f16(c, {11, 5, 1, 1}));
     }},
    {"ssm_conv", [](C * c) { return ggml_ssm_conv(c, f32(c, {8, 12, 2}), f32(c, {4, 12})); }},
    {"ssm_scan Mamba",
     [](C * c) {
         return ggml_ssm_scan(c, f32(c, {16, 1, 6, 3}), f32(c, {1, 6, 5, 2}), f32(c, {6, 5, 2}), f32(c, {16, 6}),
                              f32(c, {16, 1, 5, 2}), f32(c, {16, 1, 5, 2}), i32(c, {2}), 1);
     }},
    {"ssm_scan Mamba 2",
     [](C * c) {
         return ggml_ssm_scan(c, f32(c, {80, 4, 6, 3}), f32(c, {4, 6, 5, 2}), f32(c, {6, 5, 2}), f32(c, {1, 6}),
                              f32(c, {80, 2, 5, 2}), f32(c, {80, 2, 5, 2}), i32(c, {2}), 3);
     }},
    {"rwkv_wkv6",
     [](C * c) {
         const auto x = [c] { return f32(c, {24, 2, 4}); };
         return ggml_rwkv_wkv6(c, x(), x(), x(), f32(c, {24, 2}), x(), f32(c, {24L * 24 * 2, 2}));
     }},
    {"rwkv_wkv7",
     [](C * c) {
         const auto x = [c] { return f32(c, {64, 2, 4}); };
         return ggml_rwkv_wkv7(c, x(), x(), x(), x(), x(), x(), f32(c, {64L * 64 * 2, 2}));
     }},
    {"gated_linear_attn",
     [](C * c) {
         const auto x = [c] { return f32(c, {24, 2, 4}); };
         return ggml_gated_linear_attn(c, x(), x(), x(), x(), f32(c, {24L * 24 * 2, 2}), 0.5F);
     }},
    {"gated_delta_net",
     [](C * c) {
         return ggml_gated_delta_net(c, f32(c, {20, 2, 5, 2}), f32(c, {20, 2, 5, 2}), f32(c, {20, 4, 5, 2}),
                                     f32(c, {1, 4, 5, 2}), f32(c, {1, 4, 5, 2}), f32(c, {20, 20, 4, 2}), 1);
     }},
    {"gated_delta_net with snapshots",
     [](C * c) {
         return ggml_gated_delta_net(c, f32(c, {20, 2, 5, 1}), f32(c, {20, 2, 5, 1}), f32(c, {20, 4, 5, 2}),
                                     f32(c, {20, 4, 5, 2}), f32(c, {1, 4, 5, 2}), f32(c, {20, 20, 4, 2}), 3);
     }},
    {"dsv4_hc_comb", [](C * c) { return ggml_dsv4_hc_comb(c, f32(c, {24, 5}), f32(c, {3}), f32(c, {24}), 1e-5F, 3); }},
    {"dsv4_hc_pre", [](C * c) { return ggml_dsv4_hc_pre(c, f32(c, {12, 4, 5}), f32(c, {4, 5})); }},
    {"dsv4_hc_pre_gated",
     [](C * c) {
         return ggml_dsv4_hc_pre_gated(c, f32(c, {12, 4, 5}), f32(c, {12, 4, 5}), 0.5F);
     }},
    {"dsv4_hc_post",
     [](C * c) {
         return ggml_dsv4_hc_post(c, f32(c, {12, 5}), f32(c, {12, 4, 5}), f32(c, {4, 5}), f32(c, {4, 4, 5}));
     }},
    {"dsv4_hc_post without comb",
     [](C * c) { return ggml_dsv4_hc_post(c, f32(c, {12, 5}), f32(c, {12, 4, 5}), f32(c, {4, 5}), nullptr); }},
    {"im2col 1d",
     [](C * c) {
         return ggml_im2col(c, f16(c, {3, 5, 7}), f32(c, {11, 5, 2}), 1, 0, 1, 0, 1, 0, false, GGML_TYPE_F16);
     }},
    {"im2col 2d",
     [](C * c) {
         return ggml_im2col(c, f32(c, {3, 3, 2, 4}), f32(c, {9, 8, 2, 2}), 2, 1, 1, 1, 1, 2, true, GGML_TYPE_F32);
     }},
    {"pool_2d", [](C * c) { return ggml_pool_2d(c, f32(c, {9, 8, 2, 2}), GGML_OP_POOL_AVG, 2, 2, 2, 2, 0, 0); }},
    {"pool_2d F16", [](C * c) { return ggml_pool_2d(c, f16(c, {9, 8, 2}), GGML_OP_POOL_MAX, 3, 3, 1, 1, 1, 1); }},
    {"cross_entropy_loss", [](C * c) { return ggml_cross_entropy_loss(c, f32(c, {33, 5}), f32(c, {33, 5})); }},
    {"cross_entropy_loss_back",
     [](C * c) { return ggml_cross_entropy_loss_back(c, f32(c, {1}), f32(c, {33, 5}), f32(c, {33, 5})); }},
    {"opt_step_adamw",
     [](C * c) {
         T * weight = parameter(f32(c, {33, 5}));
         return ggml_opt_step_adamw(c, weight, f32(c, {33, 5}), f32(c, {33, 5}), f32(c, {33, 5}), f32(c, {7}));
     }},
    {"opt_step_sgd",
     [](C * c) {
         return ggml_opt_step_sgd(c, parameter(f32(c, {33, 5})), f32(c, {33, 5}), f32(c, {2}));
     }},
};

} // namespace

std::span<const NodeRecipe> node_recipes() {
    return kRecipes;
}

} // namespace strata::executor
