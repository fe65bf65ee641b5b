#include "gateway/access.h"

#include <boost/asio/ip/address.hpp>

#include <algorithm>

namespace strata::gateway {

namespace {

std::string lower(std::string_view text) {
    std::string out(text);
    for (char & c : out) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return out;
}

// The host without port and brackets; empty when the port is not a number.
std::string_view strip_port(std::string_view text) {
    std::string_view port;
    std::string_view host = text;
    if (text.starts_with('[')) {
        const size_t end = text.find(']');
        if (end == std::string_view::npos) return {};
        host = text.substr(1, end - 1);
        port = text.substr(end + 1);
    } else if (const size_t colon = text.find(':'); colon != std::string_view::npos) {
        host = text.substr(0, colon);
        port = text.substr(colon);
    }
    if (port.empty()) return host;
    if (port[0] != ':' || port.size() > 6) return {};
    return std::all_of(port.begin() + 1, port.end(), [](char c) { return c >= '0' && c <= '9'; }) ? host
                                                                                                  : std::string_view();
}

} // namespace

std::string_view authority_of(std::string_view url) {
    for (const std::string_view scheme : {"http://", "https://"}) {
        if (!lower(url.substr(0, scheme.size())).starts_with(scheme)) continue;
        const std::string_view rest = url.substr(scheme.size());
        return rest.substr(0, rest.find_first_of("/?#"));
    }
    return {};
}

AccessPolicy::AccessPolicy(std::vector<std::string> allowed_hosts) {
    for (const std::string & host : allowed_hosts) allowed_.push_back(lower(strip_port(host)));
}

bool AccessPolicy::host_allowed(std::string_view host_and_port) const {
    std::string host = lower(strip_port(host_and_port));
    if (host.ends_with('.')) host.pop_back();
    if (host.empty()) return false;
    if (host == "localhost" || host.ends_with(".localhost")) return true;
    if (std::find(allowed_.begin(), allowed_.end(), host) != allowed_.end()) return true;
    boost::system::error_code error;
    const auto address = boost::asio::ip::make_address(host, error);
    return !error && address.is_loopback();
}

bool AccessPolicy::origin_allowed(std::string_view origin) const {
    return host_allowed(authority_of(origin));
}

} // namespace strata::gateway
