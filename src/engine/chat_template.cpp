#include "engine/chat_template.h"

#include <chat.h>
#include <fmt/format.h>

#include <mutex>

namespace strata::engine {

struct ChatTemplate::State {
    std::mutex mutex; // whether evaluation leaves the parsed template alone is not promised upstream
    common_chat_templates_ptr templates;
};

ChatTemplate::ChatTemplate(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
ChatTemplate::~ChatTemplate() = default;

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::of(const llama_model * model) {
    auto state = std::make_unique<State>();
    try {
        state->templates = common_chat_templates_init(model, "");
    } catch (const std::exception & e) {
        return absl::InvalidArgumentError(fmt::format("the model's chat template can't be used: {}", e.what()));
    }
    return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(state)));
}

absl::StatusOr<std::string> ChatTemplate::apply(const std::vector<ChatMessage> & messages) const {
    common_chat_templates_inputs inputs;
    inputs.use_jinja = true;
    inputs.add_generation_prompt = true;
    for (const ChatMessage & message : messages) {
        common_chat_msg & converted = inputs.messages.emplace_back();
        converted.role = message.role;
        converted.content = message.content;
    }
    const std::lock_guard lock(state_->mutex);
    try {
        return common_chat_templates_apply(state_->templates.get(), inputs).prompt;
    } catch (const std::exception & e) {
        return absl::InvalidArgumentError(fmt::format("the model's chat template refuses the messages: {}", e.what()));
    }
}

} // namespace strata::engine
