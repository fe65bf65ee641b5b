#include "executor/limits.h"
#include "executor/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace strata::executor {
namespace {

using testing::HasSubstr;
constexpr uint64_t kBase = uint64_t{1} << 40;

std::vector<uint8_t> bytes_of(const Memory & memory, wire::Segment range) {
    const auto read = memory.read(range);
    EXPECT_TRUE(read.ok()) << read.status();
    return {read->bytes.begin(), read->bytes.end()};
}

TEST(Memory, ReadsAsZerosAndKeepsWhatIsWritten) {
    Memory memory(1 << 20, nullptr);
    ASSERT_TRUE(memory.add(1, {kBase, 200000}).ok());
    EXPECT_EQ(bytes_of(memory, {kBase + 100000, 100000}), std::vector<uint8_t>(100000));
    EXPECT_EQ(memory.used_bytes(), 0);
    ASSERT_TRUE(memory.write(kBase + 5, std::vector<uint8_t>{7, 8, 9}).ok());
    EXPECT_EQ(bytes_of(memory, {kBase + 4, 5}), (std::vector<uint8_t>{0, 7, 8, 9, 0}));
    EXPECT_EQ(memory.used_bytes(), kChunkBytes);
}

TEST(Memory, EveryRangeLiesInOneBuffer) {
    Memory memory(1 << 20, nullptr);
    ASSERT_TRUE(memory.add(1, {kBase, 4096}).ok());
    ASSERT_TRUE(memory.add(2, {kBase + 4096, 4096}).ok());
    for (const wire::Segment range : {wire::Segment{kBase - 1, 2},
                                      {kBase + 4095, 2},
                                      {kBase, 4097},
                                      {kBase + 8191, 2},
                                      {kBase + 8192, 1},
                                      {0, 1},
                                      {UINT64_MAX, 1},
                                      {kBase, UINT64_MAX},
                                      {kBase + 1, UINT64_MAX}}) {
        ggml_tensor tensor{};
        for (const absl::Status & status :
             {memory.check(range), memory.read(range).status(), memory.fill(range, 1), memory.drop(range),
              memory.reserve(range, true), memory.place(tensor, range)}) {
            EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange) << range.address << " " << range.bytes;
        }
    }
    EXPECT_EQ(memory.write(kBase + 4095, std::vector<uint8_t>(2)).code(), absl::StatusCode::kOutOfRange);
    ggml_tensor first{}, second{};
    ASSERT_TRUE(memory.place(first, {kBase + 10, 1}).ok());
    ASSERT_TRUE(memory.place(second, {kBase + 4096, 1}).ok());
    EXPECT_NE(first.buffer, second.buffer);
}

TEST(Memory, BuffersDoNotOverlapAndHaveNamesOfTheirOwn) {
    Memory memory(1 << 20, nullptr);
    ASSERT_TRUE(memory.add(1, {kBase, 4096}).ok());
    for (const wire::Segment range :
         {wire::Segment{kBase, 4096}, {kBase + 4095, 1}, {kBase - 1, 2}, {kBase - 10, 8192}, {kBase + 5, 5}}) {
        EXPECT_THAT(memory.add(2, range).message(), HasSubstr("overlaps")) << range.address;
    }
    EXPECT_THAT(memory.add(1, {kBase + 8192, 16}).message(), HasSubstr("exists already"));
    EXPECT_THAT(memory.remove(2).message(), HasSubstr("no buffer 2"));
    ASSERT_TRUE(memory.remove(1).ok());
    EXPECT_FALSE(memory.check({kBase, 1}).ok());
    EXPECT_TRUE(memory.add(1, {kBase - 10, 8192}).ok());
}

TEST(Memory, WhatIsWrittenIsLimited) {
    Memory memory(3 * kChunkBytes, nullptr);
    ASSERT_TRUE(memory.add(1, {kBase, 100 * kChunkBytes}).ok()); // reserving takes nothing
    EXPECT_TRUE(memory.reserve({kBase + 10, 1}, true).ok());
    EXPECT_TRUE(memory.reserve({kBase + kChunkBytes - 1, 2}, true).ok()); // one more
    EXPECT_EQ(memory.used_bytes(), 2 * kChunkBytes);
    EXPECT_EQ(memory.reserve({kBase, 10 * kChunkBytes}, true).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_LE(memory.used_bytes(), 3 * kChunkBytes);
    EXPECT_TRUE(memory.reserve({kBase, 2 * kChunkBytes}, true).ok()); // what it has may be written again
    ASSERT_TRUE(memory.add(2, {kBase * 2, 1}).ok());
    ASSERT_TRUE(memory.remove(1).ok());
    EXPECT_EQ(memory.used_bytes(), 0);
    EXPECT_TRUE(memory.reserve({kBase * 2, 1}, true).ok());
}

TEST(Memory, AddressSpaceAndBuffersAreLimited) {
    Memory memory(1 << 20, nullptr);
    EXPECT_EQ(memory.add(1, {kBase, kMaxAddressSpaceBytes + 1}).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(memory.add(1, {kBase, UINT64_MAX - kBase}).code(), absl::StatusCode::kResourceExhausted);
    for (uint32_t i = 0; i < kMaxBuffers; ++i) ASSERT_TRUE(memory.add(i, {kBase + i * 4096, 16}).ok());
    EXPECT_EQ(memory.add(kMaxBuffers, {kBase / 2, 16}).code(), absl::StatusCode::kResourceExhausted);
}

TEST(Memory, WhatIsDroppedReadsAsZerosAndIsGivenBack) {
    const uint64_t size = 6 * kChunkBytes;
    for (const wire::Segment dropped : {wire::Segment{0, size},
                                        {kChunkBytes, kChunkBytes},
                                        {100, 50},
                                        {kChunkBytes - 10, 20},
                                        {10, 3 * kChunkBytes},
                                        {5 * kChunkBytes + 1, kChunkBytes - 1},
                                        {kChunkBytes + 1, 4 * kChunkBytes}}) {
        Memory memory(size, nullptr);
        ASSERT_TRUE(memory.add(1, {kBase, size}).ok());
        ASSERT_TRUE(memory.fill({kBase, size}, 7).ok());
        ASSERT_TRUE(memory.drop({kBase + dropped.address, dropped.bytes}).ok());
        const auto bytes = bytes_of(memory, {kBase, size});
        for (uint64_t i = 0; i < size; ++i) {
            ASSERT_EQ(bytes[i], i >= dropped.address && i < dropped.end() ? 0 : 7) << i << " of " << dropped.address;
        }
        const uint64_t first = (dropped.address + kChunkBytes - 1) / kChunkBytes, last = dropped.end() / kChunkBytes;
        EXPECT_EQ(memory.used_bytes(), size - (last > first ? last - first : 0) * kChunkBytes);
    }
}

// Against what a bit for each chunk would say.
TEST(Memory, UsedChunksAreCounted) {
    constexpr uint64_t kChunks = 40;
    std::mt19937_64 random(7);
    Memory memory(kChunks * kChunkBytes, nullptr);
    ASSERT_TRUE(memory.add(1, {kBase, kChunks * kChunkBytes}).ok());
    std::vector<bool> used(kChunks);
    for (int step = 0; step < 3000; ++step) {
        const uint64_t first = random() % kChunks, count = 1 + random() % (kChunks - first);
        const wire::Segment range{kBase + first * kChunkBytes, count * kChunkBytes};
        const bool writes = random() % 2 == 0;
        ASSERT_TRUE((writes ? memory.reserve(range, true) : memory.drop(range)).ok());
        std::fill_n(used.begin() + static_cast<ptrdiff_t>(first), count, writes);
        ASSERT_EQ(memory.used_bytes(), static_cast<uint64_t>(std::count(used.begin(), used.end(), true)) * kChunkBytes)
            << step;
    }
}

// Reserving costs nothing, whatever is announced: a peer may do it again and again.
TEST(Memory, TheLargestBufferIsCheap) {
    Memory memory(4 * kChunkBytes, nullptr);
    for (int i = 0; i < 1000; ++i) {
        ASSERT_TRUE(memory.add(1, {kBase, kMaxAddressSpaceBytes}).ok());
        ASSERT_TRUE(memory.reserve({kBase + kMaxAddressSpaceBytes - 1, 1}, true).ok());
        ASSERT_TRUE(memory.fill({kBase, kMaxAddressSpaceBytes}, 0).ok());
        EXPECT_EQ(memory.used_bytes(), 0);
        ASSERT_TRUE(memory.remove(1).ok());
    }
}

TEST(Memory, TheLastHalfChunkOfABufferIsGivenBackWithTheWhole) {
    Memory memory(1 << 20, nullptr);
    ASSERT_TRUE(memory.add(1, {kBase, kChunkBytes + 100}).ok());
    ASSERT_TRUE(memory.reserve({kBase, kChunkBytes + 100}, true).ok());
    ASSERT_TRUE(memory.drop({kBase, kChunkBytes + 100}).ok());
    EXPECT_LE(memory.used_bytes(), kChunkBytes);
    ASSERT_TRUE(memory.remove(1).ok());
    EXPECT_EQ(memory.used_bytes(), 0);
}

} // namespace
} // namespace strata::executor
