#include "engine/tokenizer.h"

#include "engine/limits.h"

#include <fmt/format.h>

namespace strata::engine {

absl::StatusOr<std::vector<llama_token>> tokenize(const llama_vocab * vocab, std::string_view text, bool add_special,
                                                  bool parse_special) {
    if (text.size() > kMaxTextBytes) {
        return absl::InvalidArgumentError(
            fmt::format("the text has {} bytes, the limit is {}", text.size(), kMaxTextBytes));
    }
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return absl::InvalidArgumentError("the model has no vocabulary");
    }
    const auto bytes = static_cast<int32_t>(text.size());
    std::vector<llama_token> tokens(text.size() / 2 + 16);
    try {
        int32_t count = 0;
        while ((count = llama_tokenize(vocab, text.data(), bytes, tokens.data(), static_cast<int32_t>(tokens.size()),
                                       add_special, parse_special)) < 0) {
            if (count == INT32_MIN) return absl::InvalidArgumentError("the text has too many tokens");
            tokens.resize(-count);
        }
        tokens.resize(count);
    } catch (const std::exception & e) { // text that is not UTF-8, for some vocabularies
        return absl::InvalidArgumentError(fmt::format("the text can't be tokenized: {}", e.what()));
    }
    return tokens;
}

absl::StatusOr<std::string> detokenize(const llama_vocab * vocab, std::span<const llama_token> tokens) {
    const int32_t vocab_size = llama_vocab_n_tokens(vocab);
    std::string text;
    for (const llama_token token : tokens) {
        if (token < 0 || token >= vocab_size) {
            return absl::InvalidArgumentError(
                fmt::format("{} is not a token of the model, which has {} of them", token, vocab_size));
        }
        text += token_bytes(vocab, token, /*control_tokens=*/true);
    }
    return text;
}

std::string token_bytes(const llama_vocab * vocab, llama_token token, bool control_tokens) {
    std::string bytes(32, '\0');
    int32_t length = 0;
    while ((length = llama_token_to_piece(vocab, token, bytes.data(), static_cast<int32_t>(bytes.size()), /*lstrip=*/0,
                                          control_tokens)) < 0) {
        bytes.resize(-length);
    }
    bytes.resize(length);
    return bytes;
}

} // namespace strata::engine
