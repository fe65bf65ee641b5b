#include "base/address.h"

#include "base/text.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <cctype>
#include <charconv>

namespace strata {

absl::StatusOr<Address> Address::parse(std::string_view text, uint16_t default_port) {
    const auto bad = [&](std::string_view why) {
        return absl::InvalidArgumentError(fmt::format("'{}' is not an address: {}", printable(text), why));
    };
    if (text.size() > 255) return bad("it is longer than 255 characters");
    Address address;
    std::string_view port;
    if (text.starts_with('[')) {
        const size_t end = text.find(']');
        if (end == std::string_view::npos) return bad("']' is missing");
        address.host = text.substr(1, end - 1);
        port = text.substr(end + 1);
    } else {
        const size_t colon = text.rfind(':');
        if (text.find(':') != colon) return bad("an IPv6 address belongs in brackets, as in [::1]:7430");
        address.host = text.substr(0, colon);
        if (colon != std::string_view::npos) port = text.substr(colon);
    }
    if (address.host.empty()) return bad("the host is missing");
    for (const char c : address.host) {
        if (std::isalnum(static_cast<unsigned char>(c)) == 0 &&
            std::string_view(".-_:%").find(c) == std::string_view::npos)
            return bad("a host is letters, digits, '.', '-'");
    }
    if (port.empty()) {
        if (default_port == 0) return bad("the port is missing, as in 127.0.0.1:7430");
        address.port = default_port;
        return address;
    }
    if (port.front() != ':') return bad("what follows ']' is no port");
    port.remove_prefix(1);
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), address.port);
    if (error != std::errc() || end != port.data() + port.size()) return bad("the port is a number up to 65535");
    return address;
}

std::string Address::to_string() const {
    return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port) : fmt::format("[{}]:{}", host, port);
}

bool Address::is_loopback() const {
    in_addr v4{};
    in6_addr v6{};
    if (inet_pton(AF_INET, host.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
    if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6) != 0;
    return host == "localhost";
}

} // namespace strata
