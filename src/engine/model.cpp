#include "engine/model.h"

#include "engine/log.h"
#include "engine/runtime.h"

#include <fmt/format.h>

namespace strata::engine {

namespace {

struct LoadProgress {
    const ModelOptions & options;
    uint64_t total;
    bool cancelled = false;

    static bool report(float fraction, void * self) {
        auto & progress = *static_cast<LoadProgress *>(self);
        const auto done = static_cast<uint64_t>(static_cast<double>(fraction) * static_cast<double>(progress.total));
        progress.cancelled = progress.options.progress && !progress.options.progress("loading", done, progress.total);
        return !progress.cancelled;
    }
};

} // namespace

absl::StatusOr<std::shared_ptr<Model>> Model::open(std::string_view name, ModelOptions options) {
    STRATA_RETURN_IF_ERROR(start_runtime());
    if (options.progress) {
        options.source.progress = [&](uint64_t done, uint64_t total) {
            return options.progress("verifying", done, total);
        };
    }
    STRATA_ASSIGN_OR_RETURN(ModelSource source, ModelSource::open(name, options.source));
    std::shared_ptr<Model> model(new Model(std::move(source)));

    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = options.gpu_layers;
    ggml_backend_dev_t no_devices[] = {nullptr}; // the CPU alone: no GPU is even woken up
    if (options.gpu_layers == 0) params.devices = no_devices;
    params.load_mode = options.use_mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    LoadProgress progress{options, model->source_.size_bytes()};
    params.progress_callback = &LoadProgress::report;
    params.progress_callback_user_data = &progress;

    ErrorCapture errors;
    model->model_ = llama_model_load_from_file(model->source_.first_file().c_str(), params);
    if (model->model_ == nullptr) {
        if (progress.cancelled) {
            return absl::CancelledError(fmt::format("loading {} was cancelled", model->source_.name()));
        }
        return absl::InvalidArgumentError(
            fmt::format("cannot load {}: {}", model->source_.name(), errors.reason("llama.cpp gives no reason")));
    }
    return model;
}

Model::~Model() {
    if (model_ != nullptr) llama_model_free(model_);
}

absl::StatusOr<std::string> Model::metadata(const char * key) const {
    const int32_t length = llama_model_meta_val_str(model_, key, nullptr, 0);
    if (length < 0) {
        return absl::NotFoundError(fmt::format("{} has no scalar metadata under '{}'", source_.name(), key));
    }
    std::string value(length + 1, '\0');
    llama_model_meta_val_str(model_, key, value.data(), value.size());
    value.resize(length);
    return value;
}

const absl::StatusOr<std::unique_ptr<ChatTemplate>> & Model::chat_template() const {
    std::call_once(chat_template_once_, [this] { chat_template_ = ChatTemplate::of(model_); });
    return chat_template_;
}

absl::StatusOr<std::string> Model::chat_prompt(const std::vector<ChatMessage> & messages) const {
    STRATA_RETURN_IF_ERROR(chat_template().status());
    return (*chat_template())->apply(messages);
}

} // namespace strata::engine
