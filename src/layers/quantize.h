#pragma once

#include "base/mapped_bytes.h"
#include "base/status.h"
#include "layers/gguf.h"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace strata::layers {

// The types that a layer's matrices can be made into, for people: "F32, F16, …".
std::string quantized_types();
// Whether a type is one of them; kFailedPrecondition when it needs an importance matrix, else kInvalidArgument.
absl::Status check_quantized_type(ggml_type type);

// The type that `llama-quantize --pure` gives a tensor: its own for what is no matrix of weights, a wider one than
// `target` where its rows are not whole blocks of that.
absl::StatusOr<ggml_type> quantized_type(const GgufTensor & tensor, ggml_type target);

// Makes a layer from a layer, its matrices in another type, bit for bit as llama-quantize does: hands out the new
// layer's bytes in their order, so that it needs little memory. What a layer holds is somebody else's: values that are
// not finite, or too large for ggml's quantizers, are an error. Not thread-safe.
class LayerQuantizer {
public:
    // name: the layer's, for messages. layer: the bytes of its blob. kInvalidArgument when they are no layer's.
    static absl::StatusOr<LayerQuantizer> make(std::string_view name, MappedBytes layer, ggml_type target);

    uint64_t bytes() const { return size_; } // of the new layer
    // The next piece, valid until the next call: of one tensor at most, about 8,000 values or one row. Empty: that was
    // all.
    absl::StatusOr<std::span<const uint8_t>> next();

private:
    LayerQuantizer() = default;
    absl::StatusOr<std::span<const uint8_t>> next_of(const GgufTensor & from, const GgufTensor & to);
    absl::Status refuse(const GgufTensor & tensor, std::string_view what) const;

    std::string name_;
    MappedBytes layer_;
    GgufHeader source_;            // of layer_
    std::vector<GgufTensor> made_; // of the new layer
    std::string header_;
    uint64_t size_ = 0;
    uint64_t done_ = 0; // bytes handed out
    size_t tensor_ = 0; // which of them is next
    std::vector<float> values_;
    std::vector<uint8_t> piece_;
};

} // namespace strata::layers
