#include "layers/gguf.h"
#include "layers/gguf_model.h"
#include "layers/import.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

namespace strata::layers {

absl::Status check_layer(const LayerEntry & layer, const std::filesystem::path & blob) {
    STRATA_ASSIGN_OR_RETURN(const GgufFile file, GgufFile::open(blob));
    const GgufHeader & header = file.header();
    const auto refuse = [&](std::string_view what) {
        return absl::InvalidArgumentError(fmt::format("{}: {}", header.file, what));
    };
    if (file.size() != layer.size) {
        return refuse(fmt::format("has {} bytes, but the index of its model says {}", file.size(), layer.size));
    }
    if (header.find("split.no") == nullptr)
        return refuse("the key \"split.no\" is missing, so it is no layer of a model");
    if (layer.kind == LayerKind::kHead) STRATA_RETURN_IF_ERROR(check_head(header));
    if (header.tensors.size() != layer.tensors.size()) {
        return refuse(fmt::format("has {} tensors, but the index of its model says {}", header.tensors.size(),
                                  layer.tensors.size()));
    }
    for (size_t i = 0; i < layer.tensors.size(); ++i) {
        const TensorEntry & entry = layer.tensors[i];
        const GgufTensor & tensor = header.tensors[i];
        const bool same = entry.name == tensor.name && entry.type == type_name(tensor.type) &&
                          std::ranges::equal(entry.shape, std::span(tensor.shape).first(tensor.dimensions)) &&
                          entry.offset == tensor.offset && entry.length == tensor.length;
        if (!same) return refuse(fmt::format("tensor \"{}\": is not what the index of its model says", tensor.name));
    }
    return absl::OkStatus();
}

} // namespace strata::layers
