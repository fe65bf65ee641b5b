#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <string_view>

namespace strata {

// "/v1/messages" and below speak Anthropic's shapes, everything else OpenAI's.
bool is_anthropic(std::string_view path);

// The types of errors that belong to an HTTP status, as llama.cpp's server and Anthropic name them
// (https://docs.anthropic.com/en/api/errors).
const char * openai_error_type(int http_status);
const char * anthropic_error_type(int http_status);

// An error in the shape that clients of the path expect:
//   {"error":{"message":…,"type":"not_found_error","code":404,"param":null}}       OpenAI, llama.cpp
//   {"type":"error","error":{"type":"not_found_error","message":…}}                Anthropic
// `type` is OpenAI's; empty: what fits the status.
nlohmann::ordered_json error_json(std::string_view path, int http_status, std::string_view message,
                                  std::string_view type = {});
// The same as the body of an answer.
std::string error_body(std::string_view path, int http_status, std::string_view message, std::string_view type = {});

// A message may quote bytes of a file or a client: what is not UTF-8 is replaced.
std::string dump_replacing(const nlohmann::ordered_json & json);

} // namespace strata
