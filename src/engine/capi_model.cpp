#include "engine/capi_handles.h"
#include "engine/tokenizer.h"

#include <fmt/format.h>

using namespace strata::engine;

namespace {

absl::StatusOr<ModelOptions> to_model_options(const strata_model_options * given) {
    STRATA_ASSIGN_OR_RETURN(const strata_model_options options, read_options(given, "strata_model_options"));
    ModelOptions result;
    STRATA_ASSIGN_OR_RETURN(result.source, to_source_options(options.store, options.views));
    result.source.verify = options.verify;
    result.use_mmap = !options.no_mmap;
    if (options.gpu_layers < -1) {
        return absl::InvalidArgumentError(
            fmt::format("gpu_layers is {}; it must be -1 (all) or not negative", options.gpu_layers));
    }
    result.gpu_layers = options.gpu_layers;
    if (options.progress != nullptr) {
        result.progress = [progress = options.progress, user = options.user](const char * phase, uint64_t done,
                                                                             uint64_t total) {
            return progress(phase, done, total, user);
        };
    }
    return result;
}

} // namespace

strata_status strata_model_open(const char * model, const strata_model_options * options, strata_model ** out) {
    if (out != nullptr) *out = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(out);
        STRATA_ASSIGN_OR_RETURN(const std::string_view name, bounded_string(model, kMaxPathBytes, "model"));
        STRATA_ASSIGN_OR_RETURN(ModelOptions model_options, to_model_options(options));
        auto handle = std::make_unique<strata_model>();
        STRATA_ASSIGN_OR_RETURN(handle->model, Model::open(name, std::move(model_options)));
        *out = handle.release();
        return absl::OkStatus();
    });
}

void strata_model_close(strata_model * model) {
    delete model;
}

size_t strata_model_layer_count(const strata_model * model) {
    return model == nullptr ? 0 : model->model->source().layers().size();
}

strata_status strata_model_layer(const strata_model * model, size_t index, strata_layer_info * out) {
    if (out != nullptr) *out = {};
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(model);
        STRATA_REQUIRE_ARGUMENT(out);
        const auto & layers = model->model->source().layers();
        if (index >= layers.size()) {
            return absl::InvalidArgumentError(
                fmt::format("there is no layer {}; {} has {}", index, model->model->source().name(), layers.size()));
        }
        const SourceLayer & layer = layers[index];
        out->kind = strata::layers::to_string(layer.kind);
        out->block = layer.block;
        out->digest = layer.digest.c_str();
        out->size_bytes = layer.size_bytes;
        out->tensor_count = layer.tensor_count;
        return absl::OkStatus();
    });
}

strata_status strata_model_metadata(const strata_model * model, const char * key, char ** out) {
    if (out != nullptr) *out = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(model);
        STRATA_REQUIRE_ARGUMENT(key);
        STRATA_REQUIRE_ARGUMENT(out);
        STRATA_ASSIGN_OR_RETURN(const std::string value, model->model->metadata(key));
        *out = copy_string(value);
        return absl::OkStatus();
    });
}

int32_t strata_model_vocab_size(const strata_model * model) {
    return model == nullptr ? 0 : llama_vocab_n_tokens(model->model->vocab());
}

int32_t strata_model_embedding_size(const strata_model * model) {
    return model == nullptr ? 0 : llama_model_n_embd_out(model->model->get());
}

int32_t strata_model_context_size(const strata_model * model) {
    return model == nullptr ? 0 : llama_model_n_ctx_train(model->model->get());
}

strata_status strata_tokenize(const strata_model * model, const char * text, size_t text_bytes, bool add_special,
                              bool special, int32_t ** tokens, size_t * count) {
    if (tokens != nullptr) *tokens = nullptr;
    if (count != nullptr) *count = 0;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(model);
        STRATA_REQUIRE_ARGUMENT(text);
        STRATA_REQUIRE_ARGUMENT(tokens);
        STRATA_REQUIRE_ARGUMENT(count);
        STRATA_ASSIGN_OR_RETURN(const std::vector<llama_token> ids,
                                tokenize(model->model->vocab(), {text, text_bytes}, add_special, special));
        *tokens = copy_tokens(ids);
        *count = ids.size();
        return absl::OkStatus();
    });
}

strata_status strata_detokenize(const strata_model * model, const int32_t * tokens, size_t count, char ** text,
                                size_t * text_bytes) {
    if (text != nullptr) *text = nullptr;
    if (text_bytes != nullptr) *text_bytes = 0;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(model);
        STRATA_REQUIRE_ARGUMENT(text);
        if (count > 0) STRATA_REQUIRE_ARGUMENT(tokens);
        if (count > kMaxTokens) {
            return absl::InvalidArgumentError(
                fmt::format("{} tokens are more than the limit of {}", count, kMaxTokens));
        }
        STRATA_ASSIGN_OR_RETURN(const std::string joined, detokenize(model->model->vocab(), {tokens, count}));
        *text = copy_string(joined);
        if (text_bytes != nullptr) *text_bytes = joined.size();
        return absl::OkStatus();
    });
}

strata_status strata_apply_chat_template(const strata_model * model, const strata_chat_message * messages, size_t count,
                                         char ** prompt) {
    if (prompt != nullptr) *prompt = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(model);
        STRATA_REQUIRE_ARGUMENT(messages);
        STRATA_REQUIRE_ARGUMENT(prompt);
        if (count == 0 || count > kMaxChatMessages) {
            return absl::InvalidArgumentError(
                fmt::format("{} messages; a chat has from 1 to {}", count, kMaxChatMessages));
        }
        std::vector<ChatMessage> chat;
        size_t room = kMaxTextBytes;
        for (size_t i = 0; i < count; ++i) {
            STRATA_ASSIGN_OR_RETURN(const auto role, bounded_string(messages[i].role, room, "role of a message"));
            room -= role.size();
            STRATA_ASSIGN_OR_RETURN(const auto content,
                                    bounded_string(messages[i].content, room, "content of a message"));
            room -= content.size();
            chat.push_back(ChatMessage{std::string(role), std::string(content)});
        }
        STRATA_ASSIGN_OR_RETURN(const std::string text, model->model->chat_prompt(chat));
        *prompt = copy_string(text);
        return absl::OkStatus();
    });
}
