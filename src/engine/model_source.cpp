#include "engine/model_source.h"

#include "base/home.h"
#include "base/text.h"
#include "engine/gguf_layers.h"
#include "layers/model_name.h"
#include "layers/shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace strata::engine {
namespace {

// Blocks and tail; the driver itself works with the head and the embedding.
layers::HollowLayers hollow_layers_of(const layers::StoredModel & model, const std::set<size_t> & real) {
    layers::HollowLayers hollow;
    for (size_t i = 0; i < model.index->layers.size(); ++i) {
        const layers::LayerEntry & layer = model.index->layers[i];
        const bool elsewhere = layer.kind == layers::LayerKind::kBlock || layer.kind == layers::LayerKind::kTail;
        if (elsewhere && !layer.tensors.empty() && !real.contains(i)) hollow.layers.insert(i);
    }
    hollow.header = [index = model.index](size_t layer) { return layers::shard_header(index->layers[layer], layer); };
    return hollow;
}

} // namespace

absl::StatusOr<ModelSource> ModelSource::open(std::string_view model, const SourceOptions & options) {
    if (model.empty()) return absl::InvalidArgumentError("the name of a model must not be empty");
    return model.ends_with(".gguf") ? open_file(model) : open_stored(model, options);
}

uint64_t ModelSource::size_bytes() const {
    return std::accumulate(layers_.begin(), layers_.end(), uint64_t{0},
                           [](uint64_t sum, const SourceLayer & layer) { return sum + layer.size_bytes; });
}

absl::StatusOr<ModelSource> ModelSource::open_stored(std::string_view model, const SourceOptions & options) {
    STRATA_ASSIGN_OR_RETURN(const layers::ModelName name, layers::ModelName::parse(model));
    const auto root = options.store.empty() ? Home::find().store() : options.store;
    std::error_code error;
    if (!std::filesystem::is_directory(root, error)) { // Store::open would make one
        return absl::NotFoundError(fmt::format("there is no layer store in {}; import a model first", root.string()));
    }
    ModelSource source;
    STRATA_ASSIGN_OR_RETURN(source.store_, layers::Store::open(root));
    STRATA_ASSIGN_OR_RETURN(layers::StoredModel stored, source.store_->find(name));

    for (const layers::LayerEntry & layer : stored.index->layers) {
        source.layers_.push_back(SourceLayer{layer.kind, layer.block, layer.digest.to_string(), layer.size,
                                             static_cast<uint32_t>(layer.tensors.size())});
    }
    layers::HollowLayers hollow;
    std::vector<Digest> blobs = stored.blobs;
    if (options.hollow) {
        hollow = hollow_layers_of(stored, options.real_layers);
        std::erase_if(blobs, [&](const Digest & blob) { return !source.store_->has(blob); });
    }
    auto lease = source.store_->lease(fmt::format("open model {}", name.to_string()), blobs);
    if (absl::IsNotFound(lease.status())) { // the model is there, a part of it is not
        return absl::DataLossError(fmt::format("{} is not complete, import or pull it again: {}", name.to_string(),
                                               std::string(lease.status().message())));
    }
    STRATA_RETURN_IF_ERROR(lease.status());
    source.lease_ = *std::move(lease);
    if (options.verify && options.hollow) { // the others are verified where they run
        for (size_t i = 0; i < stored.index->layers.size(); ++i) {
            if (!hollow.layers.contains(i))
                STRATA_RETURN_IF_ERROR(source.store_->map(stored.index->layers[i].digest).status());
        }
    } else if (options.verify) {
        STRATA_ASSIGN_OR_RETURN(const auto problems, source.store_->verify_for_use(name, options.progress));
        if (!problems.empty()) return absl::DataLossError(problems.front().sentence);
    }
    const auto views = options.views.empty() ? root.parent_path() / "views" : options.views;
    STRATA_ASSIGN_OR_RETURN(source.first_file_, source.store_->materialise(stored, views, hollow));
    source.hollow_layers_ = std::move(hollow.layers);
    source.name_ = name.to_string();
    source.stored_ = std::move(stored);
    return source;
}

absl::StatusOr<ModelSource> ModelSource::open_file(std::string_view path) {
    ModelSource source;
    source.first_file_ = path;
    source.name_ = path;
    std::error_code error;
    const auto status = std::filesystem::status(source.first_file_, error);
    if (!std::filesystem::exists(status)) {
        return absl::NotFoundError(fmt::format("there is no file {}", printable(path, kPrintablePathBytes)));
    }
    if (!std::filesystem::is_regular_file(status)) { // a pipe or a device could block or never end
        return absl::InvalidArgumentError(fmt::format("{} is not a file", printable(path, kPrintablePathBytes)));
    }
    STRATA_ASSIGN_OR_RETURN(source.layers_, read_gguf_layers(source.first_file_));
    return source;
}

} // namespace strata::engine
