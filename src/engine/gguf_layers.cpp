#include "engine/gguf_layers.h"

#include "base/text.h"
#include "layers/gguf.h"
#include "layers/gguf_model.h"

#include <fmt/format.h>
#include <llama.h>

namespace strata::engine {

namespace {

// The files of a split model, by llama.cpp's naming.
absl::StatusOr<std::vector<std::filesystem::path>> split_files(const layers::GgufFile & first) {
    const layers::GgufValue * key = first.header().find("split.count");
    const uint64_t count = key == nullptr ? 1 : key->as_unsigned().value_or(1);
    if (count <= 1) return std::vector{first.path()};
    std::string prefix(first.path().native().size() + 1, '\0');
    int length = 0;
    if (count <= UINT16_MAX) { // the key's type
        length = llama_split_prefix(prefix.data(), prefix.size(), first.path().c_str(), 0, static_cast<int>(count));
    }
    if (length <= 0) {
        return absl::InvalidArgumentError(
            fmt::format("{} is one of {} files of a model, but is not named …-00001-of-{:05}.gguf; open the first one "
                        "under its own name",
                        printable(first.path().native(), kPrintablePathBytes), count, count));
    }
    prefix.resize(length);
    std::vector<std::filesystem::path> files;
    for (uint64_t i = 0; i < count; ++i)
        files.emplace_back(fmt::format("{}-{:05}-of-{:05}.gguf", prefix, i + 1, count));
    return files;
}

} // namespace

absl::StatusOr<std::vector<SourceLayer>> read_gguf_layers(const std::filesystem::path & first_file) {
    STRATA_ASSIGN_OR_RETURN(const layers::GgufFile first, layers::GgufFile::open(first_file));
    STRATA_ASSIGN_OR_RETURN(const auto files, split_files(first));
    std::vector<layers::GgufHeader> headers{first.header()};
    for (size_t i = 1; i < files.size(); ++i) {
        STRATA_ASSIGN_OR_RETURN(const layers::GgufFile file, layers::GgufFile::open(files[i]));
        headers.push_back(file.header());
    }
    STRATA_ASSIGN_OR_RETURN(const layers::GgufModel model, layers::make_model(headers));

    std::vector<SourceLayer> result;
    for (const layers::ModelLayer & layer : model.layers) {
        SourceLayer & added = result.emplace_back();
        added.kind = layer.kind;
        added.block = layer.block;
        added.tensor_count = static_cast<uint32_t>(layer.tensors.size());
        for (const layers::ModelTensor & tensor : layer.tensors) added.size_bytes += tensor.tensor->length;
    }
    return result;
}

} // namespace strata::engine
