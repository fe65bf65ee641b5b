#pragma once

#include "base/mapped_bytes.h"
#include "base/status.h"
#include "wire/message.h"

#include <ggml-backend.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace strata::executor {

// What one driver takes of a device's memory, and how much it may.
struct MemoryUse {
    const uint64_t limit_bytes;
    const std::function<void()> make_room; // called when a device has no memory left, before that is an error
    std::atomic<uint64_t> bytes = 0;
    uint64_t moves = 0; // how often memory that tensors lie in went elsewhere

    // ResourceExhausted: nothing was taken.
    absl::Status take(uint64_t more);
};

// What lies behind one buffer of a driver: memory for what was written, zeros elsewhere. Offsets are inside of the
// buffer; who calls has looked. Not thread-safe.
class MemoryBuffer {
public:
    virtual ~MemoryBuffer() = default;
    virtual absl::Status write(uint64_t offset, std::span<const uint8_t> bytes) = 0;
    virtual absl::Status fill(uint64_t offset, uint64_t bytes, uint8_t value) = 0;
    // In place where that can be, else a copy.
    virtual absl::StatusOr<MappedBytes> read(uint64_t offset, uint64_t bytes) const = 0;
    // Gives memory back; the range reads as zeros.
    virtual void drop(uint64_t offset, uint64_t bytes) = 0;

    // Makes room for a tensor in one piece, which may move what lies around it. `written`: somebody will write there.
    virtual absl::Status reserve(uint64_t offset, uint64_t bytes, bool written) = 0;
    // Where a tensor lies for which there is room.
    virtual void place(ggml_tensor & tensor, uint64_t offset) const = 0;
};

// Memory behind a lane's address space. Not thread-safe.
class Memory {
public:
    // buft: where it is; nullptr: in the host's memory.
    Memory(
        uint64_t limit_bytes, ggml_backend_buffer_type_t buft, std::function<void()> make_room = [] {})
        : use_{limit_bytes, std::move(make_room)}
        , buft_(buft) {}

    absl::Status add(uint32_t id, wire::Segment range);
    absl::Status remove(uint32_t id);

    // As a MemoryBuffer's. OutOfRange: the range is not inside of one buffer.
    absl::Status write(uint64_t address, std::span<const uint8_t> bytes);
    absl::Status fill(wire::Segment range, uint8_t value);
    absl::StatusOr<MappedBytes> read(wire::Segment range) const;
    absl::Status drop(wire::Segment range);
    absl::Status reserve(wire::Segment range, bool written);
    absl::Status place(ggml_tensor & tensor, wire::Segment range) const;
    absl::Status check(wire::Segment range) const { return find(range).status(); }

    uint64_t used_bytes() const { return use_.bytes.load(std::memory_order_relaxed); }
    // After a change tensors have to be placed again.
    uint64_t moves() const { return use_.moves; }

private:
    struct Buffer {
        wire::Segment range;
        std::unique_ptr<MemoryBuffer> memory;
    };

    absl::StatusOr<const Buffer *> find(wire::Segment range) const;

    MemoryUse use_;
    const ggml_backend_buffer_type_t buft_;
    uint64_t reserved_bytes_ = 0;
    std::map<uint64_t, Buffer> buffers_; // by address
    std::map<uint32_t, uint64_t> addresses_;
};

// Whether a device has so much, and more for what its kernels take for themselves: ggml ends the process when they get
// nothing.
bool has_room(ggml_backend_buffer_type_t buft, uint64_t bytes);

// A mapping, of which only what is written takes memory.
absl::StatusOr<std::unique_ptr<MemoryBuffer>> make_host_buffer(MemoryUse & use, uint64_t bytes);
// Buffers of a device, which are made when something is written or a tensor placed. For the buffer at `range` of the
// driver's addresses.
absl::StatusOr<std::unique_ptr<MemoryBuffer>> make_device_buffer(MemoryUse & use, ggml_backend_buffer_type_t buft,
                                                                 wire::Segment range);

} // namespace strata::executor
