#include "layers/shard.h"

#include "base/check.h"
#include "layers/gguf_bytes.h"

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

void append_tensor_info(std::string & out, const GgufTensor & tensor, uint64_t offset) {
    append_string(out, tensor.name);
    append<uint32_t>(out, tensor.dimensions);
    for (uint32_t i = 0; i < tensor.dimensions; ++i) append<int64_t>(out, tensor.shape[i]);
    append<int32_t>(out, tensor.type);
    append<uint64_t>(out, offset);
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
        shard.header = GGUF_MAGIC;
        append<uint32_t>(shard.header, GGUF_VERSION);
        append<uint64_t>(shard.header, layer.tensors.size());
        append<uint64_t>(shard.header, head ? model.values.size() + 3 : 1);
        if (head) {
            for (const GgufValue * value : model.values) shard.header += value->pair;
        }
        // Names and types as llama-gguf-split writes and llama-model-loader.cpp reads them.
        append_pair<uint16_t>(shard.header, "split.no", GGUF_TYPE_UINT16, static_cast<uint16_t>(shards.size()));
        if (head) {
            append_pair<uint16_t>(shard.header, "split.count", GGUF_TYPE_UINT16,
                                  static_cast<uint16_t>(model.layers.size()));
            append_pair<int32_t>(shard.header, "split.tensors.count", GGUF_TYPE_INT32,
                                 static_cast<int32_t>(model.tensor_count));
        }

        uint64_t data_bytes = 0;
        for (const ModelTensor & source : layer.tensors) {
            append_tensor_info(shard.header, *source.tensor, data_bytes);
            shard.tensors.push_back({source, data_bytes});
            data_bytes += padded(source.tensor->length);
        }
        shard.header.resize(padded(shard.header.size()), '\0');
        for (ShardTensor & tensor : shard.tensors) tensor.offset += shard.header.size();
        shard.size = shard.header.size() + data_bytes;
        shards.push_back(std::move(shard));
    }
    return shards;
}

} // namespace strata::layers
