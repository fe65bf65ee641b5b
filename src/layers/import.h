#pragma once

#include "layers/store.h"

#include <string>
#include <vector>

namespace strata::layers {

struct ImportOptions {
    std::string origin;       // for the lineage; empty: the file's name
    std::string engine_build; // for the lineage
    int threads = 2;
    Progress progress;        // may be empty
};

// Imports a GGUF model (one file, or all files of a split model in any order) into layer shards under `name`. Files are
// untrusted: everything is checked before it is used, and an error names the file and the field. Nothing of a refused model stays
// in the store. Returns the manifest's digest.
absl::StatusOr<Digest> import_gguf(Store & store, const std::vector<std::filesystem::path> & files, const ModelName & name,
                                   const ImportOptions & options);

} // namespace strata::layers
