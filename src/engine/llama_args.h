#pragma once

#include "base/status.h"
#include "engine/driver_options.h"

#include <filesystem>

struct common_params;

namespace strata::engine {

// Fills in what a zero stands for. `trained_context_tokens`: of the model, 0 when not known. kInvalidArgument beyond a
// limit.
absl::StatusOr<DriverOptions> with_defaults(DriverOptions options, uint64_t trained_context_tokens);

// The parameters of llama.cpp's server for these options (with_defaults), made through its own table of arguments.
// Other than in a llama-server process, environment variables and configuration files have no say, and a bad argument
// is an error instead of the end of the process. kInvalidArgument names the argument.
absl::Status make_server_params(const DriverOptions & options, const std::filesystem::path & model,
                                common_params & params);

} // namespace strata::engine
