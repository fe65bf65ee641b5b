#include "gateway/pages.h"

#include "base/version.h"
#include "gateway/routes.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <ctime>

namespace strata::gateway {

namespace {

using Json = nlohmann::ordered_json;

Json to_json(const ModelSummary & model) {
    const auto created = static_cast<std::time_t>(std::clamp<int64_t>(model.created_unix, 0, 253'402'300'799)); // 9999
    return Json{
        {"id", model.name},
        {"object", "model"},
        {"created", model.created_unix},
        {"owned_by", "strata"},
        // Anthropic's names
        {"type", "model"},
        {"display_name", model.name},
        {"created_at", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(created))},
        // llama.cpp's names
        {"meta",
         {{"architecture", model.architecture},
          {"n_params", model.parameters},
          {"size", model.size_bytes},
          {"n_ctx_train", model.context_tokens}}},
        {"loaded", model.ready},
    };
}

std::string dump(const Json & json) {
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace

std::string models_json(const std::vector<ModelSummary> & models) {
    Json data = Json::array();
    for (const ModelSummary & model : models) data.push_back(to_json(model));
    const auto id = [](const ModelSummary & model) { return Json(model.name); };
    return dump(Json{{"object", "list"},
                     {"data", std::move(data)},
                     {"has_more", false},
                     {"first_id", models.empty() ? Json() : id(models.front())},
                     {"last_id", models.empty() ? Json() : id(models.back())}});
}

std::optional<std::string> model_json(const std::vector<ModelSummary> & models, std::string_view name) {
    // As in requests: the name itself, its ":latest", or the only model of that name whatever its tag.
    const std::string latest = fmt::format("{}:latest", name);
    const std::string any_tag = fmt::format("{}:", name);
    std::vector<const ModelSummary *> tagged;
    for (const ModelSummary & model : models) {
        if (model.name == name || model.name == latest) return dump(to_json(model));
        if (model.name.starts_with(any_tag)) tagged.push_back(&model);
    }
    return tagged.size() == 1 ? std::optional(dump(to_json(*tagged.front()))) : std::nullopt;
}

std::string index_page(bool with_connect) {
    std::string page = fmt::format("strata {}\n\n", STRATA_VERSION_STRING);
    for (const Route & route : routes()) {
        const std::string path = fmt::format("{}{}", route.path, route.handler == Handler::kModel ? "NAME" : "");
        page += fmt::format("{:4} {:26} {}\n", route.post ? "POST" : "GET", path, route.what);
    }
    if (with_connect) {
        page += fmt::format("{:4} {:26} {}\n", "POST", "/strata.v1.SERVICE/METHOD",
                            "the control plane as JSON (Connect protocol)");
    }
    return page;
}

} // namespace strata::gateway
