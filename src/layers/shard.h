#pragma once

#include "layers/gguf_model.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace strata::layers {

struct ShardTensor {
    ModelTensor source;
    uint64_t offset = 0; // bytes from the start of the shard
};

// One layer of a model as the GGUF file that it becomes: the header, then the tensors at their offsets, zeros between
// and after them up to `size`. The model's shards in order are a split GGUF model to llama.cpp.
struct Shard {
    LayerKind kind = LayerKind::kHead;
    int32_t block = -1;
    std::string header; // as long as the offset of the data
    std::vector<ShardTensor> tensors;
    uint64_t size = 0;
};

// One shard per layer of the model. The head has all metadata; the others have their number only, so that equal layers
// at the same place of two models are equal bytes. Data is aligned to 32 bytes, GGUF's default, whatever the source's
// alignment is: ggml needs no more, and a file aligned to less could not be mapped.
std::vector<Shard> make_shards(const GgufModel & model);

// How a layer that is the shard with a number begins, and how long it is. Not the head, which has more than its
// tensors.
struct LayerLayout {
    std::string header;
    uint64_t size = 0; // with zeros after each tensor up to the next
};
// Lays tensors out as make_shards does: sets their offsets.
LayerLayout lay_out_layer(size_t number, std::span<GgufTensor> tensors);

// The header of the shard that `layer` is, the one with this number; not of the head, which has more than its tensors.
// kFailedPrecondition when the layer's blob was laid out by somebody else.
absl::StatusOr<std::string> shard_header(const LayerEntry & layer, size_t number);

} // namespace strata::layers
