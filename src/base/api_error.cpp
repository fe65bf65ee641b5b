#include "base/api_error.h"

#include <absl/strings/cord.h>
#include <nlohmann/json.hpp>

namespace strata {

using Json = nlohmann::ordered_json;

namespace {

constexpr char kFieldPayload[] = "strata/field";

// https://docs.anthropic.com/en/api/errors
const char * anthropic_error_type(int http_status) {
    switch (http_status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 413:
        return "request_too_large";
    case 429:
        return "rate_limit_error";
    case 503:
    case 529:
        return "overloaded_error";
    case 504:
        return "timeout_error";
    default:
        return http_status >= 500 ? "api_error" : "invalid_request_error";
    }
}

} // namespace

bool is_anthropic(std::string_view path) {
    return path == "/v1/messages" || path.starts_with("/v1/messages/");
}

const char * openai_error_type(int http_status) {
    switch (http_status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    case 501:
        return "not_supported_error";
    case 503:
        return "unavailable_error";
    default:
        return http_status >= 500 ? "server_error" : "invalid_request_error";
    }
}

Json error_json(std::string_view path, int http_status, std::string_view message, const ErrorDetails & details) {
    if (is_anthropic(path)) {
        return {{"type", "error"}, {"error", Json{{"type", anthropic_error_type(http_status)}, {"message", message}}}};
    }
    return {{"error", Json{{"message", message},
                           {"type", details.type.empty() ? openai_error_type(http_status) : details.type},
                           {"code", http_status},
                           {"param", details.param.empty() ? Json(nullptr) : Json(details.param)}}}};
}

std::string error_body(std::string_view path, int http_status, std::string_view message, const ErrorDetails & details) {
    return dump_replacing(error_json(path, http_status, message, details));
}

absl::Status about_field(absl::Status status, std::string_view field) {
    if (!status.ok()) status.SetPayload(kFieldPayload, absl::Cord(std::string(field)));
    return status;
}

std::string field_of(const absl::Status & status) {
    const auto field = status.GetPayload(kFieldPayload);
    return field ? std::string(*field) : std::string();
}

std::string dump_replacing(const Json & json) {
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace strata
