#pragma once

#include "base/status.h"

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <string_view>

namespace strata {

// "/v1/messages" and below speak Anthropic's shapes, everything else OpenAI's.
bool is_anthropic(std::string_view path);

// The type of errors that belongs to an HTTP status, as llama.cpp's server names it.
const char * openai_error_type(int http_status);

// What only OpenAI's shape has.
struct ErrorDetails {
    std::string_view type = {};  // empty: what fits the status
    std::string_view param = {}; // the field of the request that is wrong; empty: none in particular
};

// An error in the shape that clients of the path expect:
//   {"error":{"message":…,"type":"not_found_error","code":404,"param":null}}       OpenAI, llama.cpp
//   {"type":"error","error":{"type":"not_found_error","message":…}}                Anthropic
nlohmann::ordered_json error_json(std::string_view path, int http_status, std::string_view message,
                                  const ErrorDetails & details = {});
// The same as the body of an answer.
std::string error_body(std::string_view path, int http_status, std::string_view message,
                       const ErrorDetails & details = {});

// An error that says which field of a request it is about; an OK status stays as it is.
absl::Status about_field(absl::Status status, std::string_view field);
// That field; empty when there is none.
std::string field_of(const absl::Status & status);

// A message may quote bytes of a file or a client: what is not UTF-8 is replaced.
std::string dump_replacing(const nlohmann::ordered_json & json);

} // namespace strata
