#pragma once

#include "cli/command.h"

#include <cstdint>
#include <string>

namespace strata::cli {

struct LoadWish {
    std::string model;
    int32_t context_tokens = 0; // 0: as it is, or the default
    bool keep = false;          // never unload it for being idle
};

// Has the daemon load a model, with a bar when that takes a while. Returns at once when it is loaded as wished.
absl::Status load_model(const Context & context, Client & client, const LoadWish & wish);

} // namespace strata::cli
