#include "executor/op_check.h"

#include "executor/op_checker.h"

#include <absl/container/flat_hash_set.h>
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <climits>
#include <cmath>

// Read beside ggml/src/ggml-cpu: ops.cpp, ggml-cpu.c, binary-ops.cpp, unary-ops.cpp, iqp.cpp, repack.cpp. A rule is
// what the kernel asserts, what it takes for granted, and what ggml_graph_plan computes scratch sizes from; and
// otherwise what the constructor in ggml.c promises. Kernels take for granted above all:
// - that a tensor that its shape says to be contiguous has the stride nb[1] between its rows (Checker::even_rows),
// - that result and sources have the types of the one combination that the dispatch on src0's type has in mind.
// Sources that overlap the result make wrong numbers only, except where an index or an order is read (OpRule::index),
// and where memory is copied (copies_memory).

namespace strata::executor {

namespace {

constexpr std::initializer_list<ggml_type> kHalfAndFloat = {GGML_TYPE_F32, GGML_TYPE_F16};
constexpr std::initializer_list<ggml_type> kFloats = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16};

bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

// ---- copies

// dup_bytes: any strides for plain types, blocks only where they are copied by whole rows.
void same_type_copy(Checker & c) {
    const ggml_tensor & source = c.at(0);
    const ggml_tensor & result = c.at(kDst);
    const bool both_contiguous = ggml_is_contiguous(&source) && ggml_is_contiguous(&result);
    const int64_t blocks = ggml_nelements(&source) / ggml_blck_size(source.type);
    c.that(!both_contiguous || blocks < INT_MAX - (1 << 16), "{} blocks in one piece", blocks);
    if (ggml_is_quantized(source.type) && !both_contiguous) c.same_shape(0, kDst);
}

// dup_to_q: a row of src0 as floats lies in scratch memory that is planned for rows of dst.
void quantising_copy(Checker & c) {
    c.packed({0}).contiguous({kDst}).that(has_from_float(c.type(kDst)), "no copy from {} to {}",
                                          ggml_type_name(c.type(0)), ggml_type_name(c.type(kDst)));
    c.that(c.ne(0, 0) % ggml_blck_size(c.type(kDst)) == 0, "rows of {} elements are no whole blocks of {}", c.ne(0, 0),
           ggml_type_name(c.type(kDst)));
    c.that(c.ne(0, 0) <= c.ne(kDst, 0), "rows of {} elements go to shorter rows of {}", c.ne(0, 0), c.ne(kDst, 0));
}

// dup_from_q: writes block by block with src1's layout, counts elements in 32 bits.
void dequantising_copy(Checker & c) {
    const int64_t block = ggml_blck_size(c.type(0));
    if (!c.that(c.has(1), "src1 is missing").status().ok()) return;
    c.same_layout(1, kDst).packed({kDst}).that(has_to_float(c.type(0)), "no copy from {}", ggml_type_name(c.type(0)));
    c.that(c.ne(kDst, 0) % block == 0 || ggml_is_contiguous(&c.at(kDst)), "blocks of src0 are split over rows of dst");
    c.that(ggml_nelements(&c.at(0)) <= INT_MAX, "{} elements", ggml_nelements(&c.at(0)));
}

void same_elements(Checker & c) {
    c.that(ggml_nelements(&c.at(0)) == ggml_nelements(&c.at(kDst)), "src0 has shape {}, dst {}", shape_text(c.at(0)),
           shape_text(c.at(kDst)));
}

void check_cont(Checker & c) {
    same_elements(c);
    c.same_type(0, kDst);
    same_type_copy(c);
}

void check_cpy(Checker & c) {
    const ggml_type from = c.type(0);
    const ggml_type to = c.type(kDst);
    same_elements(c);
    if (from == to) return same_type_copy(c);
    if (is_float(from) && is_float(to)) return;
    if ((from == GGML_TYPE_F32 && to == GGML_TYPE_I32) || (from == GGML_TYPE_I32 && to == GGML_TYPE_F32)) return;
    if (is_float(from) && ggml_is_quantized(to)) return quantising_copy(c);
    if (ggml_is_quantized(from) && to == GGML_TYPE_F32) return dequantising_copy(c);
    c.that(false, "no copy from {} to {}", ggml_type_name(from), ggml_type_name(to));
}

// SET and ACC: write src1 into a view of dst that the parameters describe.
void write_view(Checker & c) {
    c.same_shape(0, kDst).same_type(0, kDst).same_type(1, kDst).contiguous({0, kDst}).packed({1});
    int64_t end = 0;
    for (int param = 0; param < 4; ++param) c.that(c.i32(param) >= 0, "parameter {} is {}", param, c.i32(param));
    if (!c.status().ok()) return;
    for (int dim = 1; dim < GGML_MAX_DIMS; ++dim) end += (c.ne(1, dim) - 1) * c.i32(dim - 1);
    end += c.i32(3) + c.ne(1, 0) * static_cast<int64_t>(ggml_type_size(c.type(1)));
    const auto bytes = static_cast<int64_t>(ggml_nbytes(&c.at(kDst)));
    c.that(end <= bytes, "src1 would end at byte {} of dst's {}", end, bytes);
}

void check_set(Checker & c) {
    c.types(0, {GGML_TYPE_F32, GGML_TYPE_I32});
    write_view(c);
}

void check_acc(Checker & c) {
    c.f32s({0});
    write_view(c);
}

void check_repeat(Checker & c) {
    c.types(0, {GGML_TYPE_F32, GGML_TYPE_I32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_I16});
    c.same_type(0, kDst).repeats(0, kDst).packed({0, kDst});
}

void check_repeat_back(Checker & c) {
    c.f32s({0, kDst}).repeats(kDst, 0).packed({0, kDst});
}

constexpr std::initializer_list<ggml_type> kConcatTypes = {GGML_TYPE_F32,  GGML_TYPE_I32, GGML_TYPE_F16,
                                                           GGML_TYPE_BF16, GGML_TYPE_I16, GGML_TYPE_I8};

void check_concat(Checker & c) {
    const int32_t dim = c.i32(0);
    // Other types are copied by whole rows.
    const bool by_element = std::find(kConcatTypes.begin(), kConcatTypes.end(), c.type(0)) != kConcatTypes.end();
    if (!by_element) c.packed({0, 1, kDst});
    c.same_type(1, 0).same_type(kDst, 0).that(dim >= 0 && dim < GGML_MAX_DIMS, "along dimension {}", dim);
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        const bool fits = i == dim ? c.ne(kDst, i) == c.ne(0, i) + c.ne(1, i)
                                   : c.ne(0, i) == c.ne(1, i) && c.ne(0, i) == c.ne(kDst, i);
        c.that(fits, "{} and {} do not make {} along dimension {}", shape_text(c.at(0)), shape_text(c.at(1)),
               shape_text(c.at(kDst)), dim);
    }
}

void check_pad(Checker & c) {
    const bool circular = c.i32(8) != 0;
    c.f32s({0, kDst}).contiguous({kDst});
    for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
        const int64_t left = c.i32(2 * dim);
        const int64_t right = c.i32(2 * dim + 1);
        c.that(left >= 0 && right >= 0, "pads by {} and {}", left, right);
        c.that(c.ne(kDst, dim) == c.ne(0, dim) + left + right, "{} padded by {} and {} is not {}", c.ne(0, dim), left,
               right, c.ne(kDst, dim));
        // The index wraps around once.
        c.that(!circular || (left <= c.ne(0, dim) && right <= c.ne(0, dim)), "pads {} by {} and {} in a circle",
               c.ne(0, dim), left, right);
    }
}

void check_fill(Checker & c) {
    c.types(0, kHalfAndFloat).same_type(0, kDst).same_shape(0, kDst).packed({kDst});
}

void check_arange(Checker & c) {
    const float steps = std::ceil((c.f32(1) - c.f32(0)) / c.f32(2));
    c.f32s({kDst}).contiguous({kDst});
    c.that(steps >= 0 && steps < static_cast<float>(INT_MAX), "{} steps", steps);
    if (c.status().ok()) c.shape(kDst, {static_cast<int64_t>(steps), 1, 1, 1});
}

// ---- element by element

void same_floats(Checker & c) {
    c.types(0, kHalfAndFloat).same_type(0, kDst).same_shape(0, kDst);
}

void simple_unary(Checker & c) {
    const bool widens = c.type(kDst) == GGML_TYPE_F32;
    c.types(0, kFloats)
        .that(widens || c.type(0) == c.type(kDst), "from {} to {}", ggml_type_name(c.type(0)),
              ggml_type_name(c.type(kDst)));
    c.same_shape(0, kDst).packed({0, kDst});
}

void check_unary(Checker & c) {
    switch (c.i32(0)) {
    case GGML_UNARY_OP_GELU:
    case GGML_UNARY_OP_GELU_ERF:
    case GGML_UNARY_OP_GELU_QUICK:
    case GGML_UNARY_OP_SILU:
        same_floats(c);
        c.packed({0, kDst});
        return;
    case GGML_UNARY_OP_XIELU:
        simple_unary(c);
        c.that(ggml_is_contiguous_1(&c.at(0)) && ggml_is_contiguous_1(&c.at(kDst)), "its rows are not evenly apart");
        return;
    default:
        c.that(c.i32(0) >= 0 && c.i32(0) < GGML_UNARY_OP_COUNT, "there is no unary op {}", c.i32(0));
        simple_unary(c);
    }
}

void check_glu(Checker & c) {
    const int32_t op = c.i32(0);
    c.that(op >= 0 && op < GGML_GLU_OP_COUNT, "there is no GLU op {}", op);
    c.types(0, kHalfAndFloat).same_type(0, kDst).packed({0, kDst}).even_rows({0, kDst});
    if (op == GGML_GLU_OP_SWIGLU_OAI) c.f32s({0});
    // std::clamp between -limit and limit.
    if (op == GGML_GLU_OP_SWIGLU_OAI || op == GGML_GLU_OP_SWIGLU_CLAMP)
        c.that(c.f32(3) >= 0, "its limit is {}", c.f32(3));
    if (c.has(1)) {
        c.same_type(1, 0).same_shape(1, 0).same_shape(0, kDst).packed({1}).even_rows({1});
    } else {
        c.that(c.ne(0, 0) / 2 == c.ne(kDst, 0), "dst has {} columns, src0 {}", c.ne(kDst, 0), c.ne(0, 0));
        c.shape(kDst, {c.ne(kDst, 0), c.ne(0, 1), c.ne(0, 2), c.ne(0, 3)});
    }
}

// ADD, SUB, MUL, DIV; not ADD to quantised tensors, which no graph of llama.cpp does.
void check_binary(Checker & c) {
    c.types(0, kFloats).repeats(1, 0).same_shape(0, kDst).packed({0, kDst});
    c.that(c.type(1) == c.type(0) || c.type(1) == GGML_TYPE_F32, "{} and {}", ggml_type_name(c.type(0)),
           ggml_type_name(c.type(1)));
    const bool widens = c.type(1) == GGML_TYPE_F32 && c.type(kDst) == GGML_TYPE_F32;
    c.that(widens || c.type(kDst) == c.type(0), "{} and {} do not make {}", ggml_type_name(c.type(0)),
           ggml_type_name(c.type(1)), ggml_type_name(c.type(kDst)));
}

void check_add1(Checker & c) {
    c.f32s({0, 1, kDst}).shape(1, {1, 1, 1, 1}).same_shape(0, kDst).packed({0, kDst});
}

void check_add_id(Checker & c) {
    c.f32s({0, 1, kDst}).types(2, {GGML_TYPE_I32}).same_shape(0, kDst).packed({0, 1, kDst});
    c.shape(1, {c.ne(0, 0), c.ne(1, 1), 1, 1}).shape(2, {c.ne(0, 1), c.ne(0, 2), 1, 1});
}

void check_scale(Checker & c) {
    c.f32s({0, kDst}).same_shape(0, kDst).contiguous({0, kDst}).packed({0, kDst}).even_rows({0, kDst});
}

void check_clamp(Checker & c) {
    same_floats(c);
    c.packed({0, kDst}).even_rows({0, kDst});
}

void check_silu_back(Checker & c) {
    same_floats(c);
    c.same_type(1, 0).same_shape(1, 0).packed({0, 1, kDst}).even_rows({0, 1, kDst});
}

void check_tri(Checker & c) {
    const int32_t kind = c.i32(0);
    c.f32s({0, kDst}).same_shape(0, kDst).contiguous({0}).packed({0, kDst});
    c.that(kind >= GGML_TRI_TYPE_UPPER_DIAG && kind <= GGML_TRI_TYPE_LOWER, "there is no triangle {}", kind);
}

void check_diag(Checker & c) {
    c.f32s({0, kDst}).packed({0, kDst}).shape(0, {c.ne(0, 0), 1, c.ne(0, 2), c.ne(0, 3)});
    c.shape(kDst, {c.ne(0, 0), c.ne(0, 0), c.ne(0, 2), c.ne(0, 3)});
}

void check_diag_mask(Checker & c) {
    const int32_t past = c.i32(0);
    c.f32s({0, kDst}).same_shape(0, kDst).contiguous({0, kDst}).packed({0, kDst}).even_rows({0, kDst});
    c.that(past >= 0 && past < INT_MAX / 2, "masks after {}", past);
    // nb[2] leads from any plane to the next one.
    c.that(c.ne(0, 3) == 1 || c.nb(kDst, 2) == c.nb(kDst, 1) * c.ne(0, 1), "the planes of dst are not evenly apart");
}

// ---- along rows

void check_sum(Checker & c) {
    c.types(0, kFloats).same_type(0, kDst).packed({0}).shape(kDst, {1, 1, 1, 1});
}

void check_sum_rows(Checker & c) {
    c.f32s({0, kDst}).packed({0, kDst}).shape(kDst, {1, c.ne(0, 1), c.ne(0, 2), c.ne(0, 3)});
}

void same_f32(Checker & c) {
    c.f32s({0, kDst}).same_shape(0, kDst);
}

void check_cumsum(Checker & c) {
    same_f32(c);
    c.packed({0, kDst});
}

void check_argmax(Checker & c) {
    c.f32s({0}).types(kDst, {GGML_TYPE_I32}).packed({0, kDst});
    c.shape(0, {c.ne(0, 0), c.ne(0, 1), 1, 1}).shape(kDst, {c.ne(0, 1), 1, 1, 1});
}

// More than two dimensions are walked wrongly.
void check_count_equal(Checker & c) {
    c.types(0, {GGML_TYPE_I32}).same_type(1, 0).same_shape(1, 0).shape(0, {c.ne(0, 0), c.ne(0, 1), 1, 1});
    c.types(kDst, {GGML_TYPE_I64}).shape(kDst, {1, 1, 1, 1});
}

// NORM and L2_NORM, which take any strides.
void check_norm(Checker & c) {
    same_f32(c);
    c.that(c.f32(0) >= 0, "its epsilon is {}", c.f32(0));
}

void check_rms_norm(Checker & c) {
    check_norm(c);
    c.packed({0, kDst});
}

void check_rms_norm_back(Checker & c) {
    same_f32(c);
    c.f32s({1}).same_shape(1, 0).packed({0, 1, kDst});
}

void check_group_norm(Checker & c) {
    same_f32(c);
    c.packed({0, kDst}).that(c.i32(0) >= 1 && c.i32(0) <= c.ne(0, 2), "{} groups of {} channels", c.i32(0), c.ne(0, 2));
}

void check_soft_max(Checker & c) {
    same_f32(c);
    c.packed({0, kDst}).contiguous({kDst});
    if (c.has(1)) {
        c.types(1, kHalfAndFloat)
            .packed({1})
            .that(c.ne(1, 0) == c.ne(0, 0) && c.ne(1, 1) >= c.ne(0, 1), "a mask of shape {} for {}",
                  shape_text(c.at(1)), shape_text(c.at(0)));
    }
    if (c.has(2)) c.f32s({2}).packed({2}).shape(2, {c.ne(0, 2), 1, 1, 1});
}

void check_soft_max_back(Checker & c) {
    same_f32(c);
    c.f32s({1}).same_shape(1, 0).contiguous({0, 1, kDst}).packed({0, 1, kDst}).even_rows({0, 1, kDst});
    c.that(c.f32(1) == 0, "a bias of {}", c.f32(1));
}

// A row that is shorter than its neighbours are apart is read over, whatever the result's row is.
void check_argsort(Checker & c) {
    c.f32s({0}).types(kDst, {GGML_TYPE_I32}).same_shape(0, kDst).packed({0, kDst}).even_rows({0, kDst});
    c.that(c.i32(0) == GGML_SORT_ORDER_ASC || c.i32(0) == GGML_SORT_ORDER_DESC, "there is no order {}", c.i32(0));
}

void check_top_k(Checker & c) {
    c.f32s({0}).types(kDst, {GGML_TYPE_I32}).packed({0, kDst}).even_rows({0, kDst}).apart_from_dst(0);
    c.that(c.ne(kDst, 0) <= c.ne(0, 0), "the first {} of {}", c.ne(kDst, 0), c.ne(0, 0));
    c.shape(kDst, {c.ne(kDst, 0), c.ne(0, 1), c.ne(0, 2), c.ne(0, 3)});
}

// ---- rows by index

void check_get_rows(Checker & c) {
    const bool integers = c.type(0) == GGML_TYPE_I32;
    c.that(integers || has_to_float(c.type(0)), "of {}", ggml_type_name(c.type(0)));
    c.types(kDst, {integers ? GGML_TYPE_I32 : GGML_TYPE_F32}).types(1, {GGML_TYPE_I32}).packed({0, kDst});
    c.shape(1, {c.ne(1, 0), c.ne(0, 2), c.ne(0, 3), 1}).shape(kDst, {c.ne(0, 0), c.ne(1, 0), c.ne(1, 1), c.ne(1, 2)});
}

void check_get_rows_back(Checker & c) {
    c.types(0, kHalfAndFloat).types(1, {GGML_TYPE_I32}).f32s({kDst}).packed({0, 1, kDst}).contiguous({1, kDst});
    c.shape(0, {c.ne(0, 0), c.ne(1, 0), 1, 1}).shape(1, {c.ne(1, 0), 1, 1, 1});
    c.shape(kDst, {c.ne(0, 0), c.ne(kDst, 1), 1, 1}).even_rows({kDst});
}

// From F16 to another type rows go through scratch memory that is planned for one thread, though all take part.
void check_set_rows(Checker & c) {
    const bool halves = c.type(0) == GGML_TYPE_F16 && c.type(kDst) == GGML_TYPE_F16;
    c.that(halves || (c.type(0) == GGML_TYPE_F32 && has_from_float(c.type(kDst))), "of {} in {}",
           ggml_type_name(c.type(0)), ggml_type_name(c.type(kDst)));
    c.types(1, {GGML_TYPE_I64, GGML_TYPE_I32}).packed({0, kDst});
    c.shape(0, {c.ne(kDst, 0), c.ne(0, 1), c.ne(kDst, 2), c.ne(kDst, 3)});
    c.shape(1, {c.ne(0, 1), c.ne(1, 1), c.ne(1, 2), 1});
    c.that(c.ne(0, 2) % c.ne(1, 1) == 0 && c.ne(0, 3) % c.ne(1, 2) == 0, "src1 of shape {} does not repeat to fill {}",
           shape_text(c.at(1)), shape_text(c.at(0)));
    if (c.has(2)) c.same_layout(2, kDst);
}

// ---- products

// Weights that ggml has repacked (`extra`): interleaved by rows, and rows of src1 are taken four at a time.
void repacked_weights(Checker & c) {
    const ggml_tensor & weights = c.at(0);
    if (weights.extra == nullptr) return;
    c.contiguous({0}).f32s({1}).that(c.ne(0, 3) == 1 && c.ne(1, 3) == 1, "four dimensions of repacked weights");
    c.that(c.nb(0, 1) == ggml_row_size(weights.type, weights.ne[0]) && c.nb(0, 2) == c.nb(0, 1) * weights.ne[1],
           "repacked weights with other strides than they were packed with");
    c.that(c.nb(1, 1) >= c.ne(1, 0) * sizeof(float), "rows of src1 overlap");
}

void mul_mat_types(Checker & c) {
    const ggml_type weights = c.type(0);
    const ggml_type input = c.type(1);
    c.that(has_vec_dot(weights), "src0 has type {}", ggml_type_name(weights));
    const bool halves = input == weights && (input == GGML_TYPE_F16 || input == GGML_TYPE_BF16);
    const bool hadamard = c.at(kDst).op == GGML_OP_MUL_MAT && c.i32(1) == GGML_HINT_SRC0_IS_HADAMARD;
    c.that(input == GGML_TYPE_F32 || halves || (hadamard && input == GGML_TYPE_F16), "src0 has type {}, src1 {}",
           ggml_type_name(weights), ggml_type_name(input));
    c.f32s({kDst}).packed({0, 1, kDst}).rising_strides(kDst);
    c.that(c.ne(0, 0) == c.ne(1, 0), "src0 has {} columns, src1 {}", c.ne(0, 0), c.ne(1, 0));
}

// The Walsh-Hadamard transform that takes the place of a product with such a matrix.
void hadamard_product(Checker & c) {
    const int64_t n = c.ne(1, 0);
    c.that((n & (n - 1)) == 0 && c.ne(0, 1) == n && c.type(0) == GGML_TYPE_F32, "{} x {} {} is no Hadamard matrix",
           c.ne(0, 0), c.ne(0, 1), ggml_type_name(c.type(0)));
}

constexpr int64_t kMaxPlanes = 1 << 16;

void check_mul_mat(Checker & c) {
    mul_mat_types(c);
    repacked_weights(c);
    c.shape(kDst, {c.ne(0, 1), c.ne(1, 1), c.ne(1, 2), c.ne(1, 3)});
    c.that(c.ne(1, 2) % c.ne(0, 2) == 0 && c.ne(1, 3) % c.ne(0, 3) == 0, "src0 of shape {} does not repeat to fill {}",
           shape_text(c.at(0)), shape_text(c.at(1)));
    if (c.at(0).extra != nullptr) {
        // The pieces of all planes are counted in int.
        c.that(c.ne(0, 2) == 1 && c.ne(1, 2) <= kMaxPlanes, "repacked weights of shape {} for {}", shape_text(c.at(0)),
               shape_text(c.at(1)));
    }
    if (c.i32(1) == GGML_HINT_SRC0_IS_HADAMARD) hadamard_product(c);
}

// Scratch memory is planned for one entry per expert, expert used and token, and one cache line per expert, counted in
// int.
constexpr int64_t kMaxExperts = 1 << 16;
constexpr int64_t kMaxRoutes = int64_t{1} << 28;

void check_mul_mat_id(Checker & c) {
    mul_mat_types(c);
    repacked_weights(c);
    c.f32s({1}).types(2, {GGML_TYPE_I32});
    c.shape(0, {c.ne(0, 0), c.ne(0, 1), c.ne(0, 2), 1}).shape(1, {c.ne(1, 0), c.ne(1, 1), c.ne(1, 2), 1});
    c.shape(2, {c.ne(2, 0), c.ne(1, 2), 1, 1}).shape(kDst, {c.ne(0, 1), c.ne(2, 0), c.ne(1, 2), 1});
    c.that(c.ne(2, 0) % c.ne(1, 1) == 0, "{} experts for {} rows of src1", c.ne(2, 0), c.ne(1, 1));
    const int64_t routes = product({c.ne(0, 2), c.ne(2, 0), c.ne(2, 1)});
    c.that(c.ne(0, 2) <= kMaxExperts && routes <= kMaxRoutes, "{} experts, {} of them for {} tokens", c.ne(0, 2),
           c.ne(2, 0), c.ne(2, 1));
}

void check_out_prod(Checker & c) {
    const bool plain = c.type(0) == GGML_TYPE_F32;
    c.that(plain || c.type(0) == GGML_TYPE_F16 || (ggml_is_quantized(c.type(0)) && has_to_float(c.type(0))), "of {}",
           ggml_type_name(c.type(0)));
    c.f32s({1, kDst}).packed({0, kDst}).contiguous({kDst});
    c.that(c.ne(0, 1) == c.ne(1, 1), "src0 has {} rows, src1 {}", c.ne(0, 1), c.ne(1, 1));
    c.shape(kDst, {c.ne(0, 0), c.ne(1, 0), c.ne(1, 2), c.ne(1, 3)});
    const bool repeats = c.ne(1, 2) % c.ne(0, 2) == 0 && c.ne(1, 3) % c.ne(0, 3) == 0;
    const bool equal = c.ne(1, 2) == c.ne(0, 2) && c.ne(1, 3) == c.ne(0, 3);
    c.that(plain ? repeats : equal, "src0 of shape {} does not repeat to fill {}", shape_text(c.at(0)),
           shape_text(c.at(1)));
}

void check_solve_tri(Checker & c) {
    c.f32s({0, 1, kDst}).packed({0, 1, kDst}).contiguous({0, 1, kDst}).same_shape(1, kDst);
    c.shape(0, {c.ne(1, 1), c.ne(1, 1), c.ne(1, 2), c.ne(1, 3)});
}

// ---- attention

void rope_sections(Checker & c) {
    int64_t sum = 0;
    for (int param = 11; param < 15; ++param) {
        c.that(c.i32(param) >= 0, "a section of {}", c.i32(param));
        sum += c.i32(param);
    }
    c.that(c.i32(11) > 0 || c.i32(12) > 0 || c.i32(13) > 0, "no sections");
    c.that(sum <= c.ne(0, 0), "sections of {} in rows of {}", sum, c.ne(0, 0));
}

void check_rope(Checker & c) {
    const int64_t n_dims = c.i32(1);
    const int32_t mode = c.i32(2);
    const int64_t first = c.i32(15);
    const int64_t row = c.ne(0, 0);
    same_floats(c);
    c.packed({0, kDst}).types(1, {GGML_TYPE_I32}).packed({1});
    c.that(mode == GGML_ROPE_TYPE_NORMAL || mode == GGML_ROPE_TYPE_NEOX || mode == GGML_ROPE_TYPE_MROPE ||
               mode == GGML_ROPE_TYPE_IMROPE || mode == GGML_ROPE_TYPE_VISION,
           "there is no mode {}", mode);
    // The kernel skips n_dims channels from the first on; it would do so forever with none.
    c.that(n_dims >= 2 && n_dims % 2 == 0 && first >= 0 && first % 2 == 0 && first + n_dims <= row && row % 2 == 0,
           "turns {} channels from {} on in rows of {}", n_dims, first, row);
    const bool sections = (mode & GGML_ROPE_TYPE_MROPE) != 0;
    c.shape(1, {c.ne(0, 2) * (sections ? 4 : 1), 1, 1, 1});
    if (sections) rope_sections(c);
    if (mode == GGML_ROPE_TYPE_VISION) c.that(n_dims == row / 2 && first == 0, "turns {} of {} channels", n_dims, row);
    // Angles are computed for the whole row, also for channels that are not turned.
    if (c.has(2)) {
        c.f32s({2}).packed({2}).that(c.ne(2, 0) >= row / 2, "{} frequency factors for rows of {}", c.ne(2, 0), row);
    }
}

void check_flash_attn_ext(Checker & c) {
    // Tiles of 64 rows are counted in int.
    constexpr int64_t kMaxHead = 1 << 14;
    c.f32s({0, kDst}).packed({0, 1, 2}).that(has_vec_dot(c.type(1)), "keys of type {}", ggml_type_name(c.type(1)));
    c.that(has_to_float(c.type(2)), "values of type {}", ggml_type_name(c.type(2)));
    c.that(c.i32(3) == GGML_PREC_UNDEFINED || c.i32(3) == GGML_PREC_F32, "there is no precision {}", c.i32(3));
    c.that(c.ne(0, 0) == c.ne(1, 0), "queries of {}, keys of {} elements", c.ne(0, 0), c.ne(1, 0));
    c.that(c.ne(1, 0) <= kMaxHead && c.ne(2, 0) <= kMaxHead, "heads of {} and {} elements", c.ne(1, 0), c.ne(2, 0));
    c.that(c.ne(1, 1) == c.ne(2, 1), "{} keys, {} values", c.ne(1, 1), c.ne(2, 1));
    for (int dim : {2, 3}) {
        c.that(c.ne(0, dim) % c.ne(1, dim) == 0 && c.ne(0, dim) % c.ne(2, dim) == 0, "queries {}, keys {}, values {}",
               shape_text(c.at(0)), shape_text(c.at(1)), shape_text(c.at(2)));
    }
    // Rows of dst are copied with the length nb[1], to places that are computed without the higher strides.
    c.shape(kDst, {c.ne(2, 0), c.ne(0, 2), c.ne(0, 1), c.ne(0, 3)})
        .packed({kDst})
        .contiguous({kDst})
        .rising_strides(kDst);
    c.that(c.nb(kDst, 1) == c.ne(kDst, 0) * sizeof(float), "rows of dst are {} bytes apart", c.nb(kDst, 1));
    if (c.has(3)) {
        c.types(3, {GGML_TYPE_F16})
            .packed({3})
            .that(c.ne(3, 0) >= c.ne(1, 1) && c.ne(3, 1) >= c.ne(0, 1), "a mask of shape {} for {} keys and {} queries",
                  shape_text(c.at(3)), c.ne(1, 1), c.ne(0, 1));
    }
    if (c.has(4)) c.f32s({4}).packed({4}).shape(4, {c.ne(0, 2), 1, 1, 1});
}

void check_lightning_indexer(Checker & c) {
    const int64_t heads = c.ne(0, 1);
    const int64_t tokens = c.ne(0, 2);
    const int64_t streams = c.ne(0, 3);
    const int64_t keys = c.ne(1, 2);
    c.f32s({0, 2, kDst}).types(3, {GGML_TYPE_F16}).packed({0, 1, 2, 3, kDst});
    c.that(has_to_float(c.type(1)), "keys of type {}", ggml_type_name(c.type(1)));
    c.shape(1, {c.ne(0, 0), 1, keys, streams}).shape(2, {heads, tokens, 1, streams});
    c.shape(3, {keys, tokens, 1, c.ne(3, 3)}).shape(kDst, {keys, tokens, 1, streams});
}

// ---- recurrent models

void check_ssm_conv(Checker & c) {
    const int64_t width = c.ne(1, 0);
    const int64_t channels = c.ne(1, 1);
    const int64_t tokens = c.ne(0, 0) - width + 1;
    c.f32s({0, 1, kDst}).packed({0, 1, kDst}).shape(1, {width, channels, 1, 1});
    c.that(tokens >= 1, "a window of {} over {}", width, c.ne(0, 0));
    c.shape(0, {c.ne(0, 0), channels, c.ne(0, 2), 1}).shape(kDst, {channels, tokens, c.ne(0, 2), 1});
    c.that(c.nb(0, 1) == c.ne(0, 0) * sizeof(float) && c.nb(1, 1) == width * sizeof(float),
           "rows are not side by side");
    c.that(product({c.ne(0, 0), channels}) < INT_MAX, "{} channels of {}", channels, c.ne(0, 0));
}

void check_ssm_scan(Checker & c) {
    const int64_t state = c.ne(0, 0);
    const int64_t width = c.ne(0, 1);
    const int64_t heads = c.ne(1, 1);
    const int64_t groups = c.ne(4, 1);
    const int64_t tokens = c.ne(1, 2);
    const int64_t sequences = c.ne(1, 3);
    const int64_t snapshots = c.i32(0);
    c.f32s({0, 1, 2, 3, 4, 5, kDst}).types(6, {GGML_TYPE_I32}).packed({0, 1, 2, 3, 4, 5, 6, kDst}).contiguous({kDst});
    c.shape(0, {state, width, heads, c.ne(0, 3)}).shape(1, {width, heads, tokens, sequences});
    c.shape(2, {heads, tokens, sequences, 1}).shape(4, {state, groups, tokens, sequences}).same_shape(4, 5);
    c.shape(6, {sequences, 1, 1, 1}).that(heads % groups == 0, "{} heads in {} groups", heads, groups);
    c.shape(3, {c.ne(3, 0), heads, 1, 1}).that(c.ne(3, 0) == state || c.ne(3, 0) == 1, "{} factors", c.ne(3, 0));
    c.that(snapshots >= 1 && (snapshots == 1 || c.ne(3, 0) == 1), "{} snapshots", snapshots);
    // Within a head and a group elements are found by their number; the strides of src0 are those of the result too.
    const auto row_bytes = [](int64_t elements) { return static_cast<size_t>(elements) * sizeof(float); };
    c.that(c.nb(0, 1) == row_bytes(state) && c.nb(0, 2) == c.nb(0, 1) * width && c.nb(0, 3) == c.nb(0, 2) * heads &&
               c.nb(1, 1) == row_bytes(width) && c.nb(3, 1) == row_bytes(c.ne(3, 0)) &&
               c.nb(4, 1) == row_bytes(state) && c.nb(5, 1) == row_bytes(state),
           "rows are not side by side");
    c.that(product({state, width, heads}) < INT_MAX, "a state of {} x {} x {}", state, width, heads);
    const int64_t states = product({snapshots, state, width, heads, sequences});
    c.that(states < INT64_MAX / 2 && ggml_nelements(&c.at(kDst)) == ggml_nelements(&c.at(1)) + states,
           "dst has {} elements", ggml_nelements(&c.at(kDst)));
}

// RWKV_WKV6, RWKV_WKV7 and GATED_LINEAR_ATTN: [channels of a head, heads, tokens] and a state of a square per head and
// sequence.
void linear_attention(Checker & c, std::initializer_list<Operand> per_token, int state) {
    const int64_t width = c.ne(1, 0);
    const int64_t heads = c.ne(1, 1);
    const int64_t tokens = c.ne(1, 2);
    const int64_t sequences = c.ne(state, 1);
    for (Operand i : per_token) c.f32s({i}).packed({i}).contiguous({i}).shape(i, {width, heads, tokens, 1});
    c.f32s({state, kDst}).packed({state, kDst}).contiguous({state, kDst});
    c.that(ggml_nelements(&c.at(state)) == product({width, width, heads, sequences}), "src{} has shape {}", state,
           shape_text(c.at(state)));
    c.that(tokens % sequences == 0, "{} tokens of {} sequences", tokens, sequences);
    c.that(product({width, heads}) < INT_MAX && product({width, sequences}) < INT_MAX, "{} x {} channels, {} sequences",
           width, heads, sequences);
    if (c.status().ok()) c.shape(kDst, {width * heads, tokens + width * sequences, 1, 1});
}

void check_wkv6(Checker & c) {
    linear_attention(c, {0, 1, 2, 4}, 5);
    c.f32s({3}).packed({3}).contiguous({3}).that(ggml_nelements(&c.at(3)) == product({c.ne(1, 0), c.ne(1, 1)}),
                                                 "src3 has shape {}", shape_text(c.at(3)));
}

void check_gated_linear_attn(Checker & c) {
    linear_attention(c, {0, 1, 2, 3}, 4);
}

// The kernel goes over a head in whole steps of its vectors, the widest of which have 64 elements.
void check_wkv7(Checker & c) {
    linear_attention(c, {0, 1, 2, 3, 4, 5}, 6);
    c.that(c.ne(1, 0) % 64 == 0, "heads of {} channels", c.ne(1, 0));
}

void check_gated_delta_net(Checker & c) {
    const int64_t width = c.ne(2, 0);
    const int64_t heads = c.ne(2, 1);
    const int64_t tokens = c.ne(2, 2);
    const int64_t sequences = c.ne(2, 3);
    const int64_t snapshots = c.i32(0);
    c.f32s({0, 1, 2, 3, 4, 5, kDst}).packed({0, 1, 2, 3, 4, 5, kDst}).contiguous({3, 4, 5, kDst});
    for (Operand i : {0, 1}) {
        c.shape(i, {width, c.ne(i, 1), tokens, c.ne(i, 3)})
            .that(sequences % c.ne(i, 3) == 0, "{} sequences for {}", c.ne(i, 3), sequences);
    }
    c.shape(3, {c.ne(3, 0), heads, tokens, sequences})
        .that(c.ne(3, 0) == 1 || c.ne(3, 0) == width, "{} gates", c.ne(3, 0));
    c.shape(4, {1, heads, tokens, sequences}).shape(5, {width, width, heads, sequences});
    c.that(snapshots >= 1, "{} snapshots", snapshots);
    c.that(product({width, width}) < INT_MAX, "heads of {} elements", width);
    const int64_t states = product({snapshots, width, width, heads, sequences});
    c.that(states < INT64_MAX / 2 && ggml_nelements(&c.at(kDst)) == ggml_nelements(&c.at(2)) + states,
           "dst has {} elements", ggml_nelements(&c.at(kDst)));
}

void check_dsv4_hc_comb(Checker & c) {
    constexpr int64_t kStreams = 4;
    constexpr int64_t kMixes = (2 + kStreams) * kStreams;
    constexpr int32_t kMaxRounds = 1000;
    const int64_t tokens = c.ne(0, 1);
    c.f32s({0, 1, 2, kDst}).shape(0, {kMixes, tokens, 1, 1}).shape(2, {kMixes, 1, 1, 1});
    c.shape(1, {std::max<int64_t>(c.ne(1, 0), 3), 1, 1, 1}).shape(kDst, {kStreams, kStreams, tokens, 1});
    c.that(c.i32(1) > 0 && c.i32(1) <= kMaxRounds, "{} rounds", c.i32(1));
}

void check_dsv4_hc_pre(Checker & c) {
    const int64_t streams = c.ne(0, 1);
    const int64_t tokens = c.ne(0, 2);
    const bool gated = c.i32(1) != 0;
    c.f32s({0, 1, kDst}).shape(0, {c.ne(0, 0), streams, tokens, 1}).shape(kDst, {c.ne(0, 0), tokens, 1, 1});
    if (gated)
        c.same_shape(1, 0);
    else
        c.shape(1, {streams, tokens, 1, 1});
}

void check_dsv4_hc_post(Checker & c) {
    const int64_t width = c.ne(0, 0);
    const int64_t streams = c.ne(1, 1);
    const int64_t tokens = c.ne(0, 1);
    c.f32s({0, 1, 2, kDst}).shape(0, {width, tokens, 1, 1}).shape(1, {width, streams, tokens, 1});
    c.shape(2, {streams, tokens, 1, 1}).shape(kDst, {width, streams, tokens, 1});
    if (c.has(3)) c.f32s({3}).shape(3, {streams, streams, tokens, 1});
}

// ---- convolutions

// Only src0's shape matters. Indices into src1 are checked by the kernel, with strides in int.
void check_im2col(Checker & c) {
    const bool plane = c.i32(6) == 1;
    const int64_t images = c.ne(1, plane ? 3 : 2);
    const int64_t channels = c.ne(1, plane ? 2 : 1);
    c.types(kDst, kHalfAndFloat).types(1, kHalfAndFloat).packed({1, kDst}).contiguous({kDst});
    if (c.type(kDst) == GGML_TYPE_F32) c.f32s({1});
    c.that(c.i32(6) == 0 || c.i32(6) == 1, "a kind of {}", c.i32(6));
    for (size_t stride : c.at(1).nb) c.that(stride <= INT_MAX, "a stride of {} bytes", stride);
    const int64_t patch = product({channels, c.ne(0, 0), plane ? c.ne(0, 1) : 1});
    c.shape(kDst, {patch, c.ne(kDst, 1), plane ? c.ne(kDst, 2) : images, plane ? images : 1});
    if (plane)
        c.that(c.nb(1, 1) == c.ne(1, 0) * ggml_type_size(c.type(1)), "rows of src1 are not side by side");
    else
        c.shape(1, {c.ne(1, 0), channels, images, 1});
}

void check_pool_2d(Checker & c) {
    constexpr int32_t kMaxSide = 1 << 14;
    c.types(0, kHalfAndFloat).f32s({kDst}).packed({0, kDst}).contiguous({0, kDst}).even_rows({0});
    c.that(c.i32(0) == GGML_OP_POOL_MAX || c.i32(0) == GGML_OP_POOL_AVG, "there is no pool {}", c.i32(0));
    for (int param : {1, 2}) {
        c.that(c.i32(param) >= 1 && c.i32(param) <= c.ne(0, param - 1), "a window of {} x {} over {}", c.i32(1),
               c.i32(2), shape_text(c.at(0)));
    }
    for (int param : {3, 4, 5, 6})
        c.that(c.i32(param) >= 0 && c.i32(param) < kMaxSide, "parameter {} is {}", param, c.i32(param));
    c.that(c.ne(kDst, 0) < kMaxSide && c.ne(kDst, 1) < kMaxSide && c.ne(0, 0) < kMaxSide && c.ne(0, 1) < kMaxSide,
           "{} to {} is too large", shape_text(c.at(0)), shape_text(c.at(kDst)));
    // Planes are walked by nb[2] to the end of the memory.
    c.that(c.nb(0, 2) == c.nb(0, 1) * c.ne(0, 1) && c.nb(0, 1) == c.ne(0, 0) * c.nb(0, 0), "src0 is not contiguous");
    c.shape(kDst, {c.ne(kDst, 0), c.ne(kDst, 1), c.ne(0, 2), c.ne(0, 3)});
}

// ---- training

void check_cross_entropy_loss(Checker & c) {
    c.f32s({0, 1, kDst}).same_shape(0, 1).packed({0, 1}).even_rows({0, 1}).shape(kDst, {1, 1, 1, 1});
}

void check_cross_entropy_loss_back(Checker & c) {
    c.f32s({0, 1, 2, kDst}).shape(0, {1, 1, 1, 1}).same_shape(1, 2).same_shape(1, kDst);
    c.contiguous({1, 2, kDst}).packed({1, 2, kDst}).even_rows({1, 2, kDst});
}

// Rows of all are found with the strides of src0, which is what is written.
void optimizer_step(Checker & c, std::initializer_list<Operand> states, int params, int64_t count) {
    c.f32s({0}).packed({0}).contiguous({0}).same_layout(kDst, 0);
    for (Operand i : states) c.f32s({i}).packed({i}).contiguous({i}).same_shape(i, 0);
    c.f32s({params}).packed({params}).shape(params, {count, 1, 1, 1});
    c.that(c.at(kDst).data == c.at(0).data, "dst is not src0");
}

void check_adamw(Checker & c) {
    optimizer_step(c, {1, 2, 3}, 4, 7);
}

void check_sgd(Checker & c) {
    optimizer_step(c, {1}, 2, 2);
}

// ---- the list

struct OpRule {
    ggml_op op;
    int16_t required; // sources 0 ... required - 1 are there
    int16_t allowed;  // none from here on
    void (*check)(Checker &);
    // The source that holds indices (or what they are sorted by), -1: none; and the dimension of an operand that they
    // are below.
    int32_t index = -1;
    int16_t indexed = kDst;
    int16_t dim = 0;
};

// Left out, since no graph of llama.cpp or ggml-opt for a language model has them: CONV_TRANSPOSE_1D,
// CONV_TRANSPOSE_2D, IM2COL_BACK, IM2COL_3D, COL2IM_1D, CONV_2D, CONV_2D_DW, CONV_3D, POOL_1D, POOL_2D_BACK, UPSCALE,
// PAD_REFLECT_1D, ROLL, TIMESTEP_EMBEDDING, FLASH_ATTN_BACK, WIN_PART, WIN_UNPART, GET_REL_POS, ADD_REL_POS. Never to
// be added, since they call what their parameters point to: MAP_CUSTOM1, MAP_CUSTOM2, MAP_CUSTOM3, CUSTOM.
constexpr OpRule kRules[] = {
    {GGML_OP_DUP, 1, 1, check_cont},
    {GGML_OP_CONT, 1, 1, check_cont},
    {GGML_OP_CPY, 1, 2, check_cpy}, // the second is laid out as the result, and is not read
    {GGML_OP_SET, 2, 2, check_set},
    {GGML_OP_ACC, 2, 2, check_acc},
    {GGML_OP_REPEAT, 1, 1, check_repeat},
    {GGML_OP_REPEAT_BACK, 1, 1, check_repeat_back},
    {GGML_OP_CONCAT, 2, 2, check_concat},
    {GGML_OP_PAD, 1, 1, check_pad},
    {GGML_OP_FILL, 1, 1, check_fill},
    {GGML_OP_ARANGE, 0, 0, check_arange},
    {GGML_OP_UNARY, 1, 1, check_unary},
    {GGML_OP_SQR, 1, 1, simple_unary},
    {GGML_OP_SQRT, 1, 1, simple_unary},
    {GGML_OP_LOG, 1, 1, simple_unary},
    {GGML_OP_SIN, 1, 1, simple_unary},
    {GGML_OP_COS, 1, 1, simple_unary},
    {GGML_OP_LEAKY_RELU, 1, 1, check_clamp},
    {GGML_OP_CLAMP, 1, 1, check_clamp},
    {GGML_OP_SCALE, 1, 1, check_scale},
    {GGML_OP_GLU, 1, 2, check_glu},
    {GGML_OP_SILU_BACK, 2, 2, check_silu_back},
    {GGML_OP_ADD, 2, 2, check_binary},
    {GGML_OP_SUB, 2, 2, check_binary},
    {GGML_OP_MUL, 2, 2, check_binary},
    {GGML_OP_DIV, 2, 2, check_binary},
    {GGML_OP_ADD1, 2, 2, check_add1},
    {GGML_OP_ADD_ID, 3, 3, check_add_id, 2, 1, 1},
    {GGML_OP_TRI, 1, 1, check_tri},
    {GGML_OP_DIAG, 1, 1, check_diag},
    {GGML_OP_DIAG_MASK_INF, 1, 1, check_diag_mask},
    {GGML_OP_DIAG_MASK_ZERO, 1, 1, check_diag_mask},
    {GGML_OP_SUM, 1, 1, check_sum},
    {GGML_OP_SUM_ROWS, 1, 1, check_sum_rows},
    {GGML_OP_MEAN, 1, 1, check_sum_rows},
    {GGML_OP_CUMSUM, 1, 1, check_cumsum},
    {GGML_OP_ARGMAX, 1, 1, check_argmax},
    {GGML_OP_COUNT_EQUAL, 2, 2, check_count_equal},
    {GGML_OP_NORM, 1, 1, check_norm},
    {GGML_OP_L2_NORM, 1, 1, check_norm},
    {GGML_OP_RMS_NORM, 1, 1, check_rms_norm},
    {GGML_OP_RMS_NORM_BACK, 2, 2, check_rms_norm_back},
    {GGML_OP_GROUP_NORM, 1, 1, check_group_norm},
    {GGML_OP_SOFT_MAX, 1, 3, check_soft_max},
    {GGML_OP_SOFT_MAX_BACK, 2, 2, check_soft_max_back},
    {GGML_OP_ARGSORT, 1, 1, check_argsort, 0},
    {GGML_OP_TOP_K, 1, 1, check_top_k},
    {GGML_OP_GET_ROWS, 2, 2, check_get_rows, 1, 0, 1},
    {GGML_OP_GET_ROWS_BACK, 2, 2, check_get_rows_back, 1, kDst, 1},
    {GGML_OP_SET_ROWS, 2, 3, check_set_rows, 1, kDst, 1},
    {GGML_OP_MUL_MAT, 2, 2, check_mul_mat},
    {GGML_OP_MUL_MAT_ID, 3, 3, check_mul_mat_id, 2, 0, 2},
    {GGML_OP_OUT_PROD, 2, 2, check_out_prod},
    {GGML_OP_SOLVE_TRI, 2, 2, check_solve_tri},
    {GGML_OP_ROPE, 2, 3, check_rope},
    {GGML_OP_ROPE_BACK, 2, 3, check_rope},
    {GGML_OP_FLASH_ATTN_EXT, 3, 5, check_flash_attn_ext},
    {GGML_OP_LIGHTNING_INDEXER, 4, 4, check_lightning_indexer},
    {GGML_OP_SSM_CONV, 2, 2, check_ssm_conv},
    {GGML_OP_SSM_SCAN, 7, 7, check_ssm_scan, 6, 0, 3},
    {GGML_OP_RWKV_WKV6, 6, 6, check_wkv6},
    {GGML_OP_RWKV_WKV7, 7, 7, check_wkv7},
    {GGML_OP_GATED_LINEAR_ATTN, 5, 5, check_gated_linear_attn},
    {GGML_OP_GATED_DELTA_NET, 6, 6, check_gated_delta_net},
    {GGML_OP_DSV4_HC_COMB, 3, 3, check_dsv4_hc_comb},
    {GGML_OP_DSV4_HC_PRE, 2, 2, check_dsv4_hc_pre},
    {GGML_OP_DSV4_HC_POST, 3, 4, check_dsv4_hc_post},
    {GGML_OP_IM2COL, 2, 2, check_im2col},
    {GGML_OP_POOL_2D, 1, 1, check_pool_2d},
    {GGML_OP_CROSS_ENTROPY_LOSS, 2, 2, check_cross_entropy_loss},
    {GGML_OP_CROSS_ENTROPY_LOSS_BACK, 3, 3, check_cross_entropy_loss_back},
    {GGML_OP_OPT_STEP_ADAMW, 5, 5, check_adamw},
    {GGML_OP_OPT_STEP_SGD, 3, 3, check_sgd},
};

const OpRule * find_rule(ggml_op op) {
    const auto * rule =
        std::find_if(std::begin(kRules), std::end(kRules), [op](const OpRule & r) { return r.op == op; });
    return rule == std::end(kRules) ? nullptr : rule;
}

absl::Status refused(const ggml_tensor & node, const std::string & what) {
    return absl::InvalidArgumentError(absl::StrCat(ggml_op_name(node.op), ": ", what));
}

absl::Status check_sources(const ggml_tensor & node, const OpRule & rule) {
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        const bool there = node.src[i] != nullptr;
        if (!there && i < rule.required) return refused(node, absl::StrCat("src", i, " is missing"));
        if (there && i >= rule.allowed) return refused(node, absl::StrCat("src", i, " is one too many"));
        if (!there) continue;
        const Use use = node.op == GGML_OP_CONCAT ? Use::kMayBeEmpty : Use::kRead;
        const absl::Status status = check_tensor(*node.src[i], use);
        if (!status.ok()) return refused(node, absl::StrCat("src", i, ": ", status.message()));
    }
    return absl::OkStatus();
}

// Kernels that call memcpy from a source to the result, which must not overlap unless they are the same.
bool copies_memory(ggml_op op) {
    switch (op) {
    case GGML_OP_DUP:
    case GGML_OP_CPY:
    case GGML_OP_CONT:
    case GGML_OP_ACC:
    case GGML_OP_SET:
    case GGML_OP_CONCAT:
    case GGML_OP_NORM:
    case GGML_OP_RMS_NORM:
    case GGML_OP_L2_NORM:
    case GGML_OP_SCALE:
    case GGML_OP_SET_ROWS:
    case GGML_OP_DIAG_MASK_INF:
    case GGML_OP_DIAG_MASK_ZERO:
    case GGML_OP_SSM_SCAN:
    case GGML_OP_GATED_DELTA_NET:
    case GGML_OP_ADD_REL_POS:
        return true;
    default:
        return false;
    }
}

// Each source lies under the result, element by element, or elsewhere.
void check_copies(Checker & checker, const ggml_tensor & node) {
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        const ggml_tensor * src = node.src[i];
        const bool unread = node.op == GGML_OP_CPY && i == 1; // names the result's memory
        if (src == nullptr || unread) continue;
        const bool same = src->data == node.data && src->type == node.type &&
                          std::equal(std::begin(src->nb), std::end(src->nb), std::begin(node.nb));
        if (!same) checker.apart_from_dst(i);
    }
}

template <typename T>
absl::Status check_row(const IndexRule & rule, const char * row, int64_t number) {
    absl::flat_hash_set<int64_t> seen;
    for (int64_t i = 0; i < rule.index->ne[0]; ++i) {
        const T value = *reinterpret_cast<const T *>(row + i * rule.index->nb[0]);
        if constexpr (std::is_floating_point_v<T>) {
            if (std::isnan(value))
                return absl::InvalidArgumentError(fmt::format("no number at {} of row {}", i, number));
        } else {
            if (value < rule.min || value >= rule.limit) {
                return absl::InvalidArgumentError(fmt::format("index {} at {} of row {} is not in {} ... {}", value, i,
                                                              number, rule.min, rule.limit - 1));
            }
            if (rule.distinct && !seen.insert(value).second) {
                return absl::InvalidArgumentError(fmt::format("index {} twice in row {}", value, number));
            }
        }
    }
    return absl::OkStatus();
}

absl::Status check_row(const IndexRule & rule, const char * row, int64_t number) {
    switch (rule.index->type) {
    case GGML_TYPE_I32:
        return check_row<int32_t>(rule, row, number);
    case GGML_TYPE_I64:
        return check_row<int64_t>(rule, row, number);
    default:
        return check_row<float>(rule, row, number);
    }
}

} // namespace

bool computes_nothing(const ggml_tensor & node) {
    switch (node.op) {
    case GGML_OP_NONE:
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
        return true;
    default:
        return ggml_is_empty(&node);
    }
}

absl::Status check_op(const ggml_tensor & node) {
    if (node.op < 0 || node.op >= GGML_OP_COUNT) {
        return absl::InvalidArgumentError(fmt::format("there is no op {}", static_cast<int>(node.op)));
    }
    const OpRule * rule = find_rule(node.op);
    if (rule == nullptr) return refused(node, "is not on the list");
    if (const absl::Status status = check_tensor(node, Use::kWritten); !status.ok()) {
        return refused(node, absl::StrCat("dst: ", status.message()));
    }
    if (absl::Status status = check_sources(node, *rule); !status.ok()) return status;
    Checker checker(node);
    rule->check(checker);
    if (rule->index >= 0) checker.apart_from_dst(rule->index);
    if (copies_memory(node.op)) check_copies(checker, node);
    return checker.status();
}

absl::InlinedVector<IndexRule, kMaxIndexRules> index_rules(const ggml_tensor & node) {
    const OpRule * rule = find_rule(node.op);
    if (rule == nullptr || rule->index < 0) return {};
    const ggml_tensor & indexed = rule->indexed == kDst ? node : *node.src[rule->indexed];
    // Repacked weights have scratch memory for one row of src1 per token and expert.
    const bool distinct = node.op == GGML_OP_MUL_MAT_ID && node.src[0]->extra != nullptr;
    return {IndexRule{node.src[rule->index], 0, indexed.ne[rule->dim], distinct}};
}

absl::Status check_indices(const IndexRule & rule) {
    const ggml_tensor & index = *rule.index;
    int64_t number = 0;
    for (int64_t i3 = 0; i3 < index.ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < index.ne[2]; ++i2) {
            for (int64_t i1 = 0; i1 < index.ne[1]; ++i1) {
                const char * row =
                    static_cast<const char *>(index.data) + i1 * index.nb[1] + i2 * index.nb[2] + i3 * index.nb[3];
                if (absl::Status status = check_row(rule, row, number++); !status.ok()) return status;
            }
        }
    }
    return absl::OkStatus();
}

} // namespace strata::executor
