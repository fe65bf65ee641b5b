#pragma once

#include "cli/command.h"

#include <cstdint>
#include <string>
#include <vector>

namespace strata::cli {

struct LoadWish {
    std::string model;
    int32_t context_tokens = 0; // 0: as it is, or the default
    bool keep = false;          // never unload it for being idle
    std::vector<std::string> on; // executors that run its layers; none: as it is, or the engine itself
    std::vector<double> split;   // their shares
};

// Has the daemon load a model, with a bar when that takes a while. Returns at once when it is loaded as wished.
absl::Status load_model(const Context & context, Client & client, const LoadWish & wish);

} // namespace strata::cli
