#include "wire/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace strata::wire {
namespace {

using testing::HasSubstr;

FrameHeader some_header() {
    FrameHeader header;
    header.type = FrameType::kPush;
    header.body_bytes = 77;
    header.generation = UINT64_MAX;
    header.epoch = 5;
    header.sequence = uint64_t{1} << 40;
    return header;
}

std::string refusal(std::array<uint8_t, FrameHeader::kBytes> bytes, size_t max_body_bytes = 1000) {
    return std::string(FrameHeader::decode(bytes, max_body_bytes).status().message());
}

TEST(FrameHeader, RoundTrip) {
    const auto header = FrameHeader::decode(some_header().encode(), 77);
    ASSERT_TRUE(header.ok());
    EXPECT_EQ(header->encode(), some_header().encode());
    EXPECT_EQ(header->sequence, uint64_t{1} << 40);
}

TEST(FrameHeader, RefusesByName) {
    EXPECT_THAT(refusal(some_header().encode(), 76), HasSubstr("a frame of 77 bytes, at most 76"));
    FrameHeader large = some_header();
    large.body_bytes = UINT32_MAX;
    EXPECT_THAT(refusal(large.encode(), size_t{64} << 20), HasSubstr("4294967295 bytes"));
    for (const uint8_t type : {0, 16, 255}) {
        auto bytes = some_header().encode();
        bytes[6] = type;
        EXPECT_THAT(refusal(bytes), HasSubstr(std::to_string(type)));
    }
    // Magic, version, the byte that is always zero.
    for (const size_t place : {0, 1, 2, 3, 4, 5, 7}) {
        auto bytes = some_header().encode();
        bytes[place] ^= 0x40;
        EXPECT_NE(refusal(bytes), "") << place;
    }
}

} // namespace
} // namespace strata::wire
