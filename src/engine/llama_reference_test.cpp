// A session's tokens and embeddings are those of a plain loop over llama.cpp, for the same file.
#include "strata/strata.h"

#include <gtest/gtest.h>
#include <llama.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

fs::path cached_model(const char * file) {
    if (const char * cache = std::getenv("STRATA_CACHE")) return fs::path(cache) / "models" / file;
    if (const char * cache = std::getenv("XDG_CACHE_HOME")) return fs::path(cache) / "strata/models" / file;
    return fs::path(std::getenv("HOME")) / ".cache/strata/models" / file;
}

// llama.cpp used directly, as its simplest example does.
class Reference {
public:
    Reference(const fs::path & file, llama_context_params params) {
        llama_backend_init();
        llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
        ggml_backend_dev_t no_devices[] = {nullptr};
        llama_model_params model_params = llama_model_default_params();
        model_params.devices = no_devices;
        model_.reset(llama_model_load_from_file(file.c_str(), model_params));
        if (model_ == nullptr) return;
        params.n_threads = params.n_threads_batch = 1; // as few as do: ggml's threads spin
        context_.reset(llama_init_from_model(model_.get(), params));
    }
    bool ok() const { return context_ != nullptr; }

    std::vector<llama_token> tokenize(const std::string & text) const {
        std::vector<llama_token> tokens(text.size() + 16);
        tokens.resize(llama_tokenize(llama_model_get_vocab(model_.get()), text.data(),
                                     static_cast<int32_t>(text.size()), tokens.data(),
                                     static_cast<int32_t>(tokens.size()), true, true));
        return tokens;
    }

    std::vector<llama_token> greedy(const std::string & prompt, size_t count) {
        std::vector<llama_token> tokens = tokenize(prompt);
        std::vector<llama_token> generated;
        llama_batch batch = llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()));
        const int32_t vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
        while (llama_decode(context_.get(), batch) == 0) {
            const float * logits = llama_get_logits_ith(context_.get(), -1);
            const auto best = static_cast<llama_token>(std::max_element(logits, logits + vocab_size) - logits);
            if (llama_vocab_is_eog(llama_model_get_vocab(model_.get()), best)) break;
            generated.push_back(best);
            if (generated.size() == count) break;
            batch = llama_batch_get_one(&generated.back(), 1);
        }
        return generated;
    }

    std::vector<double> embedding(const std::string & text) {
        std::vector<llama_token> tokens = tokenize(text);
        if (llama_encode(context_.get(), llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size()))) !=
            0) {
            return {};
        }
        const float * pooled = llama_get_embeddings_seq(context_.get(), 0);
        std::vector<double> result(pooled, pooled + llama_model_n_embd_out(model_.get()));
        double square = 0;
        for (const double value : result) square += value * value;
        for (double & value : result) value /= std::sqrt(square);
        return result;
    }

private:
    struct Free {
        void operator()(llama_model * model) const { llama_model_free(model); }
        void operator()(llama_context * context) const { llama_free(context); }
    };
    std::unique_ptr<llama_model, Free> model_;
    std::unique_ptr<llama_context, Free> context_;
};

strata_model * open_model(const fs::path & file) {
    strata_model * model = nullptr;
    EXPECT_EQ(strata_model_open(file.c_str(), nullptr, &model), STRATA_OK) << strata_last_error();
    return model;
}

TEST(LlamaReference, GreedyTokensAreEqual) {
    const fs::path file = cached_model("smollm2-135m-instruct-q4_1.gguf");
    std::string long_prompt; // several micro-batches
    for (int i = 0; i < 60; ++i) long_prompt += "Item " + std::to_string(i) + " is blue. ";
    strata_model * model = open_model(file);
    ASSERT_NE(model, nullptr);
    strata_session_options options;
    STRATA_INIT(&options);
    options.context_tokens = 1024;
    options.batch_tokens = 128;
    options.threads = 1;
    for (const std::string & prompt : {std::string("Once upon a time"), long_prompt}) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = 1024;
        params.n_batch = 1024;
        params.n_ubatch = 128;
        Reference reference(file, params);
        ASSERT_TRUE(reference.ok());
        const std::vector<llama_token> expected = reference.greedy(prompt, 48);
        ASSERT_GT(expected.size(), 8U);

        strata_session * session = nullptr;
        ASSERT_EQ(strata_session_open(model, &options, &session), STRATA_OK) << strata_last_error();
        strata_sampling sampling;
        STRATA_INIT(&sampling);
        sampling.max_tokens = 48;
        std::vector<llama_token> tokens;
        const auto keep = [](const strata_token * token, void * user) {
            static_cast<std::vector<llama_token> *>(user)->push_back(token->id);
            return true;
        };
        EXPECT_EQ(strata_generate(session, prompt.c_str(), &sampling, keep, &tokens, nullptr), STRATA_OK)
            << strata_last_error();
        EXPECT_EQ(tokens, expected);
        strata_session_close(session);
    }
    strata_model_close(model);
}

TEST(LlamaReference, EmbeddingsAreEqual) {
    for (const char * name : {"minilm-f32.gguf", "minilm-f16.gguf"}) {
        const fs::path file = cached_model(name);
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = params.n_ubatch = 512;
        params.embeddings = true;
        Reference reference(file, params);
        ASSERT_TRUE(reference.ok()) << file;
        strata_model * model = open_model(file);
        ASSERT_NE(model, nullptr);
        strata_session_options options;
        STRATA_INIT(&options);
        options.embeddings = true;
        options.threads = 1;
        strata_session * session = nullptr;
        ASSERT_EQ(strata_session_open(model, &options, &session), STRATA_OK) << strata_last_error();
        for (const char * text : {"A cat sleeps.", "Photosynthesis turns light into sugar; naïve café 世界."}) {
            std::vector<float> embedding(strata_model_embedding_size(model));
            ASSERT_EQ(strata_embed(session, text, embedding.data(), embedding.size()), STRATA_OK);
            const std::vector<double> expected = reference.embedding(text);
            ASSERT_EQ(expected.size(), embedding.size());
            for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(embedding[i], expected[i], 1e-4) << i;
        }
        strata_session_close(session);
        strata_model_close(model);
    }
}

} // namespace
