#pragma once

#include "base/status.h"

#include <cstdint>
#include <filesystem>
#include <string>

namespace strata::engine {

struct ExecutorProcessOptions {
    std::string listen = "127.0.0.1:7430";
    std::string name;
    std::string build;
    int threads = 0;
    uint64_t memory_limit_bytes = 0; // 0: from what is free
    std::string folder = "/var/tmp";
    std::filesystem::path store; // empty: the user's
    std::filesystem::path tls;   // folder of certificates; empty: without TLS
};

// Serves drivers and other executors until SIGTERM or SIGINT. Says where it listens in a line of JSON on stdout. Called
// once, by the main thread, before there are other threads.
absl::Status run_executor_process(const ExecutorProcessOptions & options);

} // namespace strata::engine
