#pragma once

#include "gateway/access.h"
#include "gateway/backend.h"
#include "gateway/connect.h"
#include "gateway/in_flight.h"
#include "gateway/limits.h"
#include "gateway/memory_budget.h"
#include "gateway/metrics.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace strata::gateway {

// What all connections of a server share. Thread-safe.
struct ServerContext {
    ServerContext(const Limits & given_limits, std::vector<std::string> allow_hosts, Backend & given_backend,
                  prometheus::Registry & given_registry, std::unique_ptr<ConnectBridge> given_connect)
        : limits(given_limits)
        , access(std::move(allow_hosts))
        , backend(given_backend)
        , registry(given_registry)
        , metrics(given_registry)
        , connect(std::move(given_connect)) {}

    const Limits limits;
    const AccessPolicy access;
    Backend & backend;
    prometheus::Registry & registry;
    Metrics metrics;
    const std::unique_ptr<ConnectBridge> connect; // null: no control plane here
    // These outlive the server where a backend holds on to its sinks.
    const std::shared_ptr<MemoryBudget> body_budget = std::make_shared<MemoryBudget>(limits.body_bytes_total);
    const std::shared_ptr<MemoryBudget> answer_budget = std::make_shared<MemoryBudget>(limits.queued_bytes_total);
    const std::shared_ptr<InFlight> in_flight = std::make_shared<InFlight>();
    std::atomic<bool> draining = false;
    std::atomic<size_t> connections = 0;
    std::atomic<uint64_t> next_request = 1;
};

} // namespace strata::gateway
