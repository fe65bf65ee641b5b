#include "base/duration.h"

#include "base/text.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <utility>

namespace strata {

absl::StatusOr<std::chrono::milliseconds> parse_duration(std::string_view text) {
    constexpr std::array<std::pair<std::string_view, int64_t>, 4> units = {
        {{"ms", 1}, {"s", 1000}, {"m", 60'000}, {"h", 3'600'000}}};
    constexpr int64_t kLongest = int64_t{366} * 24 * 3'600'000;

    int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    const std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
    if (error == std::errc() && number == 0 && unit.empty()) return std::chrono::milliseconds(0);
    for (const auto & [name, factor] : units) {
        if (error == std::errc() && unit == name && number >= 0 && number <= kLongest / factor) {
            return std::chrono::milliseconds(number * factor);
        }
    }
    return absl::InvalidArgumentError(
        fmt::format("\"{}\" is not a duration; write one as 500ms, 30s, 10m or 2h", printable(text)));
}

} // namespace strata
