#include "engine/session.h"

#include "engine/limits.h"
#include "engine/log.h"
#include "engine/tokenizer.h"
#include "engine/utf8_stream.h"

#include <common.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

namespace strata::engine {

namespace {

using SteadyClock = std::chrono::steady_clock;

double ms_since(SteadyClock::time_point start) {
    return std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
}

int32_t default_threads() {
    const auto usable = static_cast<int32_t>(std::thread::hardware_concurrency()); // heeds the process' affinity
    return std::clamp(common_cpu_get_num_math(), 1, std::max(usable, 1));
}

absl::StatusOr<int32_t> value_or_default(int32_t value, int32_t otherwise, int32_t most, std::string_view name) {
    if (value < 0 || value > most) {
        return absl::InvalidArgumentError(
            fmt::format("{} is {}; it must be from 1 to {}, or 0 for the default of {}", name, value, most, otherwise));
    }
    return value == 0 ? otherwise : value;
}

absl::StatusOr<SessionOptions> resolve(const SessionOptions & given, const llama_model * model) {
    const int32_t trained = llama_model_n_ctx_train(model);
    const int32_t most = trained > 0 ? trained : kDefaultContextTokens;
    SessionOptions options = given;
    STRATA_ASSIGN_OR_RETURN(
        options.context_tokens,
        value_or_default(given.context_tokens, std::min(most, kDefaultContextTokens), most, "context_tokens"));
    STRATA_ASSIGN_OR_RETURN(options.batch_tokens,
                            value_or_default(given.batch_tokens, kDefaultBatchTokens, INT32_MAX, "batch_tokens"));
    STRATA_ASSIGN_OR_RETURN(options.threads,
                            value_or_default(given.threads, default_threads(), kMaxThreads, "threads"));
    // Pooling needs all tokens in one graph.
    options.batch_tokens =
        options.embeddings ? options.context_tokens : std::min(options.batch_tokens, options.context_tokens);
    return options;
}

} // namespace

class Session::Use {
public:
    explicit Use(Session & session)
        : session_(session)
        , owned_(!session.in_use_.exchange(true)) {
        if (owned_) session.cancelled_.store(false, std::memory_order_relaxed);
    }
    ~Use() {
        if (owned_) session_.in_use_.store(false);
    }
    absl::Status status() const {
        if (owned_) return absl::OkStatus();
        return absl::InvalidArgumentError("the session is in use by another call; open one session per thread");
    }

private:
    Session & session_;
    bool owned_;
};

absl::StatusOr<std::unique_ptr<Session>> Session::open(std::shared_ptr<const Model> model,
                                                       const SessionOptions & options) {
    const bool decodes = llama_model_has_decoder(model->get());
    if (llama_model_has_encoder(model->get()) && decodes) {
        return absl::InvalidArgumentError(fmt::format(
            "{} is an encoder-decoder model; sessions run decoders and encoders only", model->source().name()));
    }
    STRATA_ASSIGN_OR_RETURN(const SessionOptions resolved, resolve(options, model->get()));
    std::unique_ptr<Session> session(new Session(std::move(model), resolved));
    STRATA_RETURN_IF_ERROR(session->create_context());
    return session;
}

absl::Status Session::create_context() {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = options_.context_tokens;
    params.n_batch = options_.batch_tokens;
    params.n_ubatch = options_.batch_tokens;
    params.n_seq_max = 1;
    params.n_threads = options_.threads;
    params.n_threads_batch = options_.threads;
    params.no_perf = true;
    params.embeddings = options_.embeddings;
    params.abort_callback = [](void * self) {
        return static_cast<Session *>(self)->cancelled_.load(std::memory_order_relaxed);
    };
    params.abort_callback_data = this;

    const std::string & name = model_->source().name();
    ErrorCapture errors;
    context_ = llama_init_from_model(model_->get(), params);
    if (context_ != nullptr && options_.embeddings && llama_pooling_type(context_) == LLAMA_POOLING_TYPE_NONE) {
        llama_free(context_);
        params.pooling_type = LLAMA_POOLING_TYPE_MEAN;
        context_ = llama_init_from_model(model_->get(), params);
    }
    if (context_ == nullptr) {
        return absl::ResourceExhaustedError(
            fmt::format("cannot open a session of {} tokens for {}: {}", options_.context_tokens, name,
                        errors.reason("llama.cpp gives no reason; fewer context_tokens need less memory")));
    }
    if (options_.embeddings && llama_pooling_type(context_) == LLAMA_POOLING_TYPE_RANK) {
        return absl::InvalidArgumentError(fmt::format("{} ranks texts and makes no embeddings", name));
    }
    if (!options_.embeddings && llama_get_memory(context_) == nullptr) {
        return absl::InvalidArgumentError(
            fmt::format("{} makes embeddings only; open the session with embeddings set", name));
    }
    return absl::OkStatus();
}

Session::~Session() {
    if (context_ != nullptr) llama_free(context_);
}

absl::StatusOr<std::vector<llama_token>> Session::tokenize_input(std::string_view text, std::string_view what) const {
    STRATA_ASSIGN_OR_RETURN(std::vector<llama_token> tokens,
                            tokenize(model_->vocab(), text, /*add_special=*/true, /*parse_special=*/true));
    if (tokens.empty()) return absl::InvalidArgumentError(fmt::format("the {} is empty", what));
    return tokens;
}

size_t Session::keep_in_kv(size_t wanted) {
    llama_memory_t memory = llama_get_memory(context_);
    size_t kept = std::min(wanted, in_kv_.size());
    if (kept > 0) {
        // A sliding window has dropped the oldest positions, which tokens further back would need again. A recurrent
        // state stands for its last position only.
        const auto window = std::max(llama_model_n_swa(model_->get()), 1);
        const llama_pos oldest_needed = std::max<llama_pos>(0, static_cast<llama_pos>(kept) - window);
        if (llama_memory_seq_pos_min(memory, 0) > oldest_needed) kept = 0;
    }
    // A recurrent state can't go back: removing a part of it fails, and the sequence starts anew.
    if (kept == 0 || !llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(kept), -1)) {
        llama_memory_clear(memory, /*data=*/false);
        kept = 0;
    }
    in_kv_.resize(kept);
    return kept;
}

absl::Status Session::decode_status(int32_t code, std::string_view doing) const {
    constexpr int32_t kAborted = 2; // by the abort callback
    if (code == kAborted || cancelled_.load(std::memory_order_relaxed)) return absl::CancelledError("cancelled");
    if (code == 1) return absl::ResourceExhaustedError(fmt::format("{}: the context is full", doing));
    return absl::InternalError(fmt::format("{}: llama_decode failed with code {}", doing, code));
}

absl::Status Session::decode(std::span<const llama_token> tokens) {
    ErrorCapture errors;
    // llama.cpp takes the tokens through a pointer to non-const, and does not change them.
    const llama_batch batch =
        llama_batch_get_one(const_cast<llama_token *>(tokens.data()), static_cast<int32_t>(tokens.size()));
    const int32_t code = llama_decode(context_, batch);
    if (code == 0) {
        in_kv_.insert(in_kv_.end(), tokens.begin(), tokens.end());
        return absl::OkStatus();
    }
    keep_in_kv(in_kv_.size()); // of a failed batch, a part may be in the KV
    return decode_status(code, errors.reason("computing tokens"));
}

absl::Status Session::prefill(std::span<const llama_token> tokens, size_t kept) {
    const auto batch = static_cast<size_t>(options_.batch_tokens);
    for (size_t done = kept; done < tokens.size(); done += batch) {
        if (cancelled_.load(std::memory_order_relaxed)) return absl::CancelledError("cancelled");
        STRATA_RETURN_IF_ERROR(decode(tokens.subspan(done, std::min(batch, tokens.size() - done))));
    }
    return absl::OkStatus();
}

absl::Status Session::generate(std::string_view prompt, const GenerateOptions & options, const OnToken & on_token,
                               GenerateStats * stats) {
    *stats = {};
    const Use use(*this);
    STRATA_RETURN_IF_ERROR(use.status());
    if (options_.embeddings) {
        return absl::InvalidArgumentError("the session was opened for embeddings; open another one to generate");
    }
    if (options.max_tokens < 0) {
        return absl::InvalidArgumentError(fmt::format("max_tokens is {}; it must not be negative", options.max_tokens));
    }
    STRATA_ASSIGN_OR_RETURN(const auto sampler, Sampler::make(model_->get(), options.sampling));
    STRATA_ASSIGN_OR_RETURN(const std::vector<llama_token> tokens, tokenize_input(prompt, "prompt"));
    const auto context_tokens = static_cast<size_t>(options_.context_tokens);
    if (tokens.size() >= context_tokens) {
        return absl::InvalidArgumentError(
            fmt::format("the prompt has {} tokens and does not fit the context of {}, of which one is for the answer",
                        tokens.size(), context_tokens));
    }

    const auto prompt_start = SteadyClock::now();
    const auto [differs, unused] = std::mismatch(tokens.begin(), tokens.end(), in_kv_.begin(), in_kv_.end());
    const size_t shared = options.reuse ? static_cast<size_t>(differs - tokens.begin()) : 0;
    // The last token is always computed, for its logits.
    const size_t kept = keep_in_kv(std::min(shared, tokens.size() - 1));
    stats->prompt_tokens = static_cast<int32_t>(tokens.size());
    stats->reused_tokens = static_cast<int32_t>(kept);
    sampler->accept_prompt(tokens);
    STRATA_RETURN_IF_ERROR(prefill(tokens, kept));
    stats->prompt_ms = ms_since(prompt_start);

    const auto generate_start = SteadyClock::now();
    const size_t room = context_tokens - tokens.size(); // the last token of the text needs no KV, but keeps it honest
    const size_t most = options.max_tokens == 0 ? room : std::min<size_t>(room, options.max_tokens);
    Utf8Stream utf8;
    for (size_t i = 0; i < most; ++i) {
        STRATA_ASSIGN_OR_RETURN(const llama_token token, sampler->sample(context_));
        if (llama_vocab_is_eog(model_->vocab(), token)) break;
        ++stats->generated_tokens;
        const std::string text = utf8.push(token_bytes(model_->vocab(), token, /*control_tokens=*/false));
        const bool more = on_token(token, text);
        stats->generate_ms = ms_since(generate_start);
        if (cancelled_.load(std::memory_order_relaxed)) return absl::CancelledError("cancelled");
        if (!more) break;
        if (i + 1 < most) STRATA_RETURN_IF_ERROR(decode({&token, 1}));
    }
    stats->generate_ms = ms_since(generate_start);
    return absl::OkStatus();
}

absl::StatusOr<std::vector<float>> Session::embed(std::string_view text) {
    const Use use(*this);
    STRATA_RETURN_IF_ERROR(use.status());
    if (!options_.embeddings) {
        return absl::InvalidArgumentError("the session was opened to generate; open one with embeddings set");
    }
    STRATA_ASSIGN_OR_RETURN(std::vector<llama_token> tokens, tokenize_input(text, "text"));
    if (tokens.size() > static_cast<size_t>(options_.context_tokens)) {
        return absl::InvalidArgumentError(fmt::format("the text has {} tokens and does not fit the context of {}",
                                                      tokens.size(), options_.context_tokens));
    }
    if (llama_memory_t memory = llama_get_memory(context_)) llama_memory_clear(memory, /*data=*/false);

    ErrorCapture errors;
    const int32_t code = llama_decode( // llama.cpp goes on to llama_encode where the model has no KV
        context_, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size())));
    if (code != 0) return decode_status(code, errors.reason("computing the embedding"));
    const float * pooled = llama_get_embeddings_seq(context_, 0);
    if (pooled == nullptr) return absl::InternalError("llama.cpp returned no embedding");

    std::vector<float> embedding(pooled, pooled + embedding_size());
    double square = 0;
    for (const float value : embedding) square += static_cast<double>(value) * value;
    if (!(square > 0) || !std::isfinite(square)) {
        return absl::InternalError("the model's embedding of the text is not a direction (zero or not finite)");
    }
    const double scale = 1 / std::sqrt(square);
    for (float & value : embedding) value = static_cast<float>(value * scale);
    return embedding;
}

} // namespace strata::engine
