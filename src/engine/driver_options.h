#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace strata::engine {

// How a model is served. Zero means: the default.
struct DriverOptions {
    std::filesystem::path store;
    std::filesystem::path views;
    std::string alias;
    int32_t context_tokens = 0; // per slot
    int32_t slots = 0;
    int32_t threads = 0;
    int32_t batch_tokens = 0;
    int32_t gpu_layers = 0;
    bool embeddings = false;
    bool verify = false; // hash first every blob that was not hashed since it was changed
    int32_t max_waiting = 0;
    int64_t max_waiting_bytes = 0;
    std::vector<std::string> llama_args;
    std::vector<std::string> on; // executors
    std::vector<double> split;
    int32_t lanes = 0;   // at work at the same time, on executors
    std::string on_loss; // "rebind", "wait", "fail"; empty: rebind
    std::string tls;     // folder of the certificates for executors; empty: without TLS
    std::string device;  // of ggml, that layers are put on; empty: as gpu_layers says
    // Fraction of the weights loaded. False asks to give up; llama.cpp's server can't be stopped while it loads, so
    // that the load is undone at its end.
    std::function<bool(double fraction)> progress;

    int32_t slots_per_lane() const { return slots / lanes; } // once they have their defaults
};

} // namespace strata::engine
