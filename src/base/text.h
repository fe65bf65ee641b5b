#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace strata {

// Text from a file, a peer or a person made fit for a message: control and non-ASCII bytes become \xNN, and what is
// longer than `limit` bytes is cut.
std::string printable(std::string_view text, size_t limit = 100);

// A number in three digits and the largest unit that fits, in steps of 1000: units[0] is for numbers below that.
std::string human_number(uint64_t number, std::span<const char * const> units);

// "1.5 GB", "98.4 MB", "512 B": decimal units, three digits.
std::string human_bytes(uint64_t bytes);

} // namespace strata
