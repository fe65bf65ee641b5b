#include "layers/shard.h"

#include "base/check.h"
#include "layers/gguf_bytes.h"

#include <fmt/format.h>

#include <optional>
#include <span>

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

void append_tensor_info(std::string & out, std::string_view name, ggml_type type, std::span<const int64_t> shape,
                        uint64_t offset) {
    append_string(out, name);
    append<uint32_t>(out, static_cast<uint32_t>(shape.size()));
    for (const int64_t n : shape) append<int64_t>(out, n);
    append<int32_t>(out, type);
    append<uint64_t>(out, offset);
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

std::optional<ggml_type> type_named(std::string_view name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (ggml_blck_size(type) > 0 && type_name(type) == name) return type;
    }
    return std::nullopt;
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

        uint64_t data_bytes = 0;
        for (const ModelTensor & source : layer.tensors) {
            const GgufTensor & tensor = *source.tensor;
            append_tensor_info(shard.header, tensor.name, tensor.type, std::span(tensor.shape).first(tensor.dimensions),
                               data_bytes);
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

absl::StatusOr<std::string> shard_header(const LayerEntry & layer, size_t number) {
    STRATA_CHECK(layer.kind != LayerKind::kHead);
    std::string header = begin_header(layer.tensors.size(), 1);
    append_number(header, number);
    uint64_t data_bytes = 0;
    for (const TensorEntry & tensor : layer.tensors) {
        const auto type = type_named(tensor.type);
        if (!type)
            return absl::FailedPreconditionError(fmt::format("{} has the unknown type {}", tensor.name, tensor.type));
        append_tensor_info(header, tensor.name, *type, tensor.shape, data_bytes);
        data_bytes += padded(tensor.length);
    }
    header.resize(padded(header.size()), '\0');
    uint64_t offset = header.size();
    for (const TensorEntry & tensor : layer.tensors) {
        if (tensor.offset != offset) {
            return absl::FailedPreconditionError(fmt::format("{} does not lie where strata would put it", tensor.name));
        }
        offset += padded(tensor.length);
    }
    return header;
}

} // namespace strata::layers
