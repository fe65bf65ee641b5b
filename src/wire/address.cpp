#include "wire/address.h"

#include "base/text.h"

#include <fmt/format.h>

#include <charconv>

namespace strata::wire {

absl::StatusOr<DeviceAddress> DeviceAddress::parse(std::string_view text, uint16_t default_port) {
    DeviceAddress address;
    const size_t slash = text.find('/');
    STRATA_ASSIGN_OR_RETURN(address.executor, Address::parse(text.substr(0, slash), default_port));
    if (slash == std::string_view::npos) return address;
    const std::string_view number = text.substr(slash + 1);
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), address.device);
    if (error != std::errc() || end != number.data() + number.size()) {
        return absl::InvalidArgumentError(
            fmt::format("'{}': after '/' comes the number of a device, as in 127.0.0.1:7430/1", printable(text)));
    }
    return address;
}

std::string DeviceAddress::to_string() const {
    return device == 0 ? executor.to_string() : fmt::format("{}/{}", executor.to_string(), device);
}

absl::StatusOr<std::vector<DeviceAddress>> parse_devices(std::string_view text, uint16_t default_port) {
    std::vector<DeviceAddress> addresses;
    while (true) {
        const size_t comma = text.find(',');
        STRATA_ASSIGN_OR_RETURN(DeviceAddress address, DeviceAddress::parse(text.substr(0, comma), default_port));
        addresses.push_back(std::move(address));
        if (comma == std::string_view::npos) return addresses;
        text.remove_prefix(comma + 1);
    }
}

} // namespace strata::wire
