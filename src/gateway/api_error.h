#pragma once

#include "base/status.h"

#include <string>
#include <string_view>

namespace strata::gateway {

// The JSON body of an error in the shape that clients of the path expect: Anthropic's for "/v1/messages…"
// ({"type":"error","error":{"type":"not_found_error","message":…}}), OpenAI's for the rest
// ({"error":{"message":…,"type":"invalid_request_error","code":404,"param":null}}).
std::string error_body(std::string_view path, int http_status, std::string_view message);

// The same as a server-sent event that ends a stream which has begun.
std::string error_event(std::string_view path, int http_status, std::string_view message);

int http_status_of(absl::StatusCode code);

} // namespace strata::gateway
