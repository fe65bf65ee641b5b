#include "cli/chat.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace strata::cli {
namespace {

v1::ServeResponse head(int status) {
    v1::ServeResponse part;
    part.mutable_head()->set_status(status);
    return part;
}

v1::ServeResponse body(std::string_view bytes) {
    v1::ServeResponse part;
    part.set_data(std::string(bytes));
    return part;
}

std::string event(const Json & json) {
    return "data: " + json.dump() + "\n\n";
}

std::string delta(const Json & fields, const Json & finish_reason = nullptr) {
    return event({{"choices", Json::array({{{"index", 0}, {"delta", fields}, {"finish_reason", finish_reason}}})}});
}

// What an answer showed, thoughts in brackets.
struct Shown {
    std::string text;
    ChatAnswer answer{[this](std::string_view piece, bool thinking) {
        text += thinking ? fmt::format("[{}]", piece) : std::string(piece);
    }};
};

const std::string kWhole = delta({{"role", "assistant"}, {"content", nullptr}}) + delta({{"reasoning_content", "hm"}}) +
                           delta({{"content", "Grüße"}}) + delta({{"content", "!"}}) + delta(Json::object(), "stop") +
                           event({{"choices", Json::array()},
                                  {"usage", {{"prompt_tokens", 37}, {"completion_tokens", 2}}},
                                  {"timings", {{"prompt_ms", 12.5}, {"predicted_per_second", 140.25}}}}) +
                           "data: [DONE]\n\n";

TEST(Chat, AnswerIsReadWhereverItIsCut) {
    for (size_t cut = 0; cut <= kWhole.size(); ++cut) {
        Shown shown;
        ASSERT_TRUE(shown.answer.take(head(200)).ok());
        ASSERT_TRUE(shown.answer.take(body(kWhole.substr(0, cut))).ok());
        ASSERT_TRUE(shown.answer.take(body(kWhole.substr(cut))).ok());
        ASSERT_TRUE(shown.answer.finish().ok());
        ASSERT_EQ(shown.text, "[hm]Grüße!");
        ASSERT_EQ(shown.answer.text(), "Grüße!");
        ASSERT_EQ(shown.answer.finish_reason(), "stop");
        ASSERT_EQ(shown.answer.stats().prompt_tokens, 37);
        ASSERT_EQ(shown.answer.stats().generated_tokens, 2);
        ASSERT_DOUBLE_EQ(shown.answer.stats().tokens_per_second, 140.25);
    }
}

TEST(Chat, RefusalsBecomeStatuses) {
    Shown shown;
    ASSERT_TRUE(shown.answer.take(head(404)).ok());
    ASSERT_TRUE(shown.answer.take(body(R"({"error":{"message":"no model )")).ok());
    ASSERT_TRUE(shown.answer.take(body(R"(\"x\"","code":404}})")).ok());
    EXPECT_EQ(shown.answer.finish(), absl::NotFoundError("no model \"x\""));

    EXPECT_EQ(api_error(500, "plain text"), absl::InternalError("plain text"));
    EXPECT_EQ(api_error(503, R"({"error":"busy"})"), absl::UnavailableError("busy"));
    EXPECT_FALSE(api_error(500, "").message().empty());
}

TEST(Chat, ErrorsInTheStreamAndCutStreamsAreErrors) {
    Shown failed;
    ASSERT_TRUE(failed.answer.take(head(200)).ok());
    EXPECT_EQ(
        failed.answer.take(body(delta({{"content", "a"}}) + event({{"error", {{"code", 503}, {"message", "died"}}}}))),
        absl::UnavailableError("died"));
    EXPECT_EQ(failed.text, "a");

    Shown cut;
    ASSERT_TRUE(cut.answer.take(head(200)).ok());
    ASSERT_TRUE(cut.answer.take(body(delta({{"content", "a"}}))).ok());
    EXPECT_FALSE(cut.answer.finish().ok());
}

TEST(Chat, StrangeAnswersAreNoCrash) {
    for (const char * strange : {"null", "[]", "1", "{}", R"({"choices":1})", R"({"choices":[1]})",
                                 R"({"choices":[{"delta":[],"finish_reason":7}]})", R"({"usage":[],"timings":"x"})",
                                 R"({"usage":{"prompt_tokens":-1,"completion_tokens":1e300}})", "{", "\xff"}) {
        Shown shown;
        ASSERT_TRUE(shown.answer.take(head(200)).ok());
        const absl::Status status = shown.answer.take(body("data: " + std::string(strange) + "\n\n"));
        EXPECT_EQ(shown.text, "") << strange << status;
        EXPECT_EQ(shown.answer.stats().prompt_tokens, 0) << strange;
    }
}

TEST(Chat, BodyHasOnlyWhatWasAskedFor) {
    const Json plain = Json::parse(chat_body("m", {{"user", "hi"}}, {}));
    EXPECT_EQ(plain["messages"][0]["content"], "hi");
    EXPECT_EQ(plain["stream"], true);
    EXPECT_FALSE(plain.contains("temperature"));
    EXPECT_FALSE(plain.contains("response_format"));

    ChatOptions options;
    options.temperature = 0.2;
    options.stop = {"a", "b"};
    options.json_schema = Json{{"type", "object"}};
    const Json full = Json::parse(chat_body("m", {{"user", "\xff"}}, options)); // not UTF-8, but still JSON
    EXPECT_EQ(full["temperature"], 0.2);
    EXPECT_EQ(full["stop"].size(), 2);
    EXPECT_EQ(full["response_format"]["json_schema"]["schema"]["type"], "object");
}

} // namespace
} // namespace strata::cli
