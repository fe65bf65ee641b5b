#include "base/text.h"

#include <fmt/format.h>

#include <array>

namespace strata {

std::string printable(std::string_view text, size_t limit) {
    std::string out;
    for (const char c : text.substr(0, limit)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f) {
            out += c;
        } else {
            out += fmt::format("\\x{:02x}", byte);
        }
    }
    if (text.size() > limit) out += "...";
    return out;
}

std::string human_number(uint64_t number, std::span<const char * const> units) {
    if (number < 1000) return fmt::format("{}{}", number, units[0]);
    auto value = static_cast<double>(number);
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < units.size()) {
        value /= 1000;
        ++unit;
    }
    return fmt::format("{:.{}f}{}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, units[unit]);
}

std::string human_bytes(uint64_t bytes) {
    constexpr std::array kUnits = {" B", " kB", " MB", " GB", " TB", " PB", " EB"};
    return human_number(bytes, kUnits);
}

} // namespace strata
