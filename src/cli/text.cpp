#include "cli/text.h"

#include "base/text.h"

#include <fmt/format.h>
#include <langinfo.h>

#include <array>
#include <clocale>
#include <cstring>
#include <cwchar>

namespace strata::cli {

namespace {

// One character at the start of `text`: its bytes and code point; 0 bytes when they are not valid UTF-8.
struct Character {
    size_t bytes = 0;
    char32_t code = 0;
};

Character first_character(std::string_view text) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char lead = byte(0);
    if (lead < 0x80) return {1, lead};
    const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    // 0xc0, 0xc1 and 0xf5.. never occur; 0x80..0xbf only follow.
    if (lead < 0xc2 || lead > 0xf4 || text.size() < length) return {};
    char32_t code = lead & (0x7f >> length);
    for (size_t i = 1; i < length; ++i) {
        if ((byte(i) & 0xc0) != 0x80) return {};
        code = code << 6 | (byte(i) & 0x3f);
    }
    constexpr std::array<char32_t, 5> kSmallest = {0, 0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[length] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return {};
    return {length, code};
}

bool is_control(char32_t code) {
    // The bidirectional overrides can show a text as another one, so they count as controls here.
    return code < 0x20 || (code >= 0x7f && code < 0xa0) || (code >= 0x202a && code <= 0x202e) ||
           (code >= 0x2066 && code <= 0x2069);
}

size_t columns_of(char32_t code) {
    const int width = ::wcwidth(static_cast<wchar_t>(code));
    return width < 0 ? 1 : static_cast<size_t>(width);
}

} // namespace

void use_utf8_locale() {
    std::setlocale(LC_CTYPE, "");
    if (std::strcmp(::nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
}

std::string safe_text(std::string_view text, bool keep_lines) {
    std::string out;
    out.reserve(text.size());
    while (!text.empty()) {
        const Character c = first_character(text);
        const bool kept_control = keep_lines && (text.front() == '\n' || text.front() == '\t');
        if (c.bytes == 0 || (is_control(c.code) && !kept_control)) {
            const size_t escaped = c.bytes == 0 ? 1 : c.bytes;
            for (size_t i = 0; i < escaped; ++i) out += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[i]));
            text.remove_prefix(escaped);
        } else {
            out += text.substr(0, c.bytes);
            text.remove_prefix(c.bytes);
        }
    }
    return out;
}

size_t display_width(std::string_view text) {
    size_t width = 0;
    while (!text.empty()) {
        const Character c = first_character(text);
        width += c.bytes == 0 ? 1 : columns_of(c.code);
        text.remove_prefix(c.bytes == 0 ? 1 : c.bytes);
    }
    return width;
}

std::string cut_to_width(std::string_view text, size_t columns) {
    if (display_width(text) <= columns) return std::string(text);
    if (columns == 0) return {};
    size_t width = 0;
    size_t end = 0;
    while (end < text.size()) {
        const Character c = first_character(text.substr(end));
        width += c.bytes == 0 ? 1 : columns_of(c.code);
        if (width > columns - 1) break;
        end += c.bytes == 0 ? 1 : c.bytes;
    }
    return std::string(text.substr(0, end)) + "…";
}

std::string human_count(uint64_t count) {
    constexpr std::array kUnits = {"", "k", "M", "B", "T"};
    return human_number(count, kUnits);
}

std::string human_age(std::chrono::milliseconds age) {
    struct Unit {
        int64_t seconds;
        const char * name;
    };
    constexpr std::array<Unit, 6> kUnits = {{{365 * 86400, "year"},
                                             {30 * 86400, "month"},
                                             {7 * 86400, "week"},
                                             {86400, "day"},
                                             {3600, "hour"},
                                             {60, "minute"}}};
    const int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(age).count();
    for (const Unit & unit : kUnits) {
        const int64_t count = seconds / unit.seconds;
        if (count >= 1) return fmt::format("{} {}{} ago", count, unit.name, count == 1 ? "" : "s");
    }
    return seconds < 10 ? "just now" : fmt::format("{} seconds ago", seconds);
}

std::string human_duration(std::chrono::milliseconds duration) {
    const int64_t ms = std::max<int64_t>(duration.count(), 0);
    const int64_t seconds = ms / 1000;
    if (seconds < 10) return fmt::format("{}.{}s", seconds, ms % 1000 / 100);
    if (seconds < 60) return fmt::format("{}s", seconds);
    if (seconds < 3600) return fmt::format("{}m {}s", seconds / 60, seconds % 60);
    if (seconds < 86400) return fmt::format("{}h {}m", seconds / 3600, seconds % 3600 / 60);
    return fmt::format("{}d {}h", seconds / 86400, seconds % 86400 / 3600);
}

std::string short_digest(std::string_view digest) {
    const size_t colon = digest.find(':');
    return safe_text(digest.substr(colon == std::string_view::npos ? 0 : colon + 1).substr(0, 12));
}

} // namespace strata::cli
