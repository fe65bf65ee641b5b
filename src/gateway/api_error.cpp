#include "gateway/api_error.h"

#include "base/api_error.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace strata::gateway {

std::string error_event(std::string_view path, int http_status, std::string_view message) {
    nlohmann::ordered_json json = error_json(path, http_status, message);
    if (is_anthropic(path)) return fmt::format("event: error\ndata: {}\n\n", dump_replacing(json));
    if (path == "/v1/responses") {
        // The event of that API, with the "error" object besides, which makes OpenAI's clients raise it.
        json["type"] = "error";
        json["code"] = openai_error_type(http_status);
        json["message"] = message;
        json["param"] = nullptr;
        return fmt::format("event: error\ndata: {}\n\n", dump_replacing(json));
    }
    return fmt::format("data: {}\n\n", dump_replacing(json));
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
