#pragma once

#include <string>

namespace strata::engine {

struct QuantizeCommand {
    std::string executor; // HOST:PORT
    std::string layer;    // "sha256:…"
    std::string type;     // "q4_0"
    std::string build;    // of this engine
    bool json = false;
};

// Asks an executor to make a layer from one in its store, and prints the digest of the new one; the exit code. SIGINT
// cancels. Called once, by the main thread, before there are other threads.
int run_quantize(const QuantizeCommand & command);

} // namespace strata::engine
