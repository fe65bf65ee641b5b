#include "executor/memory.h"

#include "base/text.h"
#include "executor/limits.h"

#include <fmt/format.h>

namespace strata::executor {

absl::Status MemoryUse::take(uint64_t more) {
    if (more > limit_bytes - std::min<uint64_t>(limit_bytes, bytes)) {
        return absl::ResourceExhaustedError(
            fmt::format("the executor's limit of {} for one driver is reached", human_bytes(limit_bytes)));
    }
    bytes += more;
    return absl::OkStatus();
}

absl::Status Memory::add(uint32_t id, wire::Segment range) {
    if (buffers_.size() >= kMaxBuffers) return absl::ResourceExhaustedError("too many buffers");
    if (range.bytes > kMaxAddressSpaceBytes - std::min(kMaxAddressSpaceBytes, reserved_bytes_)) {
        return absl::ResourceExhaustedError(fmt::format("a buffer of {} is too large", human_bytes(range.bytes)));
    }
    if (addresses_.contains(id)) return absl::InvalidArgumentError(fmt::format("buffer {} exists already", id));
    const auto next = buffers_.lower_bound(range.address);
    if ((next != buffers_.end() && next->first < range.end()) ||
        (next != buffers_.begin() && std::prev(next)->second.range.end() > range.address)) {
        return absl::InvalidArgumentError(fmt::format("buffer {} overlaps another one", id));
    }
    STRATA_ASSIGN_OR_RETURN(auto memory, buft_ == nullptr ? make_host_buffer(use_, range.bytes)
                                                          : make_device_buffer(use_, buft_, range));
    reserved_bytes_ += range.bytes;
    addresses_[id] = range.address;
    buffers_[range.address] = {range, std::move(memory)};
    return absl::OkStatus();
}

absl::Status Memory::remove(uint32_t id) {
    const auto address = addresses_.find(id);
    if (address == addresses_.end()) return absl::InvalidArgumentError(fmt::format("there is no buffer {}", id));
    const auto buffer = buffers_.find(address->second);
    reserved_bytes_ -= buffer->second.range.bytes;
    ++use_.moves;
    buffers_.erase(buffer);
    addresses_.erase(address);
    return absl::OkStatus();
}

absl::StatusOr<const Memory::Buffer *> Memory::find(wire::Segment range) const {
    auto next = buffers_.upper_bound(range.address);
    if (next != buffers_.begin()) {
        const Buffer & buffer = std::prev(next)->second;
        const uint64_t offset = range.address - buffer.range.address;
        if (offset <= buffer.range.bytes && range.bytes <= buffer.range.bytes - offset) return &buffer;
    }
    return absl::OutOfRangeError(fmt::format("{} bytes at {:#x} are in no buffer", range.bytes, range.address));
}

absl::Status Memory::write(uint64_t address, std::span<const uint8_t> bytes) {
    STRATA_ASSIGN_OR_RETURN(const Buffer * const buffer, find({address, bytes.size()}));
    return buffer->memory->write(address - buffer->range.address, bytes);
}

absl::Status Memory::fill(wire::Segment range, uint8_t value) {
    STRATA_ASSIGN_OR_RETURN(const Buffer * const buffer, find(range));
    return buffer->memory->fill(range.address - buffer->range.address, range.bytes, value);
}

absl::StatusOr<MappedBytes> Memory::read(wire::Segment range) const {
    STRATA_ASSIGN_OR_RETURN(const Buffer * const buffer, find(range));
    return buffer->memory->read(range.address - buffer->range.address, range.bytes);
}

absl::Status Memory::drop(wire::Segment range) {
    STRATA_ASSIGN_OR_RETURN(const Buffer * const buffer, find(range));
    buffer->memory->drop(range.address - buffer->range.address, range.bytes);
    return absl::OkStatus();
}

absl::Status Memory::reserve(wire::Segment range, bool written) {
    STRATA_ASSIGN_OR_RETURN(const Buffer * const buffer, find(range));
    return buffer->memory->reserve(range.address - buffer->range.address, range.bytes, written);
}

absl::Status Memory::place(ggml_tensor & tensor, wire::Segment range) const {
    STRATA_ASSIGN_OR_RETURN(const Buffer * const buffer, find(range));
    buffer->memory->place(tensor, range.address - buffer->range.address);
    return absl::OkStatus();
}

} // namespace strata::executor
