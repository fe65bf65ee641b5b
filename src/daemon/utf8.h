#pragma once

#include <string>
#include <string_view>

namespace strata::daemon {

// The text with every byte that is not part of valid UTF-8 replaced by U+FFFD: protobuf refuses anything else. Logs and
// messages of other programs may hold anything.
std::string valid_utf8(std::string_view text);

// How many bytes at the end of the text are the beginning of a character whose rest may still come; 0 to 3.
size_t unfinished_character(std::string_view text);

} // namespace strata::daemon
