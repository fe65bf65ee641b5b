#include "base/digest.h"

#include <gtest/gtest.h>

namespace strata {
namespace {

// FIPS 180-2, appendix B.1.
constexpr char kAbc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

TEST(Digest, KnownVector) {
    EXPECT_EQ(Digest::of("abc").hex(), kAbc);
    EXPECT_EQ(Digest::of("abc").to_string(), std::string("sha256:") + kAbc);
}

TEST(Digest, HasherStartsAnewAfterFinish) {
    Sha256 hasher;
    hasher.update("ab");
    hasher.update("c");
    EXPECT_EQ(hasher.finish().hex(), kAbc);
    hasher.update("abc");
    EXPECT_EQ(hasher.finish().hex(), kAbc);
}

TEST(Digest, ParseTakesOnlyTheOneForm) {
    const std::string good = std::string("sha256:") + kAbc;
    ASSERT_TRUE(Digest::parse(good).ok());
    EXPECT_EQ(Digest::parse(good)->to_string(), good);

    std::string upper = good;
    upper[7] = 'B';
    for (const std::string & bad : {std::string(), std::string("sha256:"), std::string("sha256:../../../etc/passwd"),
                                    good + "0", good.substr(0, good.size() - 1), upper, "sha512:" + std::string(kAbc),
                                    good.substr(0, 70) + "/", std::string(kAbc), good + std::string(1, '\0')}) {
        EXPECT_EQ(Digest::parse(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
    }
}

} // namespace
} // namespace strata
