#pragma once

#include "base/status.h"

#include <llama.h>

#include <memory>
#include <span>
#include <string>

struct common_sampler;

namespace strata::engine {

// Zero turns a filter off.
struct SamplingOptions {
    float temperature = 0; // 0: greedy
    int32_t top_k = 0;
    float top_p = 0;
    float min_p = 0;
    float repeat_penalty = 0; // over the last 64 tokens
    uint32_t seed = 0;        // every number is a seed of its own
    std::string grammar;      // GBNF; empty: none
};

// Chooses tokens with llama-common's sampler, which tries the grammar on the chosen token before it filters all of
// them. Not thread-safe.
class Sampler {
public:
    // kInvalidArgument names the option and its range, or says where the grammar is wrong.
    static absl::StatusOr<std::unique_ptr<Sampler>> make(const llama_model * model, const SamplingOptions & options);
    ~Sampler();

    // Tokens of the prompt count for the penalty.
    void accept_prompt(std::span<const llama_token> tokens);
    // The next token, from the logits of the last decode. kInternal when the grammar admits none.
    absl::StatusOr<llama_token> sample(llama_context * context);

private:
    explicit Sampler(common_sampler * sampler)
        : sampler_(sampler) {}
    common_sampler * sampler_;
};

} // namespace strata::engine
