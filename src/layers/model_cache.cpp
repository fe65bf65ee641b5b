#include "layers/model_cache.h"

#include "layers/limits.h"

#include <algorithm>

namespace strata::layers {

std::shared_ptr<const LoadedModel> ModelCache::find(const Digest & manifest) {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(manifest);
    if (found == entries_.end()) return nullptr;
    found->second.used = ++uses_;
    return found->second.model;
}

void ModelCache::insert(const Digest & manifest, std::shared_ptr<const LoadedModel> model) {
    size_t tensors = 0;
    for (const LayerEntry & layer : model->index->layers) tensors += layer.tensors.size();

    const std::lock_guard lock(mutex_);
    const auto [place, is_new] = entries_.try_emplace(manifest, Entry{std::move(model), tensors, ++uses_});
    if (!is_new) return;
    tensors_ += tensors;
    while (tensors_ > limits::kCachedTensors && entries_.size() > 1) {
        const auto oldest = std::min_element(entries_.begin(), entries_.end(), [](const auto & a, const auto & b) {
            return a.second.used < b.second.used;
        });
        tensors_ -= oldest->second.tensors;
        entries_.erase(oldest);
    }
}

std::optional<Lineage> ModelCache::find_lineage(const Digest & referrers) {
    const std::lock_guard lock(mutex_);
    const auto found = lineages_.find(referrers);
    return found == lineages_.end() ? std::nullopt : std::optional(found->second);
}

void ModelCache::insert_lineage(const Digest & referrers, const Lineage & lineage) {
    const std::lock_guard lock(mutex_);
    if (lineages_.size() >= limits::kCachedLineages) lineages_.clear();
    lineages_.try_emplace(referrers, lineage);
}

} // namespace strata::layers
