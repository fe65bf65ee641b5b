#pragma once

#include "base/status.h"
#include "cli/client.h"
#include "cli/output.h"
#include "cli/sse.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace strata::cli {

struct ChatMessage {
    std::string role; // "system", "user", "assistant"
    std::string content;
};

// What a request asks for; what is not set is left to the model's defaults.
struct ChatOptions {
    std::optional<double> temperature;
    std::optional<double> top_p;
    std::optional<int64_t> max_tokens;
    std::optional<int64_t> seed;
    std::vector<std::string> stop;
    std::optional<Json> json_schema; // the answer is a JSON value that matches it
};

// The body of a streaming POST /v1/chat/completions.
std::string chat_body(const std::string & model, const std::vector<ChatMessage> & messages,
                      const ChatOptions & options);

struct ChatStats {
    int64_t prompt_tokens = 0; // all of the prompt, the part that was still in the cache included
    int64_t generated_tokens = 0;
    double prompt_ms = 0;         // of the part that was not
    double tokens_per_second = 0; // of the answer; 0: not known
};

// "52 tokens, 143 tokens/s": one line for people.
std::string describe(const ChatStats & stats);

// Takes an answer of /v1/chat/completions apart, whole or as events.
class ChatAnswer {
public:
    // Called with each piece of the answer; `thinking`: of what the model thinks before it answers.
    using OnText = std::function<void(std::string_view text, bool thinking)>;
    explicit ChatAnswer(OnText on_text)
        : on_text_(std::move(on_text)) {}

    // One message of the daemon. An error that it carries becomes the status.
    absl::Status take(const v1::ServeResponse & part);
    // Once all parts are taken: whether the answer is complete.
    absl::Status finish();

    const std::string & text() const { return text_; } // without thoughts
    const std::string & finish_reason() const { return finish_reason_; }
    const ChatStats & stats() const { return stats_; }

private:
    absl::Status take_event(const SseEvent & event);

    OnText on_text_;
    SseParser parser_;
    int http_status_ = 0;
    std::string error_body_;
    std::string text_;
    std::string finish_reason_;
    ChatStats stats_;
};

// The sentence in an error body of OpenAI's shape ({"error":{"message":…}}); the body itself when it has another one.
absl::Status api_error(int http_status, std::string_view body);

} // namespace strata::cli
