#include "engine/sampling.h"

#include "engine/grammar_check.h"
#include "engine/log.h"

#include <fmt/format.h>
#include <sampling.h>

#include <cmath>

namespace strata::engine {

namespace {

constexpr float kMaxTemperature = 100;
constexpr float kMinRepeatPenalty = 0.01f, kMaxRepeatPenalty = 100;

absl::Status out_of_range(std::string_view name, float value, std::string_view range) {
    return absl::InvalidArgumentError(fmt::format("{} is {}; it must be {}", name, value, range));
}

bool within(float value, float low, float high) { // false for NaN
    return value >= low && value <= high;
}

absl::Status bad_grammar(std::string_view reason) {
    return absl::InvalidArgumentError(fmt::format("the grammar can't be used: {}", reason));
}

struct FreeSampler {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};

absl::Status check(const SamplingOptions & options) {
    if (!within(options.temperature, 0, kMaxTemperature)) {
        return out_of_range("temperature", options.temperature, "from 0 (greedy) to 100");
    }
    if (options.top_k < 0) {
        return absl::InvalidArgumentError(fmt::format("top_k is {}; it must not be negative", options.top_k));
    }
    if (!within(options.top_p, 0, 1)) return out_of_range("top_p", options.top_p, "from 0 to 1");
    if (!within(options.min_p, 0, 1)) return out_of_range("min_p", options.min_p, "from 0 to 1");
    if (options.repeat_penalty != 0 && !within(options.repeat_penalty, kMinRepeatPenalty, kMaxRepeatPenalty)) {
        return out_of_range("repeat_penalty", options.repeat_penalty, "0 (off) or from 0.01 to 100");
    }
    return check_grammar(options.grammar);
}

// The filters that are on, in llama.cpp's order.
common_params_sampling to_llama(const SamplingOptions & options) {
    common_params_sampling params;
    params.no_perf = true;
    // LLAMA_DEFAULT_SEED stands for a random one; here equal seeds give equal text without an exception.
    params.seed = options.seed == LLAMA_DEFAULT_SEED ? LLAMA_DEFAULT_SEED - 1 : options.seed;
    params.temp = options.temperature;
    params.top_k = options.top_k;
    params.top_p = options.top_p;
    params.min_p = options.min_p;
    params.penalty_repeat = options.repeat_penalty == 0 ? 1 : options.repeat_penalty;
    params.samplers.clear();
    if (params.penalty_repeat != 1) params.samplers.push_back(COMMON_SAMPLER_TYPE_PENALTIES);
    if (options.temperature == 0) {
        params.top_k = 1; // one candidate is left, so that nothing is drawn
        params.samplers.push_back(COMMON_SAMPLER_TYPE_TOP_K);
    } else {
        if (options.top_k > 0) params.samplers.push_back(COMMON_SAMPLER_TYPE_TOP_K);
        if (options.top_p > 0 && options.top_p < 1) params.samplers.push_back(COMMON_SAMPLER_TYPE_TOP_P);
        if (options.min_p > 0) params.samplers.push_back(COMMON_SAMPLER_TYPE_MIN_P);
        params.samplers.push_back(COMMON_SAMPLER_TYPE_TEMPERATURE);
    }
    if (!options.grammar.empty()) params.grammar = common_grammar(COMMON_GRAMMAR_TYPE_USER, options.grammar);
    return params;
}

} // namespace

absl::StatusOr<std::unique_ptr<Sampler>> Sampler::make(const llama_model * model, const SamplingOptions & options) {
    STRATA_RETURN_IF_ERROR(check(options));
    common_params_sampling params = to_llama(options);
    ErrorCapture errors;
    try {
        if (!options.grammar.empty()) {
            // Compiled here first, as common_sampler_init loses what it made before it meets a grammar that is wrong.
            const std::unique_ptr<llama_sampler, FreeSampler> compiled(
                llama_sampler_init_grammar(llama_model_get_vocab(model), options.grammar.c_str(), "root"));
            if (compiled == nullptr) return bad_grammar(errors.reason("llama.cpp can't parse it"));
        }
        return std::unique_ptr<Sampler>(new Sampler(common_sampler_init(model, params)));
    } catch (const std::exception & e) {
        return bad_grammar(errors.reason(e.what()));
    }
}

Sampler::~Sampler() {
    common_sampler_free(sampler_);
}

void Sampler::accept_prompt(std::span<const llama_token> tokens) {
    for (const llama_token token : tokens) common_sampler_accept(sampler_, token, /*is_generated=*/false);
}

absl::StatusOr<llama_token> Sampler::sample(llama_context * context) {
    try {
        const llama_token token = common_sampler_sample(sampler_, context, /*idx=*/-1);
        common_sampler_accept(sampler_, token, /*is_generated=*/true);
        return token;
    } catch (const std::exception & e) {
        return absl::InternalError(fmt::format("no token fits the grammar: {}", e.what()));
    }
}

} // namespace strata::engine
