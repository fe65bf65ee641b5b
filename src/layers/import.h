#pragma once

#include "layers/store.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace strata::layers {

struct ImportOptions {
    std::string origin;                  // for the lineage; empty: the first file's name
    std::optional<Digest> origin_sha256; // for the lineage: of the source file, when it is one and known
    std::string engine_build;            // for the lineage
    int threads = 2;
    Progress progress; // may be empty; called by several threads, one at a time
};

// Imports a GGUF model (one file, or all files of a split model in any order) into layer shards under `name`. Files are
// untrusted: everything is checked before it is used, and an error names the file and the field. Nothing of a refused
// model stays in the store. Returns the manifest's digest.
absl::StatusOr<Digest> import_gguf(Store & store, const std::vector<std::filesystem::path> & files,
                                   const ModelName & name, const ImportOptions & options);

// Looks into a layer blob that came from elsewhere (see Store::LayerCheck): it is a GGUF file with just the tensors
// that the index says. Its digest is not looked at.
absl::Status check_layer(const LayerEntry & layer, const std::filesystem::path & blob);

} // namespace strata::layers
