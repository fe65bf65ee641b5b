#include "cli/sse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace strata::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<SseEvent> parse(std::initializer_list<std::string_view> pieces) {
    SseParser parser;
    std::vector<SseEvent> all;
    for (const std::string_view piece : pieces) {
        auto events = parser.feed(piece);
        EXPECT_TRUE(events.ok()) << events.status();
        if (events.ok()) all.insert(all.end(), events->begin(), events->end());
    }
    return all;
}

TEST(Sse, EventsEndAtAnEmptyLine) {
    EXPECT_THAT(parse({"data: one\n\ndata: two\n\n"}), ElementsAre(SseEvent{"", "one"}, SseEvent{"", "two"}));
    EXPECT_THAT(parse({"data: not yet\n"}), IsEmpty());
}

TEST(Sse, FieldsAreReadAsTheStandardSays) {
    EXPECT_THAT(parse({"event: error\ndata: x\n\n"}), ElementsAre(SseEvent{"error", "x"}));
    EXPECT_THAT(parse({"data: a\ndata: b\n\n"}), ElementsAre(SseEvent{"", "a\nb"}));
    EXPECT_THAT(parse({"data:no space\n\n"}), ElementsAre(SseEvent{"", "no space"}));
    EXPECT_THAT(parse({"data:  two spaces\n\n"}), ElementsAre(SseEvent{"", " two spaces"}));
    EXPECT_THAT(parse({"data\n\n"}), ElementsAre(SseEvent{"", ""}));
    EXPECT_THAT(parse({": a comment\nid: 7\nretry: 5\ndata: x\n\n"}), ElementsAre(SseEvent{"", "x"}));
    EXPECT_THAT(parse({"event: ping\n\ndata: x\n\n"}), ElementsAre(SseEvent{"", "x"}));
    EXPECT_THAT(parse({"\xef\xbb\xbf"
                       "data: x\n\n"}),
                ElementsAre(SseEvent{"", "x"}));
}

TEST(Sse, AllLineEndings) {
    EXPECT_THAT(parse({"data: a\r\n\r\ndata: b\r\rdata: c\n\n"}),
                ElementsAre(SseEvent{"", "a"}, SseEvent{"", "b"}, SseEvent{"", "c"}));
    EXPECT_THAT(parse({"data: a\r", "\n\r", "\ndata: b\r", "\r"}), ElementsAre(SseEvent{"", "a"}, SseEvent{"", "b"}));
}

TEST(Sse, AnyCutGivesTheSameEvents) {
    const std::string stream =
        "\xef\xbb\xbf: hello\r\n\r\ndata: {\"text\":\"gr\xc3\xbc\xc3\x9f\"}\n\nevent: error\rdata: a\r\n"
        "data: b\r\rdata: [DONE]\n\n";
    const std::vector<SseEvent> whole = parse({stream});
    ASSERT_EQ(whole.size(), 3);
    for (size_t i = 0; i <= stream.size(); ++i) {
        for (size_t j = i; j <= stream.size(); ++j) {
            const std::string_view view = stream;
            ASSERT_EQ(parse({view.substr(0, i), view.substr(i, j - i), view.substr(j)}), whole) << i << " " << j;
        }
    }
}

TEST(Sse, AnEndlessEventIsRefused) {
    SseParser parser;
    const std::string piece(1 << 20, 'x');
    ASSERT_TRUE(parser.feed("data: ").ok());
    absl::Status status;
    for (int i = 0; i < 20 && status.ok(); ++i) status = parser.feed(piece).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);

    SseParser many_lines;
    status = absl::OkStatus();
    for (int i = 0; i < 20 && status.ok(); ++i) status = many_lines.feed("data: " + piece + "\n").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

} // namespace
} // namespace strata::cli
