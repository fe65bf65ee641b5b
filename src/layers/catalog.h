#pragma once

#include "layers/model_name.h"
#include "layers/oci.h"

#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

// Rules of a store's index.json, as pure functions on its parsed form. A name (the annotation ref.name) has one entry.
// Each manifest's referrers (its lineage, perhaps signatures) hang on an entry with the manifest's referrers tag, and
// go when the last name of the manifest goes. Entries that strata does not know are left alone.
namespace strata::layers::catalog {

const oci::Descriptor * find(const oci::Index & index, std::string_view ref_name);
// The same for many names; the keys live as long as `index`.
std::unordered_map<std::string_view, const oci::Descriptor *> by_ref_name(const oci::Index & index);
std::vector<ModelName> names(const oci::Index & index);

// The name's entry is now `manifest`, and the manifest's referrers are `referrers` (nothing: as they were).
void set(oci::Index & index, const ModelName & name, oci::Descriptor manifest,
         std::optional<oci::Descriptor> referrers);
// False when there was no such name.
bool remove(oci::Index & index, const ModelName & name);

} // namespace strata::layers::catalog
