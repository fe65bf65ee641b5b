#pragma once

#include "base/status.h"
#include "engine/chat_template.h"
#include "engine/model_source.h"

#include <llama.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>

namespace strata::engine {

struct ModelOptions {
    SourceOptions source;
    int32_t gpu_layers = 0; // -1: all
    bool use_mmap = true;
    // Phase ("verifying", "loading"), done and total bytes; return false to cancel. May be empty.
    std::function<bool(const char * phase, uint64_t done, uint64_t total)> progress;
};

// An open model: weights and vocabulary. Thread-safe after open.
class Model {
public:
    // Errors of ModelSource::open, kInvalidArgument with llama.cpp's reason when it refuses the file, kCancelled.
    static absl::StatusOr<std::shared_ptr<Model>> open(std::string_view model, ModelOptions options);
    ~Model();

    llama_model * get() const { return model_; }
    const llama_vocab * vocab() const { return llama_model_get_vocab(model_); }
    const ModelSource & source() const { return source_; }

    absl::StatusOr<std::string> metadata(const char * key) const; // a scalar as text; kNotFound
    absl::StatusOr<std::string> chat_prompt(const std::vector<ChatMessage> & messages) const;

private:
    explicit Model(ModelSource source)
        : source_(std::move(source)) {}
    const absl::StatusOr<std::unique_ptr<ChatTemplate>> & chat_template() const;

    ModelSource source_; // outlives the weights that are mapped from it
    llama_model * model_ = nullptr;
    // Parsed when it is first asked for: many uses of a model need none, and one that is broken spoils only those that
    // do.
    mutable std::once_flag chat_template_once_;
    mutable absl::StatusOr<std::unique_ptr<ChatTemplate>> chat_template_;
};

} // namespace strata::engine
