#include "layers/gguf.h"
#include "layers/gguf_bytes.h"

#include <fmt/format.h>
#include <strings.h>

#include <algorithm>

namespace strata::layers {

namespace {

constexpr uint64_t kShownElements = 4;

// The length of the UTF-8 sequence at the start of `text`, 0 when there is no valid one (RFC 3629).
size_t utf8_length(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const auto tail = [&](size_t i) { return i < text.size() && (byte(i) & 0xc0) == 0x80; };
    const unsigned char first = byte(0);
    if (first < 0x80) return 1;
    if (first >= 0xc2 && first <= 0xdf) return tail(1) ? 2 : 0;
    if (first >= 0xe0 && first <= 0xef) {
        if (!tail(1) || !tail(2)) return 0;
        const bool overlong = first == 0xe0 && byte(1) < 0xa0;
        const bool surrogate = first == 0xed && byte(1) > 0x9f;
        return overlong || surrogate ? 0 : 3;
    }
    if (first >= 0xf0 && first <= 0xf4) {
        if (!tail(1) || !tail(2) || !tail(3)) return 0;
        const bool overlong = first == 0xf0 && byte(1) < 0x90;
        const bool beyond = first == 0xf4 && byte(1) > 0x8f;
        return overlong || beyond ? 0 : 4;
    }
    return 0;
}

// Valid UTF-8 made of `text`: what is none, and control characters other than line ends and tabs, become \xNN.
std::string clean_utf8(std::string_view text, size_t limit) {
    std::string out;
    while (!text.empty() && out.size() < limit) {
        const auto first = static_cast<unsigned char>(text[0]);
        const size_t length = utf8_length(text);
        const bool control = (first < 0x20 && first != '\n' && first != '\t') || first == 0x7f;
        if (length == 0 || control) {
            out += fmt::format("\\x{:02x}", first);
            text.remove_prefix(1);
        } else {
            out += text.substr(0, length);
            text.remove_prefix(length);
        }
    }
    if (!text.empty()) out += "...";
    return out;
}

std::string scalar_text(gguf_type type, std::string_view data) {
    switch (type) {
    case GGUF_TYPE_UINT8:
        return fmt::to_string(load<uint8_t>(data));
    case GGUF_TYPE_INT8:
        return fmt::to_string(load<int8_t>(data));
    case GGUF_TYPE_UINT16:
        return fmt::to_string(load<uint16_t>(data));
    case GGUF_TYPE_INT16:
        return fmt::to_string(load<int16_t>(data));
    case GGUF_TYPE_UINT32:
        return fmt::to_string(load<uint32_t>(data));
    case GGUF_TYPE_INT32:
        return fmt::to_string(load<int32_t>(data));
    case GGUF_TYPE_UINT64:
        return fmt::to_string(load<uint64_t>(data));
    case GGUF_TYPE_INT64:
        return fmt::to_string(load<int64_t>(data));
    case GGUF_TYPE_FLOAT32:
        return fmt::to_string(load<float>(data));
    case GGUF_TYPE_FLOAT64:
        return fmt::to_string(load<double>(data));
    case GGUF_TYPE_BOOL:
        return load<uint8_t>(data) != 0 ? "true" : "false";
    default:
        return {};
    }
}

} // namespace

std::string type_name(ggml_type type) {
    std::string name = ggml_type_name(type);
    for (char & c : name) {
        if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    }
    return name;
}

std::optional<ggml_type> type_named(std::string_view name) {
    const std::string text(name);
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        if (ggml_blck_size(type) > 0 && ::strcasecmp(ggml_type_name(type), text.c_str()) == 0) return type;
    }
    return std::nullopt;
}

std::optional<uint64_t> GgufValue::as_unsigned() const {
    if (is_array) return std::nullopt;
    const auto from_signed = [](int64_t value) {
        return value < 0 ? std::nullopt : std::optional<uint64_t>(static_cast<uint64_t>(value));
    };
    switch (type) {
    case GGUF_TYPE_UINT8:
        return load<uint8_t>(data);
    case GGUF_TYPE_UINT16:
        return load<uint16_t>(data);
    case GGUF_TYPE_UINT32:
        return load<uint32_t>(data);
    case GGUF_TYPE_UINT64:
        return load<uint64_t>(data);
    case GGUF_TYPE_INT8:
        return from_signed(load<int8_t>(data));
    case GGUF_TYPE_INT16:
        return from_signed(load<int16_t>(data));
    case GGUF_TYPE_INT32:
        return from_signed(load<int32_t>(data));
    case GGUF_TYPE_INT64:
        return from_signed(load<int64_t>(data));
    default:
        return std::nullopt;
    }
}

std::optional<std::string_view> GgufValue::as_string() const {
    if (is_array || type != GGUF_TYPE_STRING) return std::nullopt;
    return data.substr(sizeof(uint64_t));
}

std::string GgufValue::as_text(size_t limit) const {
    if (!is_array) return type == GGUF_TYPE_STRING ? clean_utf8(*as_string(), limit) : scalar_text(type, data);
    std::string out = "[";
    std::string_view rest = data;
    const uint64_t shown = std::min(count, kShownElements);
    for (uint64_t i = 0; i < shown; ++i) {
        if (i > 0) out += ", ";
        if (type == GGUF_TYPE_STRING) {
            const auto size = load<uint64_t>(rest);
            out += fmt::format("\"{}\"", clean_utf8(rest.substr(sizeof(uint64_t), size), limit / kShownElements));
            rest.remove_prefix(sizeof(uint64_t) + size);
        } else {
            out += scalar_text(type, rest);
            rest.remove_prefix(scalar_bytes(type));
        }
    }
    if (shown < count) out += fmt::format(", ... {} in all", count);
    return out + "]";
}

} // namespace strata::layers
