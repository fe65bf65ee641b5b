#pragma once

#include "layers/gguf.h"
#include "layers/store.h"

#include <span>
#include <string>
#include <vector>

namespace strata::layers {

// A tensor of a model, and which of the model's files it is in.
struct ModelTensor {
    size_t part = 0; // index into the headers that the model was made of
    const GgufTensor * tensor = nullptr;
};

struct ModelLayer {
    LayerKind kind = LayerKind::kHead;
    int32_t block = -1;
    std::vector<ModelTensor> tensors; // by name, so that equal layers are equal bytes whatever wrote the file
};

// A checked model over the headers of its files: what is needed to cut it into layers. The headers must outlive it.
struct GgufModel {
    std::string architecture;
    std::string quantization; // "Q4_K_M"; from general.file_type, else the type of most of the bytes
    uint64_t parameters = 0;
    uint64_t context_tokens = 0; // 0 when the file does not say
    uint64_t tensor_count = 0;
    uint64_t tensor_bytes = 0;
    std::vector<const GgufValue *> values; // the metadata in the file's order, without split.*
    std::vector<ModelLayer> layers;        // head (no tensors), embedding, blocks, tail (may be empty)
};

// Checks what llama.cpp and strata rely on and builds the model; `parts` are the headers of one file, or of all files
// of a split model in any order. Errors are kInvalidArgument and name the file and the field.
absl::StatusOr<GgufModel> make_model(std::span<const GgufHeader> parts);

// The checks of make_model that need a model's metadata only: architecture, number of blocks, vocabulary.
absl::Status check_head(const GgufHeader & header);

} // namespace strata::layers
