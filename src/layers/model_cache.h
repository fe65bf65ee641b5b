#pragma once

#include "layers/store.h"

#include <map>
#include <memory>
#include <mutex>
#include <optional>

namespace strata::layers {

// What a manifest and its index layer say.
struct LoadedModel {
    uint64_t size = 0;         // bytes of all blobs
    std::vector<Digest> blobs; // each once: manifest, config, index layer, layers
    std::shared_ptr<const ModelIndex> index;
};

// Parsed models by the digest of their manifest, and lineages by the digest of the list of referrers that leads to
// them, so that listing does not parse again; nothing in it ever grows stale, since a digest names its content. Bounded
// by the number of tensors; what was not used for the longest time goes first. Thread-safe.
class ModelCache {
public:
    std::shared_ptr<const LoadedModel> find(const Digest & manifest);
    void insert(const Digest & manifest, std::shared_ptr<const LoadedModel> model);

    std::optional<Lineage> find_lineage(const Digest & referrers);
    void insert_lineage(const Digest & referrers, const Lineage & lineage);

private:
    struct Entry {
        std::shared_ptr<const LoadedModel> model;
        size_t tensors = 0;
        uint64_t used = 0;
    };

    std::mutex mutex_;
    std::map<Digest, Entry> entries_;
    std::map<Digest, Lineage> lineages_;
    size_t tensors_ = 0;
    uint64_t uses_ = 0;
};

} // namespace strata::layers
