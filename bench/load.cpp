// Loads one model in turn from the store (libstrata) and from its original file (llama.cpp alone), in one process with
// warm page cache. Prints the times and the anonymous memory of each as JSON: weights that are mapped cost none.
//
//   strata-bench-load STORE NAME FILE ROUNDS
#include "strata/strata.h"

#include <llama.h>
#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>

namespace {

double milliseconds(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// Memory of this process that no file backs, in bytes.
long anonymous_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.starts_with("RssAnon:")) return std::atol(line.c_str() + 8) * 1024;
    }
    return 0;
}

struct Sample {
    double ms;
    long anonymous;
};

Sample load_ours(const char * store, const char * name) {
    strata_model_options options;
    STRATA_INIT(&options);
    options.store = store;
    const long before = anonymous_bytes();
    const auto start = std::chrono::steady_clock::now();
    strata_model * model = nullptr;
    if (strata_model_open(name, &options, &model) != STRATA_OK) {
        std::cerr << "strata-bench-load: " << strata_last_error() << "\n";
        std::exit(1);
    }
    const Sample sample{milliseconds(start), anonymous_bytes() - before};
    strata_model_close(model);
    return sample;
}

Sample load_peer(const char * file) {
    const long before = anonymous_bytes();
    const auto start = std::chrono::steady_clock::now();
    llama_model * model = llama_model_load_from_file(file, llama_model_default_params());
    if (model == nullptr) {
        std::cerr << "strata-bench-load: llama.cpp cannot load " << file << "\n";
        std::exit(1);
    }
    const Sample sample{milliseconds(start), anonymous_bytes() - before};
    llama_model_free(model);
    return sample;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 5) {
        std::cerr << "usage: strata-bench-load STORE NAME FILE ROUNDS\n";
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    nlohmann::json result;
    const int rounds = std::atoi(argv[4]);
    for (int i = -1; i < rounds; ++i) {
        // The first round warms the page cache and the allocator.
        Sample ours{};
        Sample peer{};
        if (i % 2 == 0) ours = load_ours(argv[1], argv[2]);
        peer = load_peer(argv[3]);
        if (i % 2 != 0) ours = load_ours(argv[1], argv[2]);
        if (i < 0) continue;
        result["ours_ms"].push_back(ours.ms);
        result["peer_ms"].push_back(peer.ms);
        result["ours_anonymous"].push_back(ours.anonymous);
        result["peer_anonymous"].push_back(peer.anonymous);
    }
    std::cout << result.dump() << "\n";
    return 0;
}
