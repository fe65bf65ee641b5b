#include "layers/catalog.h"

#include <algorithm>

namespace strata::layers::catalog {

namespace {

void erase(oci::Index & index, std::string_view ref_name) {
    std::erase_if(index.manifests, [ref_name](const oci::Descriptor & entry) {
        return entry.annotation(oci::kAnnotationRefName) == ref_name;
    });
}

void drop_referrers_of_unnamed(oci::Index & index, const Digest & manifest) {
    const bool named = std::any_of(index.manifests.begin(), index.manifests.end(),
                                   [&manifest](const oci::Descriptor & entry) { return entry.digest == manifest; });
    if (!named) erase(index, oci::referrers_tag(manifest));
}

} // namespace

const oci::Descriptor * find(const oci::Index & index, std::string_view ref_name) {
    for (const oci::Descriptor & entry : index.manifests) {
        if (entry.annotation(oci::kAnnotationRefName) == ref_name) return &entry;
    }
    return nullptr;
}

std::unordered_map<std::string_view, const oci::Descriptor *> by_ref_name(const oci::Index & index) {
    std::unordered_map<std::string_view, const oci::Descriptor *> entries;
    for (const oci::Descriptor & entry : index.manifests) {
        entries.try_emplace(entry.annotation(oci::kAnnotationRefName), &entry);
    }
    return entries;
}

std::vector<ModelName> names(const oci::Index & index) {
    std::vector<ModelName> found;
    for (const oci::Descriptor & entry : index.manifests) {
        const std::string_view text = entry.annotation(oci::kAnnotationRefName);
        absl::StatusOr<ModelName> name = ModelName::parse(text);
        // Only the full form, so that a name is found under what is listed.
        if (name.ok() && name->to_string() == text) found.push_back(*std::move(name));
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
}

void set(oci::Index & index, const ModelName & name, oci::Descriptor manifest,
         std::optional<oci::Descriptor> referrers) {
    const std::string ref_name = name.to_string();
    std::vector<Digest> before;
    for (const oci::Descriptor & entry : index.manifests) {
        if (entry.annotation(oci::kAnnotationRefName) == ref_name) before.push_back(entry.digest);
    }
    erase(index, ref_name);
    if (referrers) {
        const std::string tag = oci::referrers_tag(manifest.digest);
        erase(index, tag);
        referrers->annotations[oci::kAnnotationRefName] = tag;
        index.manifests.push_back(*std::move(referrers));
    }
    manifest.annotations[oci::kAnnotationRefName] = ref_name;
    index.manifests.push_back(std::move(manifest));
    for (const Digest & digest : before) drop_referrers_of_unnamed(index, digest);
}

bool remove(oci::Index & index, const ModelName & name) {
    const std::string ref_name = name.to_string();
    std::vector<Digest> before;
    for (const oci::Descriptor & entry : index.manifests) {
        if (entry.annotation(oci::kAnnotationRefName) == ref_name) before.push_back(entry.digest);
    }
    erase(index, ref_name);
    for (const Digest & digest : before) drop_referrers_of_unnamed(index, digest);
    return !before.empty();
}

} // namespace strata::layers::catalog
