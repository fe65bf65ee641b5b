#pragma once

#include "base/home.h"
#include "base/status.h"
#include "gateway/server.h"

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>

namespace strata::daemon {

struct DaemonOptions {
    Home home;
    gateway::ServerOptions http;
    std::string cluster;      // "address[:port]" for the other nodes: begins a cluster when this node is in none
    std::string node_name;    // when this node begins a cluster; empty: like the host's
    int executor_threads = 0; // 0: one for each core
    std::filesystem::path engine_program;
    std::chrono::milliseconds idle_timeout{std::chrono::minutes(10)}; // 0: never
    int max_loaded = 3;                                               // 0: no limit
};

// A whole stratad: state, supervisor, jobs, gRPC on the home's socket, HTTP. It answers from start() until stop().
class Daemon {
public:
    // Takes the home, and comes back to what an earlier daemon left running. An error leaves nothing behind.
    static absl::StatusOr<std::unique_ptr<Daemon>> start(const DaemonOptions & options);
    ~Daemon();

    std::string url() const;
    // What makes another machine a node of the cluster, within an hour; empty when that is not for this node to say.
    std::string join_command() const;
    // Returns on SIGTERM, SIGINT or SIGHUP. Another one of them during stop() ends engines and process at once.
    void wait_for_signal();
    // Takes nothing new, lets running requests end for at most `drain`, ends the engines and the servers.
    void stop(std::chrono::milliseconds drain);

private:
    class Impl;
    explicit Daemon(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace strata::daemon
