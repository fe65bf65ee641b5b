#pragma once

#include "cli/command.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace strata::cli {

struct LoadWish {
    static constexpr int32_t kAllNodes = -1;

    std::string model;
    std::optional<int32_t> context_tokens = {}; // none: the options stay as they are; 0: all are the defaults again
    bool keep = false;                          // never unload it for being idle
    std::vector<std::string> on = {};           // executors that run its layers; none: as it is, or the engine itself
    std::vector<double> split = {};             // their shares
    int32_t lanes = 0;                          // 0: as many as executors
    std::string on_loss = {};                   // of an executor
    std::string tls = {};                       // folder of certificates
    int32_t nodes = 0;                          // of the cluster, instead of `on`
};

// Has the daemon load a model, with a bar when that takes a while. Returns at once when it is loaded as wished.
absl::Status load_model(const Context & context, Client & client, const LoadWish & wish);

} // namespace strata::cli
