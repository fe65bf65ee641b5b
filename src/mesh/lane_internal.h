#pragma once

#include "mesh/lane.h"

// What the files that implement Lane share; nobody else includes this.
namespace strata::mesh {

// Layers beside the blocks, which have their numbers.
inline constexpr int32_t kNoLayer = -1;
inline constexpr int32_t kTail = INT32_MAX;

// The layer that a tensor of a model's file belongs to.
int32_t layer_of(std::string_view name);

inline uint64_t address_of(const ggml_tensor & tensor) {
    return reinterpret_cast<uint64_t>(tensor.data);
}

// Adds a range to a list, where the last one ends if it begins there.
void append(std::vector<Segment> & segments, Segment segment);
// Pieces of at most kPieceBytes.
std::vector<std::vector<Segment>> in_pieces(const std::vector<Segment> & segments);

} // namespace strata::mesh
