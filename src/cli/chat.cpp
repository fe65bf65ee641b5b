#include "cli/chat.h"

#include <fmt/format.h>

#include <cmath>

namespace strata::cli {

namespace {

constexpr size_t kMaxErrorBytes = 64 << 10;

// Values of a JSON object of somebody else's: none when absent or of another type.
const Json * member(const Json & object, const char * key) {
    if (!object.is_object()) return nullptr;
    const auto found = object.find(key);
    return found == object.end() ? nullptr : &*found;
}

std::string text_of(const Json & object, const char * key) {
    const Json * value = member(object, key);
    return value != nullptr && value->is_string() ? value->get<std::string>() : std::string();
}

double number_of(const Json & object, const char * key) {
    const Json * value = member(object, key);
    const double number = value != nullptr && value->is_number() ? value->get<double>() : 0;
    return std::isfinite(number) && number > 0 && number < 1e15 ? number : 0;
}

absl::StatusCode code_of(int http_status) {
    switch (http_status) {
    case 400:
    case 422:
        return absl::StatusCode::kInvalidArgument;
    case 401:
        return absl::StatusCode::kUnauthenticated;
    case 403:
        return absl::StatusCode::kPermissionDenied;
    case 404:
        return absl::StatusCode::kNotFound;
    case 409:
        return absl::StatusCode::kFailedPrecondition;
    case 413:
    case 429:
        return absl::StatusCode::kResourceExhausted;
    case 501:
        return absl::StatusCode::kUnimplemented;
    case 503:
        return absl::StatusCode::kUnavailable;
    case 504:
        return absl::StatusCode::kDeadlineExceeded;
    default:
        return absl::StatusCode::kInternal;
    }
}

} // namespace

std::string chat_body(const std::string & model, const std::vector<ChatMessage> & messages,
                      const ChatOptions & options) {
    Json body = {{"model", model}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
    body["messages"] = Json::array();
    for (const ChatMessage & message : messages) {
        body["messages"].push_back({{"role", message.role}, {"content", message.content}});
    }
    if (options.temperature) body["temperature"] = *options.temperature;
    if (options.top_p) body["top_p"] = *options.top_p;
    if (options.max_tokens) body["max_tokens"] = *options.max_tokens;
    if (options.seed) body["seed"] = *options.seed;
    if (!options.stop.empty()) body["stop"] = options.stop;
    if (options.json_schema) {
        body["response_format"] = {
            {"type", "json_schema"},
            {"json_schema", {{"name", "answer"}, {"strict", true}, {"schema", *options.json_schema}}}};
    }
    return body.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string describe(const ChatStats & stats) {
    std::string text = fmt::format("{} token{}", stats.generated_tokens, stats.generated_tokens == 1 ? "" : "s");
    if (stats.tokens_per_second > 0) text += fmt::format(", {:.1f} tokens/s", stats.tokens_per_second);
    if (stats.prompt_tokens > 0) {
        text += fmt::format("; prompt {} token{}", stats.prompt_tokens, stats.prompt_tokens == 1 ? "" : "s");
        if (stats.prompt_ms > 0) text += fmt::format(" in {:.2f} s", stats.prompt_ms / 1000);
    }
    return text;
}

absl::Status api_error(int http_status, std::string_view body) {
    const Json json = Json::parse(body, nullptr, false);
    std::string message;
    if (const Json * error = member(json, "error")) {
        message = error->is_string() ? error->get<std::string>() : text_of(*error, "message");
    }
    if (message.empty()) message = text_of(json, "message");
    if (message.empty()) message = std::string(body.substr(0, 300));
    if (message.empty()) message = fmt::format("the request failed with HTTP status {} and no reason", http_status);
    return absl::Status(code_of(http_status), message);
}

absl::Status ChatAnswer::take(const v1::ServeResponse & part) {
    if (part.has_head()) {
        http_status_ = part.head().status();
        return absl::OkStatus();
    }
    if (!part.has_data()) return absl::OkStatus();
    if (http_status_ != 200) {
        if (error_body_.size() < kMaxErrorBytes) error_body_ += part.data();
        return absl::OkStatus();
    }
    STRATA_ASSIGN_OR_RETURN(const std::vector<SseEvent> events, parser_.feed(part.data()));
    for (const SseEvent & event : events) STRATA_RETURN_IF_ERROR(take_event(event));
    return absl::OkStatus();
}

absl::Status ChatAnswer::finish() {
    if (http_status_ != 200) return api_error(http_status_, error_body_);
    if (finish_reason_.empty()) return absl::InternalError("the answer was cut off; `strata logs` may show why");
    return absl::OkStatus();
}

absl::Status ChatAnswer::take_event(const SseEvent & event) {
    if (event.data == "[DONE]") return absl::OkStatus();
    const Json json = Json::parse(event.data, nullptr, false);
    const Json * error = member(json, "error");
    if (event.type == "error" || error != nullptr) {
        const int code = error == nullptr ? 500 : static_cast<int>(number_of(*error, "code"));
        return api_error(code == 0 ? 500 : code, event.data);
    }
    if (!json.is_object()) return absl::InternalError("the answer has an event that is not JSON; see `strata logs`");

    if (const Json * choices = member(json, "choices");
        choices != nullptr && choices->is_array() && !choices->empty()) {
        const Json & choice = choices->front();
        if (const Json * delta = member(choice, "delta")) {
            if (const std::string thought = text_of(*delta, "reasoning_content"); !thought.empty())
                on_text_(thought, true);
            if (const std::string text = text_of(*delta, "content"); !text.empty()) {
                text_ += text;
                on_text_(text, false);
            }
        }
        if (const std::string reason = text_of(choice, "finish_reason"); !reason.empty()) finish_reason_ = reason;
    }
    if (const Json * usage = member(json, "usage")) {
        stats_.prompt_tokens = static_cast<int64_t>(number_of(*usage, "prompt_tokens"));
        stats_.generated_tokens = static_cast<int64_t>(number_of(*usage, "completion_tokens"));
    }
    if (const Json * timings = member(json, "timings")) {
        stats_.prompt_ms = number_of(*timings, "prompt_ms");
        stats_.tokens_per_second = number_of(*timings, "predicted_per_second");
        if (stats_.generated_tokens == 0)
            stats_.generated_tokens = static_cast<int64_t>(number_of(*timings, "predicted_n"));
    }
    return absl::OkStatus();
}

} // namespace strata::cli
