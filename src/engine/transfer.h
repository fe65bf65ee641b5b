#pragma once

#include "base/digest.h"
#include "base/status.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

// What brings models into a store and checks them there. Each call blocks until it is done; thread-safe.
namespace strata::engine {

// Phase ("downloading", "importing", "verifying"), done and total bytes; return false to cancel. May be empty.
using TransferProgress = std::function<bool(const char * phase, uint64_t done, uint64_t total)>;

struct Imported {
    std::string name; // NAME:TAG
    Digest manifest;
};

// GGUF files, or one source "oci:DIR[:REF]", where DIR ends at the first colon as it does for skopeo. An empty name is
// made from the first file's, or from REF or DIR.
absl::StatusOr<Imported> import_model(const std::filesystem::path & store, const std::vector<std::string> & sources,
                                      std::string_view name, const TransferProgress & progress);

// Fetches "hf://ORG/REPO/FILE", of a split model every file, and imports it. What was downloaded lies beside the store
// until it is imported, so that a cut download goes on where it stopped.
absl::StatusOr<Imported> pull_model(const std::filesystem::path & store, std::string_view url, std::string_view name,
                                    const TransferProgress & progress);

// Sentences that say what is wrong with the blobs of a model, or of all models when the name is empty.
absl::StatusOr<std::vector<std::string>> verify_store(const std::filesystem::path & store, std::string_view name,
                                                      const TransferProgress & progress);

} // namespace strata::engine
