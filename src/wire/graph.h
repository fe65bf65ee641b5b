#pragma once

#include "wire/message.h"

#include <array>
#include <cstdint>
#include <vector>

// A part of a graph as it travels: tensors in an order in which each comes after its sources, so that there are no
// cycles. Types and ops are ggml's numbers; both ends have one build.
namespace strata::wire {

inline constexpr size_t kMaxGraphTensors = 200000;
inline constexpr size_t kMaxSources = 16;
inline constexpr size_t kMaxOpParams = 16; // words

struct GraphTensor {
    static constexpr uint32_t kNone = UINT32_MAX;

    uint16_t type = 0;
    uint16_t op = 0; // 0: a leaf
    uint32_t flags = 0;
    std::array<uint32_t, 4> ne{};
    std::array<uint64_t, 4> nb{};
    uint64_t address = 0;
    std::vector<uint32_t> sources;  // places of earlier tensors, or kNone
    std::vector<int32_t> op_params; // without the zeros at the end
};

struct Graph {
    std::vector<GraphTensor> tensors;

    std::vector<uint8_t> encode() const;
    // Checks counts, the order of sources, and that nothing trails. What an op needs is the executor's to check.
    static absl::StatusOr<Graph> decode(std::span<const uint8_t> bytes);
    static GraphHash hash(std::span<const uint8_t> encoded);
};

} // namespace strata::wire
