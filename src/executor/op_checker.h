#pragma once

#include "ggml.h"

#include <absl/status/status.h>
#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <utility>

// What the rules of op_check.cpp are made of.
namespace strata::executor {

// An operand of a node: a source by its number, or the node itself.
using Operand = int;
inline constexpr Operand kDst = -1;

enum class Use { kRead, kMayBeEmpty, kWritten };

// The rules that hold for every tensor of a node.
absl::Status check_tensor(const ggml_tensor & tensor, Use use);

// A product of numbers that are not negative; INT64_MAX when it is larger than that.
int64_t product(std::initializer_list<int64_t> factors);

// Whether the bytes of two tensors, from first to last, have one in common. Tensors without memory have no bytes.
bool spans_meet(const ggml_tensor & a, const ggml_tensor & b);

// Types that can be read as rows of floats / be the left side of a dot product / be written from floats. The last are
// those that llama.cpp offers for its caches: quantising to others looks for a best grid point, which is much code to
// trust.
bool has_to_float(ggml_type type);
bool has_vec_dot(ggml_type type);
bool has_from_float(ggml_type type);

// Collects the first thing that is wrong with a node, so that a rule reads as a list of what must hold. Sources that a
// rule names exist; check_op has looked.
class Checker {
public:
    explicit Checker(const ggml_tensor & node)
        : node_(node) {}

    const absl::Status & status() const { return status_; }

    bool has(int source) const { return node_.src[source] != nullptr; }
    const ggml_tensor & at(Operand i) const { return i == kDst ? node_ : *node_.src[i]; }
    int64_t ne(Operand i, int dim) const { return at(i).ne[dim]; }
    size_t nb(Operand i, int dim) const { return at(i).nb[dim]; }
    ggml_type type(Operand i) const { return at(i).type; }
    int32_t i32(int param) const { return node_.op_params[param]; }
    float f32(int param) const;

    template <typename... Args>
    Checker & that(bool holds, fmt::format_string<Args...> text, Args &&... args) {
        if (!holds && status_.ok()) refuse(fmt::format(text, std::forward<Args>(args)...));
        return *this;
    }

    Checker & types(Operand i, std::initializer_list<ggml_type> allowed);
    Checker & f32s(std::initializer_list<Operand> operands);
    Checker & same_type(Operand i, Operand j);
    Checker & shape(Operand i, std::array<int64_t, GGML_MAX_DIMS> wanted);
    Checker & same_shape(Operand i, Operand j);
    // Equal type, shape and strides.
    Checker & same_layout(Operand i, Operand j);
    // `part`, repeated along its dimensions, fills `whole`.
    Checker & repeats(Operand part, Operand whole);
    // Elements of a row lie side by side.
    Checker & packed(std::initializer_list<Operand> operands);
    // In one piece, in order. Says nothing of the strides of dimensions of length 1.
    Checker & contiguous(std::initializer_list<Operand> operands);
    // nb[1] leads from any row to the next one, also over the ends of the higher dimensions. `contiguous` does not say
    // that of a tensor of shape [n, 1, m].
    Checker & even_rows(std::initializer_list<Operand> operands);
    // nb[0] <= nb[1] <= nb[2] <= nb[3]
    Checker & rising_strides(Operand i);
    // The operand's bytes have nothing in common with the result's.
    Checker & apart_from_dst(Operand i);

private:
    void refuse(const std::string & what);

    const ggml_tensor & node_;
    absl::Status status_;
};

// "[4, 3, 1, 1]"
std::string shape_text(const ggml_tensor & tensor);
// "dst", "src0", ...
std::string operand_name(Operand i);

} // namespace strata::executor
