#pragma once

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace strata::v1 {
class Deployment;
}

namespace strata::daemon {

// What the daemon adds to /metrics. Numbers of engines are the ones of the last poll: scraping asks and loads nothing.
// Used on the loop.
class Metrics {
public:
    explicit Metrics(prometheus::Registry & registry);

    // Replaces the gauges, adds what the counters have grown by. `deployments` is every one there is.
    void update(const std::vector<v1::Deployment> & deployments, size_t waiting_for_load);
    void restarted(const std::string & deployment);
    void job_started() { jobs_running_.Increment(); }
    void job_ended(const std::string & kind, bool ok);

private:
    struct Totals {
        int64_t engine_pid = 0;
        int64_t prompt = 0;
        int64_t generated = 0;
    };
    void add_tokens(const v1::Deployment & deployment);

    prometheus::Family<prometheus::Gauge> & engines_;
    prometheus::Family<prometheus::Gauge> & slots_;
    prometheus::Family<prometheus::Gauge> & requests_;
    prometheus::Family<prometheus::Gauge> & resident_;
    prometheus::Family<prometheus::Counter> & tokens_;
    prometheus::Family<prometheus::Counter> & restarts_;
    prometheus::Family<prometheus::Counter> & jobs_;
    prometheus::Gauge & jobs_running_;
    prometheus::Gauge & waiting_for_load_;
    std::map<std::string, Totals> totals_; // by deployment: what the counters have seen
};

} // namespace strata::daemon
