#include "layers/json.h"

#include "base/text.h"
#include "layers/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace strata::layers {

using nlohmann::json;

absl::StatusOr<json> parse_json(std::string_view text, std::string_view what) {
    size_t tokens = 0;
    std::string refused;
    std::vector<size_t> keys; // of the objects and arrays that are open: how many there were

    // Returning false drops the value, so that a document that is refused costs no more memory.
    const json::parser_callback_t inspect = [&](int depth, json::parse_event_t event, json & value) {
        if (!refused.empty()) return false;
        switch (event) {
        case json::parse_event_t::object_start:
        case json::parse_event_t::array_start:
            keys.push_back(0);
            if (static_cast<size_t>(depth) >= limits::kJsonDepth) {
                refused = fmt::format("is nested deeper than {} levels", limits::kJsonDepth);
            }
            break;
        case json::parse_event_t::object_end:
            // A key that comes again replaces the one before.
            if (keys.back() != value.size()) refused = "has a key twice in one object";
            keys.pop_back();
            break;
        case json::parse_event_t::array_end:
            keys.pop_back();
            break;
        case json::parse_event_t::key:
            ++keys.back();
            break;
        case json::parse_event_t::value:
            break;
        }
        if (++tokens > limits::kJsonTokens) {
            refused = fmt::format("has more than {} values and keys", limits::kJsonTokens);
        }
        return refused.empty();
    };
    json document = json::parse(text, inspect, /*allow_exceptions=*/false);
    if (!refused.empty()) return absl::InvalidArgumentError(fmt::format("{} {}", what, refused));
    if (document.is_discarded()) return absl::InvalidArgumentError(fmt::format("{} is not valid JSON", what));
    return document;
}

std::string dump_json(const nlohmann::ordered_json & document, int indent) {
    return document.dump(indent, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

JsonFields::JsonFields(const json & object, std::string_view what, std::optional<size_t> number)
    : object_(object)
    , what_(what)
    , number_(number) {
    if (!object_.is_object()) status_ = absl::InvalidArgumentError(fmt::format("{} is not a JSON object", name()));
}

std::string JsonFields::name() const {
    return number_ ? fmt::format("{} {}", what_, *number_) : std::string(what_);
}

void JsonFields::fail(std::string_view sentence) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(fmt::format("{}: {}", name(), sentence));
}

bool JsonFields::has(const char * key) const {
    return object_.is_object() && object_.contains(key);
}

const json * JsonFields::find(const char * key) {
    if (!status_.ok()) return nullptr;
    const auto found = object_.find(key);
    if (found == object_.end()) {
        fail(fmt::format("\"{}\" is missing", key));
        return nullptr;
    }
    return &*found;
}

std::string JsonFields::raw_text(const char * key, size_t limit) {
    const json * value = find(key);
    if (value == nullptr) return {};
    const std::string * text = value->get_ptr<const std::string *>();
    if (text == nullptr) {
        fail(fmt::format("\"{}\" is not a string", key));
        return {};
    }
    if (text->size() > limit) {
        fail(fmt::format("\"{}\" is longer than {} bytes", key, limit));
        return {};
    }
    return *text;
}

std::string JsonFields::text(const char * key, size_t limit) {
    std::string text = raw_text(key, limit);
    const auto is_control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
    if (std::any_of(text.begin(), text.end(), is_control)) {
        fail(fmt::format("\"{}\" has control characters: \"{}\"", key, printable(text)));
        return {};
    }
    return text;
}

uint64_t JsonFields::number(const char * key) {
    const json * value = find(key);
    if (value == nullptr) return 0;
    if (!value->is_number_unsigned()) {
        fail(fmt::format("\"{}\" is not a whole number from 0", key));
        return 0;
    }
    return value->get<uint64_t>();
}

int64_t JsonFields::signed_number(const char * key) {
    const json * value = find(key);
    if (value == nullptr) return 0;
    if (value->is_number_unsigned() && value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)) {
        return value->get<int64_t>();
    }
    if (value->is_number_integer() && !value->is_number_unsigned()) return value->get<int64_t>();
    fail(fmt::format("\"{}\" is not a whole number of 64 bits", key));
    return 0;
}

Digest JsonFields::digest(const char * key) {
    const std::string text = raw_text(key, limits::kWordBytes);
    if (!status_.ok()) return {};
    absl::StatusOr<Digest> digest = Digest::parse(text);
    if (!digest.ok()) {
        const auto message = digest.status().message();
        fail(fmt::format("\"{}\": {}", key, std::string_view(message.data(), message.size())));
        return {};
    }
    return *digest;
}

const json & JsonFields::array(const char * key, size_t limit) {
    static const json empty = json::array();
    if (!status_.ok() || !has(key)) return empty;
    const json & value = *find(key);
    if (!value.is_array()) {
        fail(fmt::format("\"{}\" is not an array", key));
        return empty;
    }
    if (value.size() > limit) {
        fail(fmt::format("\"{}\" has more than {} entries", key, limit));
        return empty;
    }
    return value;
}

const json & JsonFields::object(const char * key) {
    static const json empty = json::object();
    if (!status_.ok() || !has(key)) return empty;
    const json & value = *find(key);
    if (!value.is_object()) {
        fail(fmt::format("\"{}\" is not an object", key));
        return empty;
    }
    return value;
}

} // namespace strata::layers
