#include "executor/memory.h"

#include "base/text.h"
#include "executor/limits.h"

#include <fmt/format.h>
#include <ggml-cpu.h>
#include <sys/mman.h>

#include <algorithm>

namespace strata::executor {
namespace {

constexpr uint64_t kPageBytes = 4096;

} // namespace

Memory::Buffer::~Buffer() {
    if (ggml != nullptr) ggml_backend_buffer_free(ggml);
    if (base != nullptr) munmap(base, range.bytes);
}

absl::Status Memory::add(uint32_t id, wire::Segment range) {
    if (buffers_.size() >= kMaxBuffers) return absl::ResourceExhaustedError("too many buffers");
    if (range.bytes > kMaxAddressSpaceBytes - std::min(kMaxAddressSpaceBytes, reserved_bytes_)) {
        return absl::ResourceExhaustedError(fmt::format("a buffer of {} is too large", human_bytes(range.bytes)));
    }
    if (addresses_.contains(id)) return absl::InvalidArgumentError(fmt::format("buffer {} exists already", id));
    const auto next = buffers_.lower_bound(range.address);
    if ((next != buffers_.end() && next->first < range.end()) ||
        (next != buffers_.begin() && std::prev(next)->second->range.end() > range.address)) {
        return absl::InvalidArgumentError(fmt::format("buffer {} overlaps another one", id));
    }
    void * base =
        mmap(nullptr, range.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return absl::ResourceExhaustedError(
            fmt::format("cannot map {}: {}", human_bytes(range.bytes), strerror(errno)));
    }
    auto buffer = std::make_unique<Buffer>();
    buffer->range = range;
    buffer->base = static_cast<uint8_t *>(base);
    buffer->ggml = ggml_backend_cpu_buffer_from_ptr(base, range.bytes);
    buffer->used.resize((range.bytes + kChunkBytes - 1) / kChunkBytes);
    reserved_bytes_ += range.bytes;
    addresses_[id] = range.address;
    buffers_[range.address] = std::move(buffer);
    return absl::OkStatus();
}

absl::Status Memory::remove(uint32_t id) {
    const auto address = addresses_.find(id);
    if (address == addresses_.end()) return absl::InvalidArgumentError(fmt::format("there is no buffer {}", id));
    const auto buffer = buffers_.find(address->second);
    reserved_bytes_ -= buffer->second->range.bytes;
    used_bytes_ -= static_cast<uint64_t>(std::ranges::count(buffer->second->used, true)) * kChunkBytes;
    buffers_.erase(buffer);
    addresses_.erase(address);
    return absl::OkStatus();
}

Memory::Buffers::const_iterator Memory::find(wire::Segment range) const {
    auto next = buffers_.upper_bound(range.address);
    if (next == buffers_.begin()) return buffers_.end();
    --next;
    const wire::Segment whole = next->second->range;
    const uint64_t offset = range.address - whole.address;
    if (offset > whole.bytes || range.bytes > whole.bytes - offset) return buffers_.end();
    return next;
}

absl::StatusOr<uint8_t *> Memory::at(wire::Segment range) const {
    const auto buffer = find(range);
    if (buffer == buffers_.end()) {
        return absl::OutOfRangeError(fmt::format("{} bytes at {:#x} are in no buffer", range.bytes, range.address));
    }
    return buffer->second->base + (range.address - buffer->first);
}

absl::StatusOr<uint8_t *> Memory::for_writing(wire::Segment range) {
    const auto buffer = find(range);
    if (buffer == buffers_.end()) {
        return absl::OutOfRangeError(fmt::format("{} bytes at {:#x} are in no buffer", range.bytes, range.address));
    }
    const uint64_t offset = range.address - buffer->first;
    for (uint64_t chunk = offset / kChunkBytes; chunk * kChunkBytes < offset + range.bytes; ++chunk) {
        if (buffer->second->used[chunk]) continue;
        if (used_bytes_ + kChunkBytes > limit_bytes_) {
            return absl::ResourceExhaustedError(
                fmt::format("the executor's limit of {} for one driver is reached", human_bytes(limit_bytes_)));
        }
        buffer->second->used[chunk] = true;
        used_bytes_ += kChunkBytes;
    }
    return buffer->second->base + offset;
}

ggml_backend_buffer_t Memory::buffer(uint64_t address) const {
    const auto buffer = find({address, 0});
    return buffer == buffers_.end() ? nullptr : buffer->second->ggml;
}

absl::Status Memory::drop(wire::Segment range) {
    STRATA_ASSIGN_OR_RETURN(uint8_t * const data, at(range));
    const auto buffer = find(range);
    const uint64_t offset = range.address - buffer->first;
    // Whole chunks are given back, the bytes at both ends are set.
    const uint64_t first = (offset + kChunkBytes - 1) / kChunkBytes;
    const uint64_t last = (offset + range.bytes) / kChunkBytes;
    static_assert(kChunkBytes % kPageBytes == 0);
    if (first >= last) {
        std::fill_n(data, range.bytes, 0);
        return absl::OkStatus();
    }
    std::fill_n(data, first * kChunkBytes - offset, 0);
    std::fill_n(buffer->second->base + last * kChunkBytes, offset + range.bytes - last * kChunkBytes, 0);
    madvise(buffer->second->base + first * kChunkBytes, (last - first) * kChunkBytes, MADV_DONTNEED);
    for (uint64_t chunk = first; chunk < last; ++chunk) {
        if (buffer->second->used[chunk]) used_bytes_ -= kChunkBytes;
        buffer->second->used[chunk] = false;
    }
    return absl::OkStatus();
}

} // namespace strata::executor
