#pragma once

#include "base/status.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace strata {

// Where something listens.
struct Address {
    std::string host; // a name, IPv4 or IPv6 address, without brackets
    uint16_t port = 0;

    // "host:port", "[::1]:port", "host" (with default_port, unless that is 0).
    static absl::StatusOr<Address> parse(std::string_view text, uint16_t default_port);
    std::string to_string() const;
    bool is_loopback() const;
};

} // namespace strata
