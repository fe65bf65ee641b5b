#pragma once

#include <CLI/App.hpp>

#include <string>

namespace strata::cli {

// A completion script for bash, made from the program's own commands and options. Names of models are asked of
// `strata ls`, which is not allowed to start a daemon for it.
std::string bash_completion(const CLI::App & app);

} // namespace strata::cli
