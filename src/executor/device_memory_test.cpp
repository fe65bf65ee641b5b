#include "executor/memory.h"
#include "executor/opaque_device_testing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace strata::executor {
namespace {

constexpr uint64_t kBase = uint64_t{1} << 40;
constexpr uint64_t kSize = 40000;

ggml_backend_buffer_type_t device_memory() {
    return ggml_backend_dev_buffer_type(opaque_device());
}

std::vector<uint8_t> bytes_of(const Memory & memory, wire::Segment range) {
    const auto read = memory.read(range);
    EXPECT_TRUE(read.ok()) << read.status();
    return {read->bytes.begin(), read->bytes.end()};
}

// Whatever is done to it, it holds what memory of the host would.
TEST(DeviceMemory, IsLikeTheHosts) {
    Memory host(UINT64_MAX, nullptr), device(UINT64_MAX, device_memory());
    ASSERT_TRUE(host.add(1, {kBase, kSize}).ok());
    ASSERT_TRUE(device.add(1, {kBase, kSize}).ok());
    std::mt19937 random(3);
    for (int i = 0; i < 2000; ++i) {
        const uint64_t begin = random() % kSize;
        const wire::Segment range{kBase + begin, random() % std::min<uint64_t>(kSize - begin, 3000)};
        const auto value = static_cast<uint8_t>(random());
        const uint32_t what = random() % 5;
        for (Memory * memory : {&host, &device}) {
            if (what == 0) {
                ASSERT_TRUE(memory->write(range.address, std::vector<uint8_t>(range.bytes, value)).ok());
            } else if (what == 1) {
                ASSERT_TRUE(memory->fill(range, value % 2 == 0 ? 0 : value).ok());
            } else if (what == 2) {
                ASSERT_TRUE(memory->drop(range).ok());
            } else if (what == 3) {
                ASSERT_TRUE(memory->reserve(range, true).ok());
            }
        }
        ASSERT_EQ(bytes_of(device, range), bytes_of(host, range)) << i;
    }
    EXPECT_EQ(bytes_of(device, {kBase, kSize}), bytes_of(host, {kBase, kSize}));
}

TEST(DeviceMemory, ATensorLiesInOnePiece) {
    Memory memory(UINT64_MAX, device_memory());
    ASSERT_TRUE(memory.add(1, {kBase, kSize}).ok());
    ASSERT_TRUE(memory.write(kBase + 1000, std::vector<uint8_t>(10, 7)).ok());
    ASSERT_TRUE(memory.write(kBase + 3000, std::vector<uint8_t>(10, 8)).ok());
    const uint64_t moves = memory.moves();
    ASSERT_TRUE(memory.reserve({kBase + 1005, 2000}, true).ok());
    EXPECT_GT(memory.moves(), moves);
    ggml_tensor first{}, last{};
    ASSERT_TRUE(memory.place(first, {kBase + 1005, 1}).ok());
    ASSERT_TRUE(memory.place(last, {kBase + 3004, 1}).ok());
    EXPECT_EQ(first.buffer, last.buffer);
    EXPECT_EQ(static_cast<char *>(last.data) - static_cast<char *>(first.data), 1999);
    EXPECT_EQ(bytes_of(memory, {kBase + 1008, 3}), (std::vector<uint8_t>{7, 7, 0}));
    EXPECT_EQ(bytes_of(memory, {kBase + 3008, 3}), (std::vector<uint8_t>{8, 8, 0}));
    const uint64_t now = memory.moves();
    ASSERT_TRUE(memory.reserve({kBase + 1500, 100}, true).ok());
    EXPECT_EQ(memory.moves(), now) << "there is room";
}

TEST(DeviceMemory, IsCountedAndGivenBack) {
    int asked = 0;
    Memory memory(20000, device_memory(), [&] { ++asked; });
    ASSERT_TRUE(memory.add(1, {kBase, kSize}).ok());
    EXPECT_EQ(memory.used_bytes(), 0U);
    ASSERT_TRUE(memory.write(kBase, std::vector<uint8_t>(10000)).ok());
    EXPECT_GE(memory.used_bytes(), 10000U);
    EXPECT_TRUE(absl::IsResourceExhausted(memory.write(kBase + 20000, std::vector<uint8_t>(10000))));
    ASSERT_TRUE(memory.drop({kBase, kSize}).ok());
    EXPECT_EQ(memory.used_bytes(), 0U);
    ASSERT_TRUE(memory.write(kBase + 20000, std::vector<uint8_t>(10000)).ok());
    ASSERT_TRUE(memory.remove(1).ok());
    EXPECT_EQ(memory.used_bytes(), 0U);
    EXPECT_EQ(asked, 0);
    ASSERT_TRUE(memory.add(1, {kBase, uint64_t{1} << 40}).ok()) << "reserving takes nothing";
}

TEST(DeviceMemory, ADeviceThatIsFullIsAskedForRoomFirst) {
    int asked = 0;
    Memory memory(UINT64_MAX, device_memory(), [&] { ++asked; });
    ASSERT_TRUE(memory.add(1, {kBase, uint64_t{1} << 40}).ok());
    EXPECT_TRUE(absl::IsResourceExhausted(memory.reserve({kBase, uint64_t{1} << 40}, true)));
    EXPECT_EQ(asked, 1);
    EXPECT_EQ(memory.used_bytes(), 0U);
}

} // namespace
} // namespace strata::executor
