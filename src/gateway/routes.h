#pragma once

#include <span>
#include <string>
#include <string_view>

namespace strata::gateway {

enum class Handler {
    kIndex,
    kHealth,
    kMetrics,
    kModels, // the list
    kModel,  // "/v1/models/ID"
    kApi,    // passed on to the backend
};

struct Route {
    std::string_view path; // also its name in metrics; of kModel without the id
    Handler handler;
    bool post; // POST, else GET and HEAD
    std::string_view what;

    // For the Allow header.
    std::string_view allow() const { return post ? "POST, OPTIONS" : "GET, HEAD, OPTIONS"; }
};

std::span<const Route> routes();
// Null for an unknown path.
const Route * find_route(std::string_view path);

// %XX decoded; what is no such escape stays as it is.
std::string percent_decoded(std::string_view text);

} // namespace strata::gateway
