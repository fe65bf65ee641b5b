#pragma once

#include "base/status.h"

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace strata::engine {

// What a body is read as. kMessages: a chat that follows Anthropic's rules.
enum class BodyKind { kCompletion, kChat, kMessages, kInfill, kEmbedding, kRerank, kTokens, kOther };

// What the model can take, for checks that come before the work.
struct ModelBounds {
    int32_t slots = 1;
    int32_t vocab_tokens = 0;
    size_t max_prompt_bytes = 0; // beyond it a text can't fit the context, whatever it tokenizes to
    int32_t embedding_size = 0;  // numbers in a vector
};

struct CheckedRequest {
    int32_t width = 1; // slots that it holds at the same time; slots + 1: all, and nobody beside
    bool stream = false;
};

// Looks at the body of a request before llama.cpp's server does: what would abort, hang or exhaust the server, would
// wrap around in it, or would be clamped or ignored by it without a word, is refused with kInvalidArgument and a
// sentence that names the field, which field_of() gives too. kOutOfRange: a text that is longer than the context.
// Everything else is left to the server, which answers it well. The cases that it guards against stand beside each
// check.
absl::StatusOr<CheckedRequest> check_request(BodyKind kind, std::string_view body, const ModelBounds & bounds);

} // namespace strata::engine
