#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <string>
#include <string_view>

namespace strata::gateway {

// The gateway's metrics, "strata_http_…". Labels are names of routes, never what a client sent. Thread-safe.
class Metrics {
public:
    explicit Metrics(prometheus::Registry & registry);

    void request_done(std::string_view route, int status, double seconds);
    // From the end of the request to the first byte of the answer's body.
    void first_byte(std::string_view route, double seconds);
    // A request or connection that was not taken: "headers_too_large", "slow", "too_many_connections", ...
    void refused(std::string_view reason);

private:
    prometheus::Family<prometheus::Counter> & requests_;
    prometheus::Family<prometheus::Histogram> & request_seconds_;
    prometheus::Family<prometheus::Histogram> & first_byte_seconds_;
    prometheus::Family<prometheus::Counter> & refused_;

public:
    prometheus::Gauge & open_connections;
    prometheus::Gauge & open_streams;
    prometheus::Counter & received_bytes;
    prometheus::Counter & sent_bytes;
    prometheus::Counter & client_disconnects; // before the answer was complete
    prometheus::Counter & slow_clients;       // cancelled because their answer piled up
};

} // namespace strata::gateway
