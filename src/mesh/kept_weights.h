#pragma once

#include "base/digest.h"
#include "base/mapped_bytes.h"
#include "base/unique_fd.h"

#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace strata::mesh {

// The driver's copy of weights, in a file without a name: what a mesh that was given them once can be given again when
// the only executor that had them is lost. Not thread-safe.
class KeptWeights {
public:
    explicit KeptWeights(std::string folder)
        : folder_(std::move(folder)) {}

    absl::Status add(const Digest & digest, std::span<const uint8_t> bytes);
    absl::StatusOr<MappedBytes> get(const Digest & digest) const;

private:
    struct Place {
        uint64_t offset = 0;
        uint64_t bytes = 0;
    };

    const std::string folder_;
    UniqueFd file_;
    uint64_t end_ = 0;
    std::map<Digest, Place> places_;
};

} // namespace strata::mesh
