#include "gateway/metrics.h"

namespace strata::gateway {

namespace {

const prometheus::Histogram::BucketBoundaries kRequestSeconds = {0.001, 0.005, 0.02, 0.1, 0.5, 1,  2,
                                                                 5,     10,    30,   60,  120, 300};
const prometheus::Histogram::BucketBoundaries kFirstByteSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                                   0.25,  0.5,    1,     2.5,  5,     10,   60};

template <typename Builder>
auto & family(Builder builder, const char * name, const char * help, prometheus::Registry & registry) {
    return builder.Name(name).Help(help).Register(registry);
}

} // namespace

Metrics::Metrics(prometheus::Registry & registry)
    : requests_(family(prometheus::BuildCounter(), "strata_http_requests_total", "Answered requests", registry))
    , request_seconds_(family(prometheus::BuildHistogram(), "strata_http_request_seconds",
                              "From a request's headers to the end of its answer", registry))
    , first_byte_seconds_(family(prometheus::BuildHistogram(), "strata_http_first_byte_seconds",
                                 "From the end of a request to the first byte of its answer's body", registry))
    , refused_(family(prometheus::BuildCounter(), "strata_http_refused_total",
                      "Requests and connections that were not taken, by reason", registry))
    , open_connections(
          family(prometheus::BuildGauge(), "strata_http_open_connections", "Connections now", registry).Add({}))
    , open_streams(
          family(prometheus::BuildGauge(), "strata_http_open_streams", "Streamed answers under way now", registry)
              .Add({}))
    , received_bytes(
          family(prometheus::BuildCounter(), "strata_http_received_bytes_total", "Bytes from clients", registry)
              .Add({}))
    , sent_bytes(
          family(prometheus::BuildCounter(), "strata_http_sent_bytes_total", "Bytes to clients", registry).Add({}))
    , client_disconnects(family(prometheus::BuildCounter(), "strata_http_client_disconnects_total",
                                "Clients that left before their answer was complete", registry)
                             .Add({}))
    , slow_clients(family(prometheus::BuildCounter(), "strata_http_slow_clients_total",
                          "Answers given up because the client did not read them", registry)
                       .Add({})) {}

void Metrics::request_done(std::string_view route, int status, double seconds) {
    const std::string path(route);
    requests_.Add({{"path", path}, {"status", std::to_string(status)}}).Increment();
    request_seconds_.Add({{"path", path}}, kRequestSeconds).Observe(seconds);
}

void Metrics::first_byte(std::string_view route, double seconds) {
    first_byte_seconds_.Add({{"path", std::string(route)}}, kFirstByteSeconds).Observe(seconds);
}

void Metrics::refused(std::string_view reason) {
    refused_.Add({{"reason", std::string(reason)}}).Increment();
}

} // namespace strata::gateway
