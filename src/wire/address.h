#pragma once

#include "base/address.h"
#include "base/status.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace strata::wire {

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
