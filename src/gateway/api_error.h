#pragma once

#include "base/status.h"

#include <string>
#include <string_view>

namespace strata::gateway {

// An error (see base/api_error.h) as a server-sent event that ends a stream which has begun.
std::string error_event(std::string_view path, int http_status, std::string_view message);

int http_status_of(absl::StatusCode code);

} // namespace strata::gateway
