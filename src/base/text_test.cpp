#include "base/text.h"

#include <gtest/gtest.h>

namespace strata {
namespace {

TEST(Text, PrintableEscapesAndCuts) {
    EXPECT_EQ(printable("plain text"), "plain text");
    EXPECT_EQ(printable(std::string("a\n\0\x1b", 4)), "a\\x0a\\x00\\x1b");
    EXPECT_EQ(printable("abcdef", 3), "abc...");
}

TEST(Text, HumanBytes) {
    EXPECT_EQ(human_bytes(0), "0 B");
    EXPECT_EQ(human_bytes(999), "999 B");
    EXPECT_EQ(human_bytes(1000), "1.00 kB");
    EXPECT_EQ(human_bytes(98'362'432), "98.4 MB");
    EXPECT_EQ(human_bytes(999'600), "1.00 MB");
    EXPECT_EQ(human_bytes(UINT64_MAX), "18.4 EB");
}

} // namespace
} // namespace strata
