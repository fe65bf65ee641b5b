#include "executor/blobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace strata::executor {
namespace {

std::vector<uint8_t> numbers(size_t count) {
    std::vector<uint8_t> bytes(count);
    std::iota(bytes.begin(), bytes.end(), uint8_t{0});
    return bytes;
}

Digest digest_of(std::span<const uint8_t> bytes) {
    return Digest::of(std::as_bytes(bytes));
}

BlobReceiver receiver(const std::vector<uint8_t> & bytes, std::vector<wire::BlobPart> parts = {}) {
    UnnamedBlobs store(testing::TempDir());
    return {*store.create(digest_of(bytes), bytes.size()), bytes.size(), std::move(parts)};
}

TEST(BlobReceiver, PiecesBecomeTheBlob) {
    const auto bytes = numbers(1000);
    BlobReceiver receiving = receiver(bytes);
    for (size_t at = 0; at < bytes.size(); at += 300) {
        EXPECT_FALSE(receiving.whole());
        ASSERT_TRUE(receiving.add(at, std::span(bytes).subspan(at, std::min<size_t>(300, bytes.size() - at))).ok());
    }
    ASSERT_TRUE(receiving.whole());
    const auto mapped = receiving.finish();
    ASSERT_TRUE(mapped.ok()) << mapped.status();
    EXPECT_THAT(mapped->bytes, testing::ElementsAreArray(bytes));
}

TEST(BlobReceiver, OrderAndLengthAreChecked) {
    const auto bytes = numbers(100);
    BlobReceiver receiving = receiver(bytes);
    EXPECT_FALSE(receiving.add(1, std::span(bytes).first(10)).ok());
    ASSERT_TRUE(receiving.add(0, std::span(bytes).first(10)).ok());
    EXPECT_FALSE(receiving.add(0, std::span(bytes).first(10)).ok()) << "a repeat";
    EXPECT_FALSE(receiving.add(10, numbers(91)).ok()) << "one byte too much";
}

TEST(BlobReceiver, OtherBytesAreRefusedAtTheEnd) {
    auto bytes = numbers(100);
    BlobReceiver receiving = receiver(bytes);
    bytes[50] ^= 1;
    ASSERT_TRUE(receiving.add(0, bytes).ok());
    const auto mapped = receiving.finish();
    EXPECT_TRUE(absl::IsDataLoss(mapped.status())) << mapped.status();
}

TEST(BlobReceiver, PartsTellWhereOtherBytesAre) {
    const auto bytes = numbers(100);
    const auto part = [&](size_t offset, size_t length) {
        return wire::BlobPart{offset, length, digest_of(std::span(bytes).subspan(offset, length))};
    };
    const std::vector<wire::BlobPart> parts{part(10, 20), part(30, 1), part(40, 40)};
    const std::map<size_t, std::string> told{{15, "bytes 10 to 30"},
                                             {30, "bytes 30 to 31"},
                                             {79, "bytes 40 to 80"},
                                             {5, "arrived with other bytes"},
                                             {35, "arrived with other bytes"}};
    for (const auto & [flipped, text] : told) {
        BlobReceiver receiving = receiver(bytes, parts);
        auto wrong = bytes;
        wrong[flipped] ^= 1;
        ASSERT_TRUE(receiving.add(0, wrong).ok());
        const auto mapped = receiving.finish();
        EXPECT_TRUE(absl::IsDataLoss(mapped.status())) << mapped.status();
        EXPECT_THAT(mapped.status().message(), testing::HasSubstr(text));
    }
}

// What a blob holds is what its digest says, whatever somebody says of its parts.
TEST(BlobReceiver, WrongPartsOfARightBlobDoNoHarm) {
    const auto bytes = numbers(100);
    BlobReceiver receiving = receiver(bytes, {{10, 20, Digest::of("something else")}});
    ASSERT_TRUE(receiving.add(0, bytes).ok());
    EXPECT_TRUE(receiving.finish().ok());
}

TEST(BlobCache, UnusedBlobsGoWhenTheyAreMany) {
    BlobCache cache(250);
    const auto blob = [](uint8_t number) {
        auto bytes = std::make_shared<std::vector<uint8_t>>(100, number);
        return MappedBytes{*bytes, bytes};
    };
    const auto held = cache.add(Digest::of("held"), blob(0));
    (void)cache.add(Digest::of("first"), blob(1));
    (void)cache.add(Digest::of("second"), blob(2));
    EXPECT_NE(cache.find(Digest::of("held")), nullptr);
    EXPECT_EQ(cache.find(Digest::of("first")), nullptr);
    EXPECT_NE(cache.find(Digest::of("second")), nullptr);
    EXPECT_EQ(cache.add(Digest::of("held"), blob(9)), held) << "one copy, whoever brings another";
    EXPECT_EQ(cache.totals().bytes, 200);
}

} // namespace
} // namespace strata::executor
