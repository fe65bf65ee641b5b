#pragma once

#include "base/status.h"

#include <cstdint>
#include <memory>
#include <span>

namespace strata {

// Bytes in memory, and what keeps them there.
struct MappedBytes {
    std::span<const uint8_t> bytes;
    std::shared_ptr<const void> owner;
};

// Maps a part of a file for reading. offset: of whole pages. The mapping outlives the descriptor.
absl::StatusOr<MappedBytes> map_file(int fd, uint64_t offset, uint64_t bytes);

} // namespace strata
