#include "engine/answer.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace strata::engine {
namespace {

nlohmann::json parse(const std::string & text) {
    return nlohmann::json::parse(text, nullptr, false);
}

TEST(Answer, server_errors_are_corrected) {
    int status = 500;
    const std::string too_large =
        R"({"error":{"code":500,"message":"input (9 tokens) is too large to process.","type":"server_error"}})";
    EXPECT_EQ(parse(corrected_error("/v1/embeddings", status, too_large))["error"]["type"], "invalid_request_error");
    EXPECT_EQ(status, 400);

    status = 400;
    const std::string exceeds =
        R"({"error":{"code":400,"message":"long","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":4}})";
    const auto kept = parse(corrected_error("/v1/completions", status, exceeds));
    EXPECT_EQ(kept["error"]["type"], "exceed_context_size_error");
    EXPECT_EQ(kept["error"]["n_ctx"], 4);
    EXPECT_EQ(parse(corrected_error("/v1/messages", status, exceeds))["error"]["type"], "invalid_request_error");

    status = 500;
    EXPECT_EQ(parse(corrected_error("/x", status, "no JSON"))["error"]["message"], "no JSON");
}

TEST(Answer, error_events_speak_anthropic) {
    const std::string event = "event: error\ndata: {\"code\":500,\"message\":\"boom\",\"type\":\"server_error\"}\n\n";
    const std::string corrected = corrected_event("/v1/messages", event);
    EXPECT_TRUE(corrected.starts_with("event: error\ndata: {\"type\":\"error\"")) << corrected;
    EXPECT_TRUE(corrected.ends_with("\n\n"));
    EXPECT_EQ(corrected_event("/v1/chat/completions", event), event);
    EXPECT_EQ(corrected_event("/v1/messages", "event: ping\ndata: {}\n\n"), "event: ping\ndata: {}\n\n");
}

TEST(Answer, tokens_are_counted_from_usage_and_timings) {
    TokenCounter chat;
    chat.read(R"(data: {"choices":[{"delta":{"content":"hi"}}]})");
    EXPECT_EQ(chat.generated_tokens(), 0);
    chat.read(R"(data: {"choices":[],"usage":{"completion_tokens":7,"prompt_tokens":31,"total_tokens":38},)"
              R"("timings":{"cache_n":30,"prompt_n":1,"predicted_n":7}})");
    EXPECT_EQ(chat.prompt_tokens(), 31);
    EXPECT_EQ(chat.generated_tokens(), 7);

    TokenCounter anthropic;
    anthropic.read(R"(data: {"message":{"usage":{"input_tokens":12,"output_tokens":0}},"type":"message_start"})");
    anthropic.read(R"(data: {"usage":{"output_tokens":5},"type":"message_delta"})");
    EXPECT_EQ(anthropic.prompt_tokens(), 12);
    EXPECT_EQ(anthropic.generated_tokens(), 5);

    TokenCounter text; // what the model says is not taken for numbers
    text.read(R"(data: {"content":"\"usage\":{\"completion_tokens\":99}"})");
    EXPECT_EQ(text.generated_tokens(), 0);
}

} // namespace
} // namespace strata::engine
