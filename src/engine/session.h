#pragma once

#include "base/status.h"
#include "engine/model.h"
#include "engine/sampling.h"

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace strata::engine {

// Zero means the default.
struct SessionOptions {
    int32_t context_tokens = 0; // the model's, at most kDefaultContextTokens
    int32_t batch_tokens = 0;   // kDefaultBatchTokens; an embedding is always computed in one batch
    int32_t threads = 0;        // physical cores
    bool embeddings = false;
};

struct GenerateOptions {
    SamplingOptions sampling;
    int32_t max_tokens = 0; // 0: until the end of the text or of the context
    bool reuse = true;      // whether the tokens that the prompt shares with the last text are left in the KV
};

struct GenerateStats {
    int32_t prompt_tokens = 0;
    int32_t reused_tokens = 0;
    int32_t generated_tokens = 0;
    double prompt_ms = 0;
    double generate_ms = 0;
};

// One sequence of tokens over a model, with its KV. One thread at a time, except for cancel.
class Session {
public:
    using OnToken = std::function<bool(llama_token token, const std::string & text)>;

    // kInvalidArgument for an option or a model that does not do what is asked, kResourceExhausted when the KV does not
    // fit.
    static absl::StatusOr<std::unique_ptr<Session>> open(std::shared_ptr<const Model> model,
                                                         const SessionOptions & options);
    ~Session();

    // Continues the prompt; `on_token` gets each token, the end of the text excluded, and ends the generation with
    // false. *stats is right also when the call fails with kCancelled. kInvalidArgument when the prompt does not fit or
    // the session is in use.
    absl::Status generate(std::string_view prompt, const GenerateOptions & options, const OnToken & on_token,
                          GenerateStats * stats);

    // The embedding of text, pooled as the model says (mean, when it says nothing), of length 1.
    // It has embedding_size numbers.
    absl::StatusOr<std::vector<float>> embed(std::string_view text);
    size_t embedding_size() const { return llama_model_n_embd_out(model_->get()); }

    // Ends the running call with kCancelled, in the middle of a decode on a CPU. Without a running call it does
    // nothing.
    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }

private:
    // Makes the session this call's, or fails when a call runs already; a new call is not cancelled yet.
    class Use;

    Session(std::shared_ptr<const Model> model, const SessionOptions & options)
        : model_(std::move(model))
        , options_(options) {}
    absl::Status create_context();
    absl::StatusOr<std::vector<llama_token>> tokenize_input(std::string_view text, std::string_view what) const;
    // Leaves at most `wanted` tokens in the KV; the number that stays.
    size_t keep_in_kv(size_t wanted);
    absl::Status decode(std::span<const llama_token> tokens);
    absl::Status prefill(std::span<const llama_token> tokens, size_t kept);
    absl::Status decode_status(int32_t code, std::string_view doing) const;

    std::shared_ptr<const Model> model_;
    SessionOptions options_; // defaults resolved
    llama_context * context_ = nullptr;
    std::vector<llama_token> in_kv_; // the tokens whose KV the context holds, by position
    std::atomic<bool> in_use_ = false;
    std::atomic<bool> cancelled_ = false;
};

} // namespace strata::engine
