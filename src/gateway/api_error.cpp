#include "gateway/api_error.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>

namespace strata::gateway {

namespace {

bool is_anthropic(std::string_view path) {
    return path == "/v1/messages" || path.starts_with("/v1/messages/");
}

// https://docs.anthropic.com/en/api/errors
const char * anthropic_type(int status) {
    switch (status) {
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
        return "overloaded_error";
    case 504:
        return "timeout_error";
    default:
        return status < 500 ? "invalid_request_error" : "api_error";
    }
}

// https://platform.openai.com/docs/guides/error-codes
const char * openai_type(int status) {
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    default:
        return status < 500 ? "invalid_request_error" : "server_error";
    }
}

nlohmann::ordered_json error_json(std::string_view path, int status, std::string_view message) {
    nlohmann::ordered_json json;
    if (is_anthropic(path)) {
        json["type"] = "error";
        json["error"] = {{"type", anthropic_type(status)}, {"message", message}};
    } else {
        json["error"] = {{"message", message}, {"type", openai_type(status)}, {"code", status}, {"param", nullptr}};
    }
    return json;
}

// A message may quote bytes of a file or a client: what is not UTF-8 is replaced.
std::string dump(const nlohmann::ordered_json & json) {
    return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

} // namespace

std::string error_body(std::string_view path, int http_status, std::string_view message) {
    return dump(error_json(path, http_status, message));
}

std::string error_event(std::string_view path, int http_status, std::string_view message) {
    nlohmann::ordered_json json = error_json(path, http_status, message);
    if (is_anthropic(path)) return fmt::format("event: error\ndata: {}\n\n", dump(json));
    if (path == "/v1/responses") {
        // The event of that API, with the "error" object besides, which makes OpenAI's clients raise it.
        json["type"] = "error";
        json["code"] = openai_type(http_status);
        json["message"] = message;
        json["param"] = nullptr;
        return fmt::format("event: error\ndata: {}\n\n", dump(json));
    }
    return fmt::format("data: {}\n\n", dump(json));
}

int http_status_of(absl::StatusCode code) {
    switch (code) {
    case absl::StatusCode::kOk:
        return 200;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kFailedPrecondition:
        return 400;
    case absl::StatusCode::kUnauthenticated:
        return 401;
    case absl::StatusCode::kPermissionDenied:
        return 403;
    case absl::StatusCode::kNotFound:
        return 404;
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kAborted:
        return 409;
    case absl::StatusCode::kResourceExhausted:
        return 429;
    case absl::StatusCode::kCancelled:
        return 499; // nginx's "client closed request"
    case absl::StatusCode::kUnimplemented:
        return 501;
    case absl::StatusCode::kUnavailable:
        return 503;
    case absl::StatusCode::kDeadlineExceeded:
        return 504;
    default:
        return 500;
    }
}

} // namespace strata::gateway
