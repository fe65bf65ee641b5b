#pragma once

#include "base/status.h"
#include "wire/bytes.h"

#include <array>
#include <cstdint>
#include <memory>
#include <span>

namespace strata::wire {

enum class FrameType : uint8_t {
    kHello = 1,    // first frame of whoever connects
    kWelcome = 2,  // the answer
    kPing = 3,     // says only: still here
    kRefusal = 4,  // the last frame: why the connection ends
    kCommands = 5, // driver to executor, in order
    kResult = 6,   // executor to driver: what was read
    kProgress = 7, // executor to driver: how far it is
    kPush = 8,     // executor to executor: bytes for a lane
    kBlob = 9,     // a piece of a blob's bytes
    kBlobState = 10,
    kBlobRequest = 11, // executor to executor
    kPeerLost = 12,    // executor to driver: pushes to a peer may be lost
    kSkip = 13,        // driver to executor, ahead of commands: pushes below a tag will not come; answered by the same
    kLayerJob = 14,    // operator to executor
    kJobState = 15,    // executor to operator
};

// Begins every frame. `generation` is the deployment's, `epoch` the binding's: a receiver that knows newer ones refuses
// the frame. `sequence` numbers the frames of one direction.
struct FrameHeader {
    static constexpr size_t kBytes = 36;

    FrameType type = FrameType::kPing;
    uint32_t body_bytes = 0;
    uint64_t generation = 0;
    uint64_t epoch = 0;
    uint64_t sequence = 0;

    std::array<uint8_t, kBytes> encode() const;
    // Refuses another magic number, another version of the protocol, and bodies larger than `max_body_bytes`.
    static absl::StatusOr<FrameHeader> decode(std::span<const uint8_t, kBytes> bytes, size_t max_body_bytes);
};

// A frame that arrived. The body stays alive as long as a copy of this.
struct Frame {
    FrameHeader header;
    std::shared_ptr<uint8_t[]> storage;

    std::span<const uint8_t> body() const { return {storage.get(), header.body_bytes}; }
};

} // namespace strata::wire
