#include "executor/op_checker.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <optional>
#include <utility>

namespace strata::executor {

namespace {

// Kernels count rows and elements of a row in int, and round up to a multiple of the number of threads.
constexpr int64_t kMaxRows = INT_MAX - (1 << 16);
// MUL_MAT counts pieces of 16 x 16 elements in int.
constexpr int64_t kMaxElements = int64_t{1} << 38;
constexpr size_t kMaxStride = size_t{1} << 48;
// How many times as large as its memory a source may be: the windows of a sliding view overlap, and nothing else does.
// Keeps time and scratch memory in proportion to the memory that a client has.
constexpr int64_t kMaxOverlap = 64;

struct Dimension {
    int64_t count; // of blocks in dimension 0
    size_t stride;
};

std::array<Dimension, GGML_MAX_DIMS> dimensions(const ggml_tensor & tensor) {
    std::array<Dimension, GGML_MAX_DIMS> out{};
    for (size_t i = 0; i < out.size(); ++i) out[i] = {tensor.ne[i], tensor.nb[i]};
    out[0].count /= ggml_blck_size(tensor.type);
    return out;
}

std::optional<int64_t> span_bytes(const ggml_tensor & tensor) {
    auto bytes = static_cast<int64_t>(ggml_type_size(tensor.type));
    for (const Dimension & dimension : dimensions(tensor)) {
        int64_t reach = 0;
        if (__builtin_mul_overflow(dimension.count - 1, dimension.stride, &reach)) return std::nullopt;
        if (__builtin_add_overflow(bytes, reach, &bytes)) return std::nullopt;
    }
    return bytes;
}

// Whether every element has bytes of its own; some exotic layouts that do are not seen as such.
bool elements_apart(const ggml_tensor & tensor) {
    std::array<Dimension, GGML_MAX_DIMS> sorted = dimensions(tensor);
    std::sort(sorted.begin(), sorted.end(), [](const auto & a, const auto & b) { return a.stride < b.stride; });
    size_t extent = ggml_type_size(tensor.type);
    for (const Dimension & dimension : sorted) {
        if (dimension.count == 1) continue;
        if (dimension.stride < extent) return false;
        extent += dimension.stride * static_cast<size_t>(dimension.count - 1);
    }
    return true;
}

size_t alignment(ggml_type type) {
    const size_t size = ggml_type_size(type);
    return std::min<size_t>(size & (~size + 1), alignof(int64_t));
}

absl::Status check_shape(const ggml_tensor & tensor) {
    for (int64_t count : tensor.ne) {
        if (count < 0 || count > kMaxRows) {
            return absl::InvalidArgumentError(fmt::format("shape {} is out of range", shape_text(tensor)));
        }
    }
    if (tensor.ne[0] % ggml_blck_size(tensor.type) != 0) {
        return absl::InvalidArgumentError(
            fmt::format("{} elements are no whole blocks of {}", tensor.ne[0], ggml_type_name(tensor.type)));
    }
    if (product({tensor.ne[0], tensor.ne[1], tensor.ne[2], tensor.ne[3]}) > kMaxElements ||
        product({tensor.ne[1], tensor.ne[2], tensor.ne[3]}) > kMaxRows) {
        return absl::InvalidArgumentError(fmt::format("shape {} is too large", shape_text(tensor)));
    }
    return absl::OkStatus();
}

absl::Status check_strides(const ggml_tensor & tensor) {
    const size_t size = ggml_type_size(tensor.type);
    for (size_t stride : tensor.nb) {
        if (stride > kMaxStride || stride % size != 0) {
            return absl::InvalidArgumentError(fmt::format("a stride of {} bytes", stride));
        }
    }
    // ggml_nbytes takes the blocks of a row to be side by side.
    if (ggml_blck_size(tensor.type) > 1 && tensor.nb[0] != size) {
        return absl::InvalidArgumentError("the blocks of a row are not side by side");
    }
    if (reinterpret_cast<uintptr_t>(tensor.data) % alignment(tensor.type) != 0) {
        return absl::InvalidArgumentError("its address is not aligned");
    }
    return absl::OkStatus();
}

bool known_type(ggml_type type) {
    return type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size(type) > 0 && ggml_type_size(type) > 0;
}

} // namespace

int64_t product(std::initializer_list<int64_t> factors) {
    int64_t out = 1;
    for (int64_t factor : factors) {
        if (__builtin_mul_overflow(out, factor, &out)) return INT64_MAX;
    }
    return out;
}

std::string shape_text(const ggml_tensor & tensor) {
    return fmt::format("[{}, {}, {}, {}]", tensor.ne[0], tensor.ne[1], tensor.ne[2], tensor.ne[3]);
}

std::string operand_name(Operand i) {
    return i == kDst ? "dst" : fmt::format("src{}", i);
}

bool spans_meet(const ggml_tensor & a, const ggml_tensor & b) {
    if (a.data == nullptr || b.data == nullptr || ggml_is_empty(&a) || ggml_is_empty(&b)) return false;
    const auto start_a = reinterpret_cast<uintptr_t>(a.data);
    const auto start_b = reinterpret_cast<uintptr_t>(b.data);
    return start_a < start_b + ggml_nbytes(&b) && start_b < start_a + ggml_nbytes(&a);
}

bool has_to_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16 ||
           (ggml_is_quantized(type) && type != GGML_TYPE_Q8_1 && type != GGML_TYPE_Q8_K);
}

bool has_vec_dot(ggml_type type) {
    return has_to_float(type);
}

bool has_from_float(ggml_type type) {
    switch (type) {
    case GGML_TYPE_F32:
    case GGML_TYPE_F16:
    case GGML_TYPE_BF16:
    case GGML_TYPE_Q4_0:
    case GGML_TYPE_Q4_1:
    case GGML_TYPE_Q5_0:
    case GGML_TYPE_Q5_1:
    case GGML_TYPE_Q8_0:
    case GGML_TYPE_IQ4_NL:
        return true;
    default:
        return false;
    }
}

absl::Status check_tensor(const ggml_tensor & tensor, Use use) {
    if (!known_type(tensor.type))
        return absl::InvalidArgumentError(fmt::format("type {}", static_cast<int>(tensor.type)));
    if (absl::Status status = check_shape(tensor); !status.ok()) return status;
    if (absl::Status status = check_strides(tensor); !status.ok()) return status;
    if (ggml_is_empty(&tensor)) {
        return use == Use::kMayBeEmpty ? absl::OkStatus() : absl::InvalidArgumentError("it has no elements");
    }
    const std::optional<int64_t> span = span_bytes(tensor);
    if (!span.has_value()) return absl::InvalidArgumentError("its strides reach beyond any memory");
    if (use == Use::kWritten && !elements_apart(tensor)) return absl::InvalidArgumentError("its elements overlap");
    const auto block = static_cast<int64_t>(ggml_type_size(tensor.type));
    const int64_t bytes = ggml_nelements(&tensor) / ggml_blck_size(tensor.type) * block;
    if (bytes / kMaxOverlap > *span) return absl::InvalidArgumentError("its elements overlap many times over");
    return absl::OkStatus();
}

float Checker::f32(int param) const {
    float out = 0;
    std::memcpy(&out, &node_.op_params[param], sizeof out);
    return out;
}

void Checker::refuse(const std::string & what) {
    status_ = absl::InvalidArgumentError(fmt::format("{}: {}", ggml_op_name(node_.op), what));
}

Checker & Checker::types(Operand i, std::initializer_list<ggml_type> allowed) {
    const bool is_one = std::find(allowed.begin(), allowed.end(), type(i)) != allowed.end();
    return that(is_one, "{} has type {}", operand_name(i), ggml_type_name(type(i)));
}

Checker & Checker::f32s(std::initializer_list<Operand> operands) {
    for (Operand i : operands) types(i, {GGML_TYPE_F32});
    return *this;
}

Checker & Checker::same_type(Operand i, Operand j) {
    return that(type(i) == type(j), "{} has type {}, {} has {}", operand_name(i), ggml_type_name(type(i)),
                operand_name(j), ggml_type_name(type(j)));
}

Checker & Checker::shape(Operand i, std::array<int64_t, GGML_MAX_DIMS> wanted) {
    return that(std::equal(wanted.begin(), wanted.end(), at(i).ne), "{} has shape {}, not [{}]", operand_name(i),
                shape_text(at(i)), fmt::join(wanted, ", "));
}

Checker & Checker::same_shape(Operand i, Operand j) {
    return that(ggml_are_same_shape(&at(i), &at(j)), "{} has shape {}, {} has {}", operand_name(i), shape_text(at(i)),
                operand_name(j), shape_text(at(j)));
}

Checker & Checker::same_layout(Operand i, Operand j) {
    same_type(i, j).same_shape(i, j);
    return that(ggml_are_same_stride(&at(i), &at(j)), "{} and {} differ in their strides", operand_name(i),
                operand_name(j));
}

Checker & Checker::repeats(Operand part, Operand whole) {
    return that(ggml_can_repeat(&at(part), &at(whole)), "{} of shape {} does not repeat to fill {} of shape {}",
                operand_name(part), shape_text(at(part)), operand_name(whole), shape_text(at(whole)));
}

Checker & Checker::packed(std::initializer_list<Operand> operands) {
    for (Operand i : operands) {
        that(nb(i, 0) == ggml_type_size(type(i)), "the elements of a row of {} are not side by side", operand_name(i));
    }
    return *this;
}

Checker & Checker::contiguous(std::initializer_list<Operand> operands) {
    for (Operand i : operands) that(ggml_is_contiguous(&at(i)), "{} is not contiguous", operand_name(i));
    return *this;
}

Checker & Checker::even_rows(std::initializer_list<Operand> operands) {
    for (Operand i : operands) {
        that(ggml_is_contiguous_1(&at(i)), "the rows of {} are not evenly apart", operand_name(i));
    }
    return *this;
}

Checker & Checker::rising_strides(Operand i) {
    return that(std::is_sorted(std::begin(at(i).nb), std::end(at(i).nb)), "{} is permuted", operand_name(i));
}

Checker & Checker::apart_from_dst(Operand i) {
    return that(!spans_meet(at(i), node_), "dst overlaps {}", operand_name(i));
}

} // namespace strata::executor
