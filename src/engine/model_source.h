#pragma once

#include "base/status.h"
#include "layers/store.h"

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace strata::engine {

struct SourceOptions {
    std::filesystem::path store; // empty: the user's
    std::filesystem::path views; // empty: beside the store
    bool verify = false;         // hash every blob first
    // For a model whose blocks and tail run elsewhere: their files are hollow, and need not be here. Those of
    // `real_layers` are whole all the same.
    bool hollow = false;
    std::set<size_t> real_layers;
    layers::Progress progress; // of the verification; may be empty
};

struct SourceLayer {
    layers::LayerKind kind = layers::LayerKind::kHead;
    int32_t block = -1;
    std::string digest; // empty for a file
    uint64_t size_bytes = 0;
    uint32_t tensor_count = 0;
};

// Where the weights of a model lie, as files that llama.cpp maps. While it lives, the blobs of a stored model are kept
// from garbage collection. Immutable after open.
class ModelSource {
public:
    // NAME[:TAG] of the store, or a path that ends in ".gguf": that file, the first one of a split model.
    // kNotFound, kInvalidArgument (malformed), kDataLoss (verify found other bytes; says in which layer).
    static absl::StatusOr<ModelSource> open(std::string_view model, const SourceOptions & options);

    const std::filesystem::path & first_file() const { return first_file_; }
    const std::string & name() const { return name_; } // NAME:TAG, or the file's path
    const std::vector<SourceLayer> & layers() const { return layers_; }
    uint64_t size_bytes() const; // of all layers
    const std::optional<layers::StoredModel> & stored() const { return stored_; }
    const std::set<size_t> & hollow_layers() const { return hollow_layers_; }
    // The store that the model lies in, for as long as this lives. nullptr for a file.
    const layers::Store * store() const { return store_.get(); }

private:
    static absl::StatusOr<ModelSource> open_stored(std::string_view model, const SourceOptions & options);
    static absl::StatusOr<ModelSource> open_file(std::string_view path);

    std::string name_;
    std::filesystem::path first_file_;
    std::vector<SourceLayer> layers_;
    std::optional<layers::StoredModel> stored_;
    std::set<size_t> hollow_layers_;
    std::unique_ptr<layers::Store> store_; // outlives the lease
    std::optional<layers::Lease> lease_;
};

} // namespace strata::engine
