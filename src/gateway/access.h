#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace strata::gateway {

// Which Host and Origin headers are taken. A web page that a person visits may resolve its own name to 127.0.0.1 (DNS
// rebinding) or post to http://localhost; its requests then carry a Host or an Origin that is not ours. Immutable.
class AccessPolicy {
public:
    explicit AccessPolicy(std::vector<std::string> allowed_hosts);

    // "localhost:7420", "127.0.0.1", "[::1]:7420": whether the host, its port left aside, is loopback or allowed.
    bool host_allowed(std::string_view host_and_port) const;
    // "http://localhost:3000": the same for its host. "null" is not allowed.
    bool origin_allowed(std::string_view origin) const;

private:
    std::vector<std::string> allowed_; // lower case
};

// "http://host:port/path?query" -> "host:port"; empty for anything else.
std::string_view authority_of(std::string_view url);

} // namespace strata::gateway
