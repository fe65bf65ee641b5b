#include "layers/shard.h"

#include "base/check.h"
#include "layers/gguf_bytes.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::layers {

namespace {

constexpr uint64_t kAlignment = GGUF_DEFAULT_ALIGNMENT;

uint64_t padded(uint64_t size) {
    return (size + kAlignment - 1) / kAlignment * kAlignment;
}

template <typename T>
void append_pair(std::string & out, std::string_view key, gguf_type type, T value) {
    append_string(out, key);
    append<int32_t>(out, type);
    append<T>(out, value);
}

// Ends a header with what it says about its tensors, and lays them out behind it: sets their offsets. The size of all.
uint64_t append_tensors(std::string & header, std::span<GgufTensor> tensors) {
    uint64_t data_bytes = 0;
    for (GgufTensor & tensor : tensors) {
        append_string(header, tensor.name);
        append<uint32_t>(header, tensor.dimensions);
        for (const int64_t n : std::span(tensor.shape).first(tensor.dimensions)) append<int64_t>(header, n);
        append<int32_t>(header, tensor.type);
        append<uint64_t>(header, data_bytes);
        tensor.offset = data_bytes;
        data_bytes += padded(tensor.length);
    }
    header.resize(padded(header.size()), '\0');
    for (GgufTensor & tensor : tensors) tensor.offset += header.size();
    return header.size() + data_bytes;
}

// What a shard begins with; `pairs` follow.
std::string begin_header(size_t tensors, size_t pairs) {
    std::string header = GGUF_MAGIC;
    append<uint32_t>(header, GGUF_VERSION);
    append<uint64_t>(header, tensors);
    append<uint64_t>(header, pairs);
    return header;
}

// Names and types as llama-gguf-split writes and llama-model-loader.cpp reads them.
void append_number(std::string & header, size_t number) {
    append_pair<uint16_t>(header, "split.no", GGUF_TYPE_UINT16, static_cast<uint16_t>(number));
}

} // namespace

std::vector<Shard> make_shards(const GgufModel & model) {
    std::vector<Shard> shards;
    shards.reserve(model.layers.size());
    for (const ModelLayer & layer : model.layers) {
        const bool head = layer.kind == LayerKind::kHead;
        STRATA_CHECK(head == shards.empty());
        Shard shard;
        shard.kind = layer.kind;
        shard.block = layer.block;
        shard.header = begin_header(layer.tensors.size(), head ? model.values.size() + 3 : 1);
        if (head) {
            for (const GgufValue * value : model.values) shard.header += value->pair;
        }
        append_number(shard.header, shards.size());
        if (head) {
            append_pair<uint16_t>(shard.header, "split.count", GGUF_TYPE_UINT16,
                                  static_cast<uint16_t>(model.layers.size()));
            append_pair<int32_t>(shard.header, "split.tensors.count", GGUF_TYPE_INT32,
                                 static_cast<int32_t>(model.tensor_count));
        }

        std::vector<GgufTensor> tensors;
        for (const ModelTensor & source : layer.tensors) tensors.push_back(*source.tensor);
        shard.size = append_tensors(shard.header, tensors);
        for (size_t i = 0; i < tensors.size(); ++i) shard.tensors.push_back({layer.tensors[i], tensors[i].offset});
        shards.push_back(std::move(shard));
    }
    return shards;
}

LayerLayout lay_out_layer(size_t number, std::span<GgufTensor> tensors) {
    LayerLayout layout{begin_header(tensors.size(), 1)};
    append_number(layout.header, number);
    layout.size = append_tensors(layout.header, tensors);
    return layout;
}

absl::StatusOr<std::string> shard_header(const LayerEntry & layer, size_t number) {
    STRATA_CHECK(layer.kind != LayerKind::kHead);
    std::vector<GgufTensor> tensors;
    for (const TensorEntry & entry : layer.tensors) {
        const auto type = type_named(entry.type);
        if (!type)
            return absl::FailedPreconditionError(fmt::format("{} has the unknown type {}", entry.name, entry.type));
        GgufTensor & tensor = tensors.emplace_back();
        tensor.name = entry.name;
        tensor.type = *type;
        tensor.dimensions = static_cast<uint32_t>(entry.shape.size());
        std::ranges::copy(entry.shape, tensor.shape.begin());
        tensor.length = entry.length;
    }
    LayerLayout layout = lay_out_layer(number, tensors);
    for (size_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].offset != layer.tensors[i].offset) {
            return absl::FailedPreconditionError(
                fmt::format("{} does not lie where strata would put it", layer.tensors[i].name));
        }
    }
    return std::move(layout.header);
}

} // namespace strata::layers
