#include "wire/frame.h"

#include <fmt/format.h>

#include <bit>

namespace strata::wire {
namespace {

constexpr uint32_t kMagic = 0x41525453; // "STRA"
constexpr uint16_t kVersion = 1;
constexpr std::array<uint8_t, 2> kTlsHandshake{22, 3}; // how TLS begins

} // namespace

std::array<uint8_t, FrameHeader::kBytes> FrameHeader::encode() const {
    Writer writer;
    writer.put(kMagic);
    writer.put(kVersion);
    writer.put(type);
    writer.put(uint8_t{0});
    writer.put(body_bytes);
    writer.put(generation);
    writer.put(epoch);
    writer.put(sequence);
    std::array<uint8_t, kBytes> bytes;
    std::memcpy(bytes.data(), writer.bytes().data(), kBytes);
    return bytes;
}

absl::StatusOr<FrameHeader> FrameHeader::decode(std::span<const uint8_t, kBytes> bytes, size_t max_body_bytes) {
    Reader reader(bytes);
    if (bytes[0] == kTlsHandshake[0] && bytes[1] == kTlsHandshake[1]) {
        return absl::InvalidArgumentError("TLS is not spoken here: start this engine with --tls DIR, or leave it out");
    }
    if (reader.get<uint32_t>() != kMagic) return absl::InvalidArgumentError("not a frame of strata's wire");
    const auto version = reader.get<uint16_t>();
    if (version != kVersion) {
        return absl::FailedPreconditionError(
            fmt::format("version {} of the wire, this engine speaks {}", version, kVersion));
    }
    FrameHeader header;
    header.type = reader.get<FrameType>();
    if (header.type < FrameType::kHello || header.type > FrameType::kJobState || reader.get<uint8_t>() != 0) {
        return absl::InvalidArgumentError(fmt::format("unknown frame type {}", static_cast<int>(header.type)));
    }
    header.body_bytes = reader.get<uint32_t>();
    header.generation = reader.get<uint64_t>();
    header.epoch = reader.get<uint64_t>();
    header.sequence = reader.get<uint64_t>();
    if (header.body_bytes > max_body_bytes) {
        return absl::InvalidArgumentError(
            fmt::format("a frame of {} bytes, at most {} are allowed here", header.body_bytes, max_body_bytes));
    }
    return header;
}

} // namespace strata::wire
