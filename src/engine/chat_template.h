#pragma once

#include "base/status.h"

#include <memory>
#include <string>
#include <vector>

struct llama_model;

namespace strata::engine {

struct ChatMessage {
    std::string role;
    std::string content;
};

// The Jinja chat template of a model, evaluated by llama-common, so that prompts are those of llama.cpp's server. A
// model without a template gets ChatML, as there. Thread-safe.
class ChatTemplate {
public:
    // kInvalidArgument when the template can't be parsed.
    static absl::StatusOr<std::unique_ptr<ChatTemplate>> of(const llama_model * model);
    ~ChatTemplate();

    // The prompt, with the start of the assistant's answer. kInvalidArgument with the template's own words when it
    // refuses the messages.
    absl::StatusOr<std::string> apply(const std::vector<ChatMessage> & messages) const;

private:
    struct State;
    explicit ChatTemplate(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace strata::engine
