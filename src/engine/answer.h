#pragma once

#include <cstdint>
#include <string>
#include <string_view>

// What llama.cpp's server answers, made right: errors as the clients of an API expect them, and what is said about
// tokens.
namespace strata::engine {

// An error body of llama.cpp's server as the client should see it: Anthropic's shape where the path wants it, and a
// status that tells the client's mistakes from ours. Changes `http_status`.
std::string corrected_error(std::string_view path, int & http_status, std::string body);

// The same for a piece of an event stream; anything but an error event comes back as it is.
std::string corrected_event(std::string_view path, std::string event);

// Adds up what the pieces of an answer say about tokens ("usage", "timings"), without parsing them: the keys can't
// occur inside of text, where a quote is escaped.
class TokenCounter {
public:
    void read(std::string_view piece);
    int32_t prompt_tokens() const { return prompt_tokens_; }
    int32_t generated_tokens() const { return generated_tokens_; }

private:
    int32_t prompt_tokens_ = 0;
    int32_t generated_tokens_ = 0;
};

} // namespace strata::engine
