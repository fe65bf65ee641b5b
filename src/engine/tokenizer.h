#pragma once

#include "base/status.h"

#include <llama.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace strata::engine {

// Thread-safe: a vocabulary does not change.

// add_special: the tokens that the model wants around a text (BOS, CLS, …). parse_special: whether the text of a
// control token becomes that token. kInvalidArgument for a text beyond kMaxTextBytes or that the tokenizer refuses.
absl::StatusOr<std::vector<llama_token>> tokenize(const llama_vocab * vocab, std::string_view text, bool add_special,
                                                  bool parse_special);
// The bytes of the tokens one after the other, as a stream of generated tokens would show them, control tokens
// included.
absl::StatusOr<std::string> detokenize(const llama_vocab * vocab, std::span<const llama_token> tokens);
// The bytes of one token; empty for a control token unless asked for.
std::string token_bytes(const llama_vocab * vocab, llama_token token, bool control_tokens);

} // namespace strata::engine
