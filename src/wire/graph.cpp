#include "wire/graph.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::wire {
namespace {

constexpr size_t kLeastTensorBytes = 2 + 2 + 4 + 16 + 32 + 8 + 2;

} // namespace

std::vector<uint8_t> Graph::encode() const {
    Writer writer;
    writer.put(static_cast<uint32_t>(tensors.size()));
    for (const GraphTensor & tensor : tensors) {
        writer.put(tensor.type);
        writer.put(tensor.op);
        writer.put(tensor.flags);
        writer.raw(tensor.ne.data(), sizeof(tensor.ne));
        writer.raw(tensor.nb.data(), sizeof(tensor.nb));
        writer.put(tensor.address);
        writer.put(static_cast<uint8_t>(tensor.sources.size()));
        writer.put(static_cast<uint8_t>(tensor.op_params.size()));
        writer.raw(tensor.sources.data(), tensor.sources.size() * sizeof(uint32_t));
        writer.raw(tensor.op_params.data(), tensor.op_params.size() * sizeof(int32_t));
    }
    return writer.take();
}

absl::StatusOr<Graph> Graph::decode(std::span<const uint8_t> bytes) {
    Reader reader(bytes);
    const auto count = reader.get<uint32_t>();
    if (count > kMaxGraphTensors || count > reader.left() / kLeastTensorBytes) {
        return absl::InvalidArgumentError(fmt::format("a graph of {} tensors in {} bytes", count, bytes.size()));
    }
    Graph graph;
    graph.tensors.resize(count);
    for (uint32_t i = 0; i < count; ++i) {
        GraphTensor & tensor = graph.tensors[i];
        tensor.type = reader.get<uint16_t>();
        tensor.op = reader.get<uint16_t>();
        tensor.flags = reader.get<uint32_t>();
        reader.raw(tensor.ne.data(), sizeof(tensor.ne));
        reader.raw(tensor.nb.data(), sizeof(tensor.nb));
        tensor.address = reader.get<uint64_t>();
        const auto n_sources = reader.get<uint8_t>();
        const auto n_params = reader.get<uint8_t>();
        if (n_sources > kMaxSources || n_params > kMaxOpParams) {
            return absl::InvalidArgumentError(
                fmt::format("tensor {} of a graph has {} sources and {} parameters", i, n_sources, n_params));
        }
        tensor.sources.resize(n_sources);
        tensor.op_params.resize(n_params);
        reader.raw(tensor.sources.data(), n_sources * sizeof(uint32_t));
        reader.raw(tensor.op_params.data(), n_params * sizeof(int32_t));
        const auto late = std::ranges::find_if(
            tensor.sources, [&](uint32_t source) { return source != GraphTensor::kNone && source >= i; });
        if (late != tensor.sources.end()) {
            return absl::InvalidArgumentError(
                fmt::format("tensor {} of a graph has tensor {} as a source, which does not come before it", i, *late));
        }
        if (!reader.ok()) break;
    }
    if (!reader.ok() || !reader.done()) return absl::InvalidArgumentError("a graph whose length is wrong");
    return graph;
}

GraphHash Graph::hash(std::span<const uint8_t> encoded) {
    const Digest digest = Digest::of(std::as_bytes(encoded));
    GraphHash hash;
    std::copy_n(digest.bytes().begin(), hash.size(), hash.begin());
    return hash;
}

} // namespace strata::wire
