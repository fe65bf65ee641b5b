#pragma once

#include "base/mapped_bytes.h"
#include "wire/message.h"

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace strata::mesh {

// What a driver knows of a model's weights before libllama sets them: in which layer's blob each of them lies. Their
// bytes are then never looked at.
struct ModelLayers {
    struct Layer {
        Digest digest;
        uint64_t bytes = 0;
        std::vector<wire::BlobPart> tensors; // by offset
    };
    struct Place {
        size_t layer = 0;
        uint64_t offset = 0; // in the layer's blob
        uint64_t bytes = 0;
    };
    std::vector<Layer> layers;
    std::map<std::string, Place, std::less<>> tensors; // by name
    // A layer's blob, when it is on the driver's machine. kNotFound.
    std::function<absl::StatusOr<MappedBytes>(size_t layer)> open;
};

} // namespace strata::mesh
