#include "layers/quantize.h"

#include "base/text.h"
#include "layers/shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace strata::layers {

namespace {

// Of the results of llama_ftype_get_default_type (llama-quant.cpp) those that need no importance matrix.
constexpr std::array kTypes = {GGML_TYPE_F32,   GGML_TYPE_F16,   GGML_TYPE_BF16,  GGML_TYPE_Q1_0,   GGML_TYPE_Q2_0,
                               GGML_TYPE_Q4_0,  GGML_TYPE_Q4_1,  GGML_TYPE_Q5_0,  GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,
                               GGML_TYPE_Q2_K,  GGML_TYPE_Q3_K,  GGML_TYPE_Q4_K,  GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K,
                               GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
                               GGML_TYPE_MXFP4};
// tensor_requires_imatrix (llama-quant.cpp).
constexpr std::array kNeedImatrix = {GGML_TYPE_IQ1_S,  GGML_TYPE_IQ1_M, GGML_TYPE_IQ2_XXS,
                                     GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_XXS};

// tensor_allows_quantization (llama-quant.cpp): names and parts of names of matrices that stay as they are.
constexpr std::array<std::string_view, 2> kKeptNames = {"position_embd.weight", "token_types.weight"};
constexpr std::array<std::string_view, 35> kKeptParts = {"_norm.weight",
                                                         "ffn_gate_inp.weight",
                                                         "ffn_gate_tid2eid.weight",
                                                         "altup",
                                                         "laurel",
                                                         "per_layer_model_proj",
                                                         "ssm_conv1d",
                                                         "shortconv.conv.weight",
                                                         "indexer.k_proj.weight",
                                                         "indexer.q_proj.weight",
                                                         "time_mix_first.weight",
                                                         "time_mix_w0.weight",
                                                         "time_mix_w1.weight",
                                                         "time_mix_w2.weight",
                                                         "time_mix_v0.weight",
                                                         "time_mix_v1.weight",
                                                         "time_mix_v2.weight",
                                                         "time_mix_a0.weight",
                                                         "time_mix_a1.weight",
                                                         "time_mix_a2.weight",
                                                         "time_mix_g1.weight",
                                                         "time_mix_g2.weight",
                                                         "time_mix_decay_w1.weight",
                                                         "time_mix_decay_w2.weight",
                                                         "time_mix_lerp_fused.weight",
                                                         "attn_rel_b.weight",
                                                         ".position_embd",
                                                         "sam.pos_embd",
                                                         "sam.neck.",
                                                         "sam.net_",
                                                         ".rel_pos",
                                                         ".patch_embd",
                                                         ".patch_merger",
                                                         "a.rvq.codebook",
                                                         "mm.a.code_embd"};

// Values of a piece, when its rows are shorter: they stay in a core's cache, and take less than a millisecond.
constexpr int64_t kPieceValues = 8192;
constexpr uint64_t kCopiedBytes = uint64_t{256} << 10; // of a piece that stays as it is
// Rows are quantized whole; this bounds the memory for one.
constexpr int64_t kMaxRowValues = int64_t{1} << 24;
// No block type with a scale in F16 holds larger ones. Beyond about 1e9 sums of squares overflow in some of ggml's
// quantizers, which then abort.
constexpr float kMaxBlockValue = 65504.0F * 127.0F;

std::span<const uint8_t> zeros(uint64_t count) {
    static constexpr std::array<uint8_t, GGUF_DEFAULT_ALIGNMENT> kZeros{};
    return std::span(kZeros).first(count);
}

bool is_matrix_of_weights(const GgufTensor & tensor) {
    const std::string_view name = tensor.name;
    if (tensor.elements() == tensor.shape[0] || !name.ends_with("weight")) return false;
    return std::ranges::find(kKeptNames, name) == kKeptNames.end() &&
           std::ranges::none_of(kKeptParts,
                                [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
}

// tensor_type_fallback (llama-quant.cpp): what to take instead of a type with large blocks.
ggml_type with_smaller_blocks(ggml_type type) {
    switch (type) {
    case GGML_TYPE_IQ3_S:
    case GGML_TYPE_IQ4_XS:
        return GGML_TYPE_IQ4_NL;
    case GGML_TYPE_Q2_0:
    case GGML_TYPE_Q2_K:
    case GGML_TYPE_Q3_K:
    case GGML_TYPE_TQ1_0:
    case GGML_TYPE_TQ2_0:
        return GGML_TYPE_Q4_0;
    case GGML_TYPE_Q4_K:
        return GGML_TYPE_Q5_0;
    case GGML_TYPE_Q5_K:
        return GGML_TYPE_Q5_1;
    case GGML_TYPE_Q6_K:
        return GGML_TYPE_Q8_0;
    default:
        return type;
    }
}

absl::Status no_layer(std::string_view name, std::string_view why) {
    return absl::InvalidArgumentError(fmt::format("{} is no layer of a model: {}", name, why));
}

} // namespace

std::string quantized_types() {
    std::vector<std::string> names;
    for (const ggml_type type : kTypes) names.push_back(type_name(type));
    return fmt::format("{}", fmt::join(names, ", "));
}

absl::Status check_quantized_type(ggml_type type) {
    if (std::ranges::find(kTypes, type) != kTypes.end()) return absl::OkStatus();
    if (std::ranges::find(kNeedImatrix, type) != kNeedImatrix.end()) {
        return absl::FailedPreconditionError(fmt::format(
            "{} needs an importance matrix, and a layer job has none: take a type without, such as Q3_K or IQ3_S",
            type_name(type)));
    }
    return absl::InvalidArgumentError(
        fmt::format("weights can't be made {}; there are {}", type_name(type), quantized_types()));
}

absl::StatusOr<ggml_type> quantized_type(const GgufTensor & tensor, ggml_type target) {
    if (!is_matrix_of_weights(tensor)) return tensor.type;
    const auto fits = [&](ggml_type type) { return tensor.shape[0] % ggml_blck_size(type) == 0; };
    if (fits(target)) return target;
    const ggml_type smaller = with_smaller_blocks(target);
    if (smaller == target && ggml_blck_size(target) > 32) {
        return absl::FailedPreconditionError(
            fmt::format("tensor \"{}\": its rows of {} values are not whole blocks of {}, and there is no type to take "
                        "instead of {}",
                        std::string(tensor.name), tensor.shape[0], ggml_blck_size(target), type_name(target)));
    }
    return fits(smaller) ? smaller : GGML_TYPE_F16;
}

absl::Status LayerQuantizer::refuse(const GgufTensor & tensor, std::string_view what) const {
    return absl::InvalidArgumentError(fmt::format("{}: tensor \"{}\" {}", name_, printable(tensor.name), what));
}

absl::StatusOr<LayerQuantizer> LayerQuantizer::make(std::string_view name, MappedBytes layer, ggml_type target) {
    STRATA_RETURN_IF_ERROR(check_quantized_type(target));
    LayerQuantizer made;
    made.name_ = name;
    made.layer_ = std::move(layer);
    const std::span<const uint8_t> bytes = made.layer_.bytes;
    auto header = parse_gguf("the blob", {reinterpret_cast<const char *>(bytes.data()), bytes.size()}, bytes.size());
    if (!header.ok()) return no_layer(name, std::string(header.status().message()));
    made.source_ = *std::move(header);
    const GgufValue * split_no = made.source_.find("split.no");
    const auto number = split_no == nullptr ? std::nullopt : split_no->as_unsigned();
    if (!number || *number > UINT16_MAX) return no_layer(name, "the key \"split.no\" is missing");
    if (*number == 0) return no_layer(name, "it is a model's head, which has no weights");
    if (made.source_.values.size() != 1) return no_layer(name, "it has keys beside \"split.no\"");
    made.made_ = made.source_.tensors;
    for (GgufTensor & tensor : made.made_) {
        const ggml_type from = tensor.type;
        STRATA_ASSIGN_OR_RETURN(tensor.type, quantized_type(tensor, target));
        if (tensor.type == from) continue;
        if (from != GGML_TYPE_F32 && ggml_get_type_traits(from)->to_float == nullptr) {
            return made.refuse(tensor, fmt::format("has the type {}, which is no type of weights", type_name(from)));
        }
        if (tensor.shape[0] > kMaxRowValues)
            return made.refuse(tensor, fmt::format("has rows of {} values, which are too long", tensor.shape[0]));
        const auto rows = static_cast<uint64_t>(tensor.elements() / tensor.shape[0]);
        tensor.length = rows * ggml_row_size(tensor.type, tensor.shape[0]);
    }
    LayerLayout layout = lay_out_layer(*number, made.made_);
    made.header_ = std::move(layout.header);
    made.size_ = layout.size;
    return made;
}

absl::StatusOr<std::span<const uint8_t>> LayerQuantizer::next() {
    std::span<const uint8_t> piece;
    while (tensor_ < made_.size() && done_ == made_[tensor_].offset + made_[tensor_].length) ++tensor_;
    const uint64_t begin = tensor_ < made_.size() ? made_[tensor_].offset : size_; // of the next tensor
    if (done_ == 0) {
        piece = {reinterpret_cast<const uint8_t *>(header_.data()), header_.size()};
    } else if (done_ < begin || tensor_ == made_.size()) {
        piece = zeros(begin - done_);
    } else {
        STRATA_ASSIGN_OR_RETURN(piece, next_of(source_.tensors[tensor_], made_[tensor_]));
    }
    done_ += piece.size();
    return piece;
}

absl::StatusOr<std::span<const uint8_t>> LayerQuantizer::next_of(const GgufTensor & from, const GgufTensor & to) {
    const uint64_t done = done_ - to.offset;
    if (from.type == to.type) return layer_.bytes.subspan(from.offset + done, std::min(kCopiedBytes, to.length - done));

    const int64_t columns = to.shape[0];
    const size_t row_bytes = ggml_row_size(to.type, columns);
    const auto row = static_cast<int64_t>(done / row_bytes);
    const int64_t rows = std::min(to.elements() / columns - row, std::max<int64_t>(1, kPieceValues / columns));
    values_.resize(static_cast<size_t>(rows * columns));
    const uint8_t * source =
        layer_.bytes.data() + from.offset + static_cast<uint64_t>(row) * ggml_row_size(from.type, columns);
    if (from.type == GGML_TYPE_F32)
        std::memcpy(values_.data(), source, values_.size() * sizeof(float));
    else
        ggml_get_type_traits(from.type)->to_float(source, values_.data(), rows * columns);
    const float most = ggml_is_quantized(to.type) ? kMaxBlockValue : std::numeric_limits<float>::max();
    bool usable = true;
    for (const float value : values_) usable &= std::fabs(value) <= most; // false for NaN
    if (!usable) {
        return refuse(from, fmt::format("has values that are not finite or too large for {}, in row {} or the {} after",
                                        type_name(to.type), row, rows - 1));
    }
    piece_.resize(static_cast<size_t>(rows) * row_bytes);
    ggml_quantize_chunk(to.type, values_.data(), piece_.data(), 0, rows, columns, nullptr);
    if (!ggml_validate_row_data(to.type, piece_.data(), piece_.size()))
        return refuse(from, fmt::format("gives values that are not finite as {}", type_name(to.type)));
    return std::span<const uint8_t>(piece_);
}

} // namespace strata::layers
