#include "engine/utf8_stream.h"

#include <cstdint>

namespace strata::engine {

namespace {

struct Character {
    size_t bytes; // of the character, or of the part that is to be replaced
    bool valid;
    bool complete; // false: more bytes may make it valid
};

// The character at the start of a text that is not empty; well-formed sequences of the Unicode standard, table 3-7.
Character first_character(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t lead = byte(0);
    if (lead < 0x80) return {1, true, true};
    size_t length = 0;
    uint8_t low = 0x80, high = 0xBF; // what the second byte may be
    if (lead >= 0xC2 && lead <= 0xDF) {
        length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        length = 3;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    } else {
        return {1, false, true};
    }
    for (size_t i = 1; i < length; ++i) {
        if (i == text.size()) return {i, false, false};
        if (byte(i) < low || byte(i) > high) return {i, false, true};
        low = 0x80;
        high = 0xBF;
    }
    return {length, true, true};
}

} // namespace

std::string Utf8Stream::push(std::string_view bytes) {
    pending_ += bytes;
    std::string text;
    std::string_view rest = pending_;
    while (!rest.empty()) {
        const Character character = first_character(rest);
        if (!character.complete) break;
        if (character.valid) {
            text += rest.substr(0, character.bytes);
        } else {
            text += "\xEF\xBF\xBD";
        }
        rest.remove_prefix(character.bytes);
    }
    pending_.erase(0, pending_.size() - rest.size());
    return text;
}

} // namespace strata::engine
