#pragma once

#include "base/status.h"
#include "wire/message.h"

#include <ggml-backend.h>

#include <atomic>
#include <map>
#include <memory>
#include <vector>

namespace strata::executor {

// Memory behind a lane's address space: for each buffer of the driver a mapping of the same size, of which only what is
// written takes memory. Reads of anything else give zeros. Not thread-safe.
class Memory {
public:
    explicit Memory(uint64_t limit_bytes)
        : limit_bytes_(limit_bytes) {}

    absl::Status add(uint32_t id, wire::Segment range);
    absl::Status remove(uint32_t id);

    // Where a range lies here; it must be inside of one buffer.
    absl::StatusOr<uint8_t *> at(wire::Segment range) const;
    // The same for writing: counts the memory that the range takes, and refuses what goes beyond the limit.
    absl::StatusOr<uint8_t *> for_writing(wire::Segment range);
    // The ggml buffer that a range lies in; nullptr when it is in none.
    ggml_backend_buffer_t buffer(uint64_t address) const;
    // Gives the whole pages of a range back; the range reads as zeros.
    absl::Status drop(wire::Segment range);

    uint64_t used_bytes() const { return used_bytes_.load(std::memory_order_relaxed); }

private:
    struct Buffer {
        wire::Segment range;
        uint8_t * base = nullptr;
        ggml_backend_buffer_t ggml = nullptr;
        std::vector<bool> used; // by chunk

        Buffer() = default;
        Buffer(const Buffer &) = delete;
        Buffer & operator=(const Buffer &) = delete;
        ~Buffer();
    };
    using Buffers = std::map<uint64_t, std::unique_ptr<Buffer>>; // by address

    Buffers::const_iterator find(wire::Segment range) const;

    const uint64_t limit_bytes_;
    std::atomic<uint64_t> used_bytes_ = 0;
    uint64_t reserved_bytes_ = 0;
    Buffers buffers_;
    std::map<uint32_t, uint64_t> addresses_;
};

} // namespace strata::executor
