#include "cli/text.h"

#include <gtest/gtest.h>

namespace strata::cli {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::seconds;

class CliText : public ::testing::Test {
protected:
    static void SetUpTestSuite() { use_utf8_locale(); }
};

TEST_F(CliText, SafeTextEscapesWhatATerminalWouldObey) {
    EXPECT_EQ(safe_text("plain grüße 日本"), "plain grüße 日本");
    EXPECT_EQ(safe_text("\x1b[2J"), "\\x1b[2J");
    EXPECT_EQ(safe_text("a\nb\tc"), "a\\x0ab\\x09c");
    EXPECT_EQ(safe_text("a\nb\tc\r", true), "a\nb\tc\\x0d");
    EXPECT_EQ(safe_text("\xc2\x9b"
                        "31m"),
              "\\xc2\\x9b31m"); // C1: the one-character CSI
    EXPECT_EQ(safe_text("x\u202ey"), "x\\xe2\\x80\\xaey");
    EXPECT_EQ(safe_text("\xff\xc3"), "\\xff\\xc3");
    EXPECT_EQ(safe_text("\xc0\xaf"), "\\xc0\\xaf");          // over-long "/"
    EXPECT_EQ(safe_text("\xed\xa0\x80"), "\\xed\\xa0\\x80"); // surrogate
}

TEST_F(CliText, WidthCountsColumns) {
    EXPECT_EQ(display_width("abc"), 3);
    EXPECT_EQ(display_width("grüße"), 5);
    EXPECT_EQ(display_width("日本"), 4);
    EXPECT_EQ(display_width("e\u0301"), 1);
    EXPECT_EQ(cut_to_width("日本語", 4), "日…");
    EXPECT_EQ(cut_to_width("abc", 3), "abc");
    EXPECT_EQ(cut_to_width("abcd", 3), "ab…");
    EXPECT_EQ(cut_to_width("abcd", 0), "");
}

TEST_F(CliText, HumanUnits) {
    EXPECT_EQ(human_count(999), "999");
    EXPECT_EQ(human_count(134'515'008), "135M");
    EXPECT_EQ(human_count(8'030'261'248), "8.03B");

    EXPECT_EQ(human_age(milliseconds(-5000)), "just now");
    EXPECT_EQ(human_age(seconds(59)), "59 seconds ago");
    EXPECT_EQ(human_age(seconds(60)), "1 minute ago");
    EXPECT_EQ(human_age(minutes(3)), "3 minutes ago");
    EXPECT_EQ(human_age(hours(49)), "2 days ago");
    EXPECT_EQ(human_age(hours(24 * 800)), "2 years ago");

    EXPECT_EQ(human_duration(milliseconds(4250)), "4.2s");
    EXPECT_EQ(human_duration(seconds(185)), "3m 5s");
    EXPECT_EQ(human_duration(minutes(130)), "2h 10m");
    EXPECT_EQ(human_duration(hours(76)), "3d 4h");

    EXPECT_EQ(short_digest("sha256:0123456789abcdef"), "0123456789ab");
}

} // namespace
} // namespace strata::cli
