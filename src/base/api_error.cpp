#include "base/api_error.h"

#include <nlohmann/json.hpp>

namespace strata {

using Json = nlohmann::ordered_json;

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

Json error_json(std::string_view path, int http_status, std::string_view message, std::string_view type) {
    if (is_anthropic(path)) {
        return {{"type", "error"}, {"error", Json{{"type", anthropic_error_type(http_status)}, {"message", message}}}};
    }
    return {{"error", Json{{"message", message},
                           {"type", type.empty() ? openai_error_type(http_status) : type},
                           {"code", http_status},
                           {"param", nullptr}}}};
}

std::string error_body(std::string_view path, int http_status, std::string_view message, std::string_view type) {
    return dump_replacing(error_json(path, http_status, message, type));
}

std::string dump_replacing(const Json & json) {
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace strata
