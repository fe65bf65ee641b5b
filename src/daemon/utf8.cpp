#include "daemon/utf8.h"

#include <algorithm>
#include <cstdint>

namespace strata::daemon {

namespace {

// Bytes of the character that begins with this byte; 0 when none does.
size_t length_by_first_byte(unsigned char first) {
    if (first < 0x80) return 1;
    if (first >= 0xC2 && first <= 0xDF) return 2;
    if (first >= 0xE0 && first <= 0xEF) return 3;
    if (first >= 0xF0 && first <= 0xF4) return 4;
    return 0;
}

bool continues(unsigned char byte) {
    return (byte & 0xC0) == 0x80;
}

// Bytes of the valid character at the start of the text, 0 when there is none.
size_t character_length(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const size_t length = length_by_first_byte(byte(0));
    if (length == 0 || length > text.size()) return 0;
    for (size_t i = 1; i < length; ++i) {
        if (!continues(byte(i))) return 0;
    }
    if (length < 2) return length;
    const unsigned char first = byte(0);
    const unsigned char second = byte(1);
    const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    const bool surrogate = first == 0xED && second > 0x9F;
    const bool beyond_unicode = first == 0xF4 && second > 0x8F;
    return overlong || surrogate || beyond_unicode ? 0 : length;
}

} // namespace

std::string valid_utf8(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    while (!text.empty()) {
        const size_t length = character_length(text);
        if (length == 0) {
            out += "\xEF\xBF\xBD";
        } else {
            out += text.substr(0, length);
        }
        text.remove_prefix(std::max<size_t>(length, 1));
    }
    return out;
}

size_t unfinished_character(std::string_view text) {
    for (size_t back = 1; back <= std::min<size_t>(text.size(), 3); ++back) {
        const auto byte = static_cast<unsigned char>(text[text.size() - back]);
        if (continues(byte)) continue;
        return length_by_first_byte(byte) > back ? back : 0;
    }
    return 0;
}

} // namespace strata::daemon
