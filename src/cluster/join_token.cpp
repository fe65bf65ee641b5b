#include "cluster/join_token.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::cluster {

namespace {

bool is_hex(std::string_view text, size_t bytes) {
    return text.size() == 2 * bytes && std::all_of(text.begin(), text.end(), [](char c) {
               return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
           });
}

} // namespace

absl::StatusOr<JoinToken> JoinToken::parse(std::string_view text) {
    // Not repeated in the message: it is a secret, if a damaged one.
    const absl::Status no_token = absl::InvalidArgumentError(fmt::format(
        "this is no join token: `strata token create` prints one, three groups of {}, {} and {} hexadecimal "
        "digits with a dot between",
        2 * kIdBytes, 2 * kSecretBytes, 2 * Digest::kBytes));
    const size_t first = text.find('.');
    const size_t second = first == std::string_view::npos ? first : text.find('.', first + 1);
    if (second == std::string_view::npos) return no_token;
    JoinToken token;
    token.id = text.substr(0, first);
    token.secret = text.substr(first + 1, second - first - 1);
    const auto pin = Digest::parse_hex(text.substr(second + 1));
    if (!is_hex(token.id, kIdBytes) || !is_hex(token.secret, kSecretBytes) || !pin.ok()) return no_token;
    token.pin = *pin;
    return token;
}

std::string JoinToken::to_string() const {
    return fmt::format("{}.{}.{}", id, secret, pin.hex());
}

} // namespace strata::cluster
