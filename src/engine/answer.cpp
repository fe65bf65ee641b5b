#include "engine/answer.h"

#include "base/api_error.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace strata::engine {

namespace {

using Json = nlohmann::ordered_json;

// The number after `key` at its last place in the text.
std::optional<int32_t> last_number(std::string_view text, std::string_view key) {
    const size_t at = text.rfind(key);
    if (at == std::string_view::npos) return std::nullopt;
    const char * begin = text.data() + at + key.size();
    int32_t number = 0;
    const auto [end, error] = std::from_chars(begin, text.data() + text.size(), number);
    if (error != std::errc() || end == begin) return std::nullopt;
    return number;
}

// A client's mistake that the server reports as one of its own.
bool is_request_error(std::string_view message) {
    for (const char * sign : {"is too large to process", "the grammar", "grammar stack"}) {
        if (message.find(sign) != std::string_view::npos) return true;
    }
    return false;
}

} // namespace

std::string corrected_error(std::string_view path, int & http_status, std::string body) {
    Json json = Json::parse(body, nullptr, false);
    if (!json.is_object() || !json.contains("error") || !json["error"].is_object()) {
        return error_body(path, http_status, body);
    }
    Json & error = json["error"];
    const auto message = error.contains("message") && error["message"].is_string() ? error["message"].get<std::string>()
                                                                                   : std::string("unknown error");
    if (http_status == 500 && is_request_error(message)) {
        http_status = 400;
        error["code"] = 400;
        error["type"] = openai_error_type(400);
    }
    if (is_anthropic(path)) return error_body(path, http_status, message);
    if (!error.contains("param")) error["param"] = nullptr;
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string corrected_event(std::string_view path, std::string event) {
    constexpr std::string_view kPrefix = "event: error\ndata: ";
    if (!is_anthropic(path) || !event.starts_with(kPrefix)) return event;
    const Json json = Json::parse(std::string_view(event).substr(kPrefix.size()), nullptr, false);
    if (!json.is_object() || !json.contains("message") || !json["message"].is_string()) return event;
    const int status = json.contains("code") && json["code"].is_number_integer() ? json["code"].get<int>() : 500;
    return std::string(kPrefix) + error_body(path, status, json["message"].get<std::string>()) + "\n\n";
}

void TokenCounter::read(std::string_view piece) {
    const bool usage = piece.find("\"usage\":{") != std::string_view::npos;
    const bool timings = piece.find("\"timings\":{") != std::string_view::npos;
    if (!usage && !timings) return;
    // A stream tells its numbers more than once, the later ones being the larger.
    const auto raise = [](int32_t & total, std::optional<int32_t> number) {
        if (number) total = std::max(total, *number);
    };
    if (usage) {
        for (const char * key : {"\"prompt_tokens\":", "\"input_tokens\":"})
            raise(prompt_tokens_, last_number(piece, key));
        for (const char * key : {"\"completion_tokens\":", "\"output_tokens\":"}) {
            raise(generated_tokens_, last_number(piece, key));
        }
    }
    if (timings) {
        if (const auto prompt = last_number(piece, "\"prompt_n\":")) {
            raise(prompt_tokens_, *prompt + last_number(piece, "\"cache_n\":").value_or(0));
        }
        raise(generated_tokens_, last_number(piece, "\"predicted_n\":"));
    }
}

} // namespace strata::engine
