#pragma once

#include "base/digest.h"
#include "base/status.h"
#include "layers/store.h"

#include <sys/types.h>

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace strata::daemon {

// What the request path needs to know of a stored model.
struct ModelFacts {
    layers::ModelName name;
    std::string full_name; // NAME:TAG
    Digest digest;         // of the manifest
    std::string architecture;
    uint64_t parameters = 0;
    uint64_t size_bytes = 0;
    uint64_t context_tokens = 0;
    int64_t imported_unix_ms = 0;
    bool embeds = false; // made for embeddings, not for text
};

// Whether a model is made for embeddings: by its architecture, or by the pooling that its metadata name.
bool made_for_embeddings(const layers::ModelIndex & index);

// The models of a store as they are now, kept in memory: a look costs one stat() while the store's index is unchanged.
// Sees what other processes do to the store. Thread-safe.
class Catalog {
public:
    explicit Catalog(const layers::Store & store)
        : store_(store) {}

    using Models = std::vector<ModelFacts>;
    // Sorted by name. When the store can't be read: what was known before.
    std::shared_ptr<const Models> models();

    // NAME:TAG; or NAME when it has the tag "latest" or only one. kNotFound names the models there are.
    absl::StatusOr<ModelFacts> resolve(std::string_view text);

private:
    struct Version {
        ino_t inode = 0;
        int64_t modified_ns = 0;
        off_t size = 0;
        bool operator==(const Version &) const = default;
    };

    const layers::Store & store_;
    std::mutex mutex_;
    Version version_;
    std::shared_ptr<const Models> models_;
};

} // namespace strata::daemon
