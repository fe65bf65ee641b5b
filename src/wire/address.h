#pragma once

#include "base/status.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace strata::wire {

struct Address {
    std::string host; // a name, IPv4 or IPv6 address, without brackets
    uint16_t port = 0;

    // "host:port", "[::1]:port", "host" (with default_port, unless that is 0).
    static absl::StatusOr<Address> parse(std::string_view text, uint16_t default_port);
    std::string to_string() const;
    bool is_loopback() const;
};

// One of an executor's devices: "host:port/1"; the first, when nothing is said.
struct DeviceAddress {
    Address executor;
    uint16_t device = 0;

    static absl::StatusOr<DeviceAddress> parse(std::string_view text, uint16_t default_port);
    std::string to_string() const;
};

// "host:port,host:port/1,…"
absl::StatusOr<std::vector<DeviceAddress>> parse_devices(std::string_view text, uint16_t default_port);

inline constexpr uint16_t kDefaultExecutorPort = 7430;

} // namespace strata::wire
