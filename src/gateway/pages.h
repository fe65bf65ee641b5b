#pragma once

#include "gateway/backend.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace strata::gateway {

// The list of models, in a form that OpenAI's and Anthropic's clients both read.
std::string models_json(const std::vector<ModelSummary> & models);
// One of them by its name, ":latest" being understood; nothing when there is none.
std::optional<std::string> model_json(const std::vector<ModelSummary> & models, std::string_view name);
// What this server answers, for a person.
std::string index_page(bool with_connect);

} // namespace strata::gateway
