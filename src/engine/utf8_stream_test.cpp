#include "engine/utf8_stream.h"

#include <gtest/gtest.h>

#include <vector>

namespace strata::engine {
namespace {

constexpr const char * kReplacement = "\xEF\xBF\xBD";

TEST(Utf8Stream, HoldsBackUntilACharacterIsComplete) {
    const std::string text = "aß世🙂z";
    for (size_t piece = 1; piece <= text.size(); ++piece) {
        Utf8Stream stream;
        std::string joined;
        for (size_t i = 0; i < text.size(); i += piece) {
            const std::string part = stream.push(text.substr(i, piece));
            EXPECT_EQ(part.find(kReplacement), std::string::npos);
            joined += part;
        }
        EXPECT_EQ(joined, text);
        EXPECT_EQ(stream.pending(), "");
    }
    Utf8Stream stream;
    EXPECT_EQ(stream.push("\xF0\x9F\x99"), "");
    EXPECT_EQ(stream.pending(), "\xF0\x9F\x99");
    EXPECT_EQ(stream.push("\x82!"), "🙂!");
}

TEST(Utf8Stream, ReplacesWhatCanNotBecomeACharacter) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"\x80", kReplacement},                                 // a continuation alone
        {"\xC0\xAF", std::string(kReplacement) + kReplacement}, // overlong
        {"\xE0\x80\x80", std::string(kReplacement) + kReplacement + kReplacement},
        {"\xED\xA0\x80", std::string(kReplacement) + kReplacement + kReplacement}, // a surrogate
        {"\xF4\x90\x80\x80", std::string(kReplacement) + kReplacement + kReplacement + kReplacement},
        {"\xFF", kReplacement},
        {"\xE4\xB8 x", std::string(kReplacement) + " x"}, // cut by something else: one for the part
    };
    for (const auto & [bytes, expected] : cases) {
        Utf8Stream stream;
        EXPECT_EQ(stream.push(bytes), expected);
    }
}

} // namespace
} // namespace strata::engine
