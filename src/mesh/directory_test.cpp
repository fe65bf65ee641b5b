#include "mesh/directory.h"

#include <gtest/gtest.h>

#include <array>
#include <random>
#include <set>

namespace strata::mesh {
namespace {

constexpr uint64_t kBase = 1000, kSize = 300;

// What a Directory says, byte by byte.
struct Byte {
    bool exists = false;
    Holders holders = kEverybody;
    int driver = -1; // the value of the driver's copy
    bool operator==(const Byte &) const = default;
};
using Plain = std::array<Byte, kSize>;

Plain read(const Directory & directory, Segment range) {
    Plain plain;
    uint64_t before = 0;
    directory.visit(range, [&](Segment piece, const Directory::Entry & entry) {
        EXPECT_GE(piece.address, std::max(before, range.address));
        EXPECT_LE(piece.end(), range.end());
        EXPECT_GT(piece.bytes, 0);
        before = piece.end();
        for (uint64_t at = piece.address; at < piece.end(); ++at) {
            Byte & byte = plain[at - kBase];
            byte = {true, entry.holders, -1};
            if (entry.bytes != nullptr) byte.driver = entry.bytes->at(at - entry.bytes_address);
        }
    });
    return plain;
}

class DirectoryRandom : public testing::TestWithParam<uint64_t> {};

TEST_P(DirectoryRandom, EqualsAPlainModel) {
    std::mt19937_64 random(GetParam());
    const auto below = [&](uint64_t limit) { return random() % limit; };
    Directory directory;
    Plain plain;
    std::vector<Segment> buffers;
    const auto any_range = [&] {
        const uint64_t begin = below(kSize);
        return Segment{kBase + begin, 1 + below(std::min<uint64_t>(kSize - begin, 60))};
    };
    const auto each = [&](Segment range, auto function) {
        for (uint64_t at = range.address; at < range.end(); ++at) {
            if (Byte & byte = plain[at - kBase]; byte.exists) function(byte, at);
        }
    };
    for (int step = 0; step < 3000; ++step) {
        const Segment range = any_range();
        const Holders one = holder(below(5));
        switch (below(9)) {
        case 0: {
            const auto overlaps = [&](Segment other) {
                return other.address < range.end() && range.address < other.end();
            };
            if (std::ranges::any_of(buffers, overlaps)) break;
            buffers.push_back(range);
            directory.add(range);
            for (uint64_t at = range.address; at < range.end(); ++at) plain[at - kBase] = {true, kEverybody, -1};
            break;
        }
        case 1:
            if (buffers.empty() || below(4) != 0) break;
            std::swap(buffers[below(buffers.size())], buffers.back());
            directory.remove(buffers.back());
            each(buffers.back(), [](Byte & byte, uint64_t) { byte = {}; });
            buffers.pop_back();
            break;
        case 2:
        case 3:
            directory.wrote(range, one);
            each(range, [&](Byte & byte, uint64_t) { byte = {true, one, -1}; });
            break;
        case 4:
            directory.wrote(range, kEverybody);
            each(range, [&](Byte & byte, uint64_t) { byte = {true, kEverybody, -1}; });
            break;
        case 5: {
            auto bytes = std::make_shared<std::vector<uint8_t>>(range.bytes);
            for (uint8_t & byte : *bytes) byte = static_cast<uint8_t>(random());
            directory.wrote(range, bytes);
            each(range, [&](Byte & byte, uint64_t at) { byte = {true, 0, (*bytes)[at - range.address]}; });
            break;
        }
        case 6:
            directory.has(range, one);
            each(range, [&](Byte & byte, uint64_t) { byte.holders |= one; });
            break;
        case 7:
            directory.forget_bytes(range);
            each(range, [&](Byte & byte, uint64_t) {
                if (byte.holders != 0) byte.driver = -1;
            });
            break;
        case 8: {
            if (below(8) != 0) break;
            bool alone = false;
            each({kBase, kSize}, [&](Byte & byte, uint64_t) {
                if (byte.holders == kEverybody) return;
                alone = alone || (byte.holders == one && byte.driver < 0);
                byte.holders &= ~one;
            });
            ASSERT_EQ(directory.lost(one), alone) << "step " << step;
            break;
        }
        }
        ASSERT_EQ(read(directory, {kBase, kSize}), plain) << "step " << step;
        const Segment part = any_range();
        const Plain seen = read(directory, part);
        each(part, [&](const Byte & byte, uint64_t at) { ASSERT_EQ(seen[at - kBase], byte) << "step " << step; });
    }
    EXPECT_LE(directory.entries(), kSize);
}
INSTANTIATE_TEST_SUITE_P(Seeds, DirectoryRandom, testing::Range<uint64_t>(1, 21));

TEST(Directory, JoinsWhatIsEqual) {
    Directory directory;
    directory.add({kBase, 1000});
    for (uint64_t at = 0; at < 1000; ++at) directory.wrote({kBase + at, 1}, holder(1));
    EXPECT_EQ(directory.entries(), 1);
    directory.wrote({kBase + 10, 10}, holder(2));
    EXPECT_EQ(directory.entries(), 3);
    directory.wrote({kBase + 10, 10}, holder(1));
    EXPECT_EQ(directory.entries(), 1);
}

TEST(RangeSet, EqualsASet) {
    std::mt19937_64 random(7);
    for (int round = 0; round < 200; ++round) {
        RangeSet ranges;
        std::set<uint64_t> plain;
        for (int step = 0; step < 20; ++step) {
            const Segment range{random() % 100, 1 + random() % 20};
            ranges.add(range);
            for (uint64_t at = range.address; at < range.end(); ++at) plain.insert(at);
            std::set<uint64_t> all;
            uint64_t before = 0;
            for (const Segment & segment : ranges.segments()) {
                EXPECT_TRUE(all.empty() || segment.address > before); // neither overlap nor touch
                before = segment.end();
                for (uint64_t at = segment.address; at < segment.end(); ++at) all.insert(at);
            }
            ASSERT_EQ(all, plain);
            const Segment asked{random() % 110, 1 + random() % 40};
            std::set<uint64_t> left, expected;
            for (const Segment & segment : ranges.without(asked)) {
                for (uint64_t at = segment.address; at < segment.end(); ++at) left.insert(at);
            }
            for (uint64_t at = asked.address; at < asked.end(); ++at) {
                if (!plain.contains(at)) expected.insert(at);
            }
            ASSERT_EQ(left, expected);
        }
    }
}

} // namespace
} // namespace strata::mesh
