#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace strata::cli {

// How text is shown to people. All functions are pure and thread-safe, except that widths follow the process' locale
// (see use_utf8_locale).

// Takes the user's locale for characters, or C.UTF-8 when that isn't UTF-8. Once, before any thread starts.
void use_utf8_locale();

// Text of a model, a file or another program made safe for a terminal: control characters (ESC among them) and bytes
// that are not UTF-8 become \xNN. Newlines and tabs stay when `keep_lines`.
std::string safe_text(std::string_view text, bool keep_lines = false);

// Columns that UTF-8 text takes on a terminal; wide characters take two, combining marks none.
size_t display_width(std::string_view text);

// The first `columns` columns of the text; what is cut ends in "…".
std::string cut_to_width(std::string_view text, size_t columns);

// "134M", "8.03B": counts of parameters and tokens.
std::string human_count(uint64_t count);

// "3 minutes ago", "just now"; times ahead of `now` are "just now" as well (clocks differ).
std::string human_age(std::chrono::milliseconds age);

// "4.2s", "3m 5s", "2h 10m", "3d 4h".
std::string human_duration(std::chrono::milliseconds duration);

// "sha256:1f2e3d4c5b6a…" gives "1f2e3d4c5b6a".
std::string short_digest(std::string_view digest);

} // namespace strata::cli
