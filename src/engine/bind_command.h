#pragma once

#include <string>

namespace strata::engine {

struct BindCommand {
    std::string socket; // of a driver
    std::string layers; // "10-19" or "7"
    std::string to;     // "host:port"
};

// Asks a driver to bind layers to another executor and prints the parts that its model has then; the exit code.
int run_bind(const BindCommand & command);

} // namespace strata::engine
