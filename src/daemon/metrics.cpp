#include "daemon/metrics.h"

#include "strata/v1/deployments.pb.h"

#include <algorithm>
#include <array>
#include <utility>

namespace strata::daemon {

namespace {

prometheus::Family<prometheus::Gauge> & gauge(prometheus::Registry & registry, const char * name, const char * help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}
prometheus::Family<prometheus::Counter> & counter(prometheus::Registry & registry, const char * name,
                                                  const char * help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

constexpr std::array<std::pair<v1::Deployment::State, const char *>, 5> kStates = {
    {{v1::Deployment::STATE_STOPPED, "stopped"},
     {v1::Deployment::STATE_STARTING, "starting"},
     {v1::Deployment::STATE_READY, "ready"},
     {v1::Deployment::STATE_STOPPING, "stopping"},
     {v1::Deployment::STATE_BACKOFF, "backoff"}}};

} // namespace

Metrics::Metrics(prometheus::Registry & registry)
    : engines_(gauge(registry, "strata_deployments", "Deployments by state"))
    , slots_(gauge(registry, "strata_engine_slots", "Slots of an engine, busy and idle"))
    , requests_(gauge(registry, "strata_engine_requests", "Requests in an engine, active and waiting for a slot"))
    , resident_(gauge(registry, "strata_engine_resident_bytes", "Resident memory of an engine process"))
    , tokens_(counter(registry, "strata_tokens_total", "Tokens that engines processed: prompt and generated"))
    , restarts_(counter(registry, "strata_engine_restarts_total", "Restarts of engines after failures"))
    , jobs_(counter(registry, "strata_jobs_total", "Imports, pulls and verifications that ended, by outcome"))
    , jobs_running_(gauge(registry, "strata_jobs_running", "Job processes that run now").Add({}))
    , waiting_for_load_(
          gauge(registry, "strata_requests_waiting_for_load", "Requests held while their model loads").Add({})) {}

void Metrics::update(const std::vector<v1::Deployment> & deployments, size_t waiting_for_load) {
    waiting_for_load_.Set(static_cast<double>(waiting_for_load));
    for (const auto & [state, name] : kStates) {
        const auto count = std::count_if(deployments.begin(), deployments.end(),
                                         [state = state](const auto & d) { return d.state() == state; });
        engines_.Add({{"state", name}}).Set(static_cast<double>(count));
    }
    for (const v1::Deployment & deployment : deployments) {
        const v1::EngineStatus & engine = deployment.engine(); // empty, so all zero, when none runs
        const auto busy = std::count_if(engine.slots().begin(), engine.slots().end(),
                                        [](const v1::SlotStatus & slot) { return slot.busy(); });
        const std::string & name = deployment.name();
        slots_.Add({{"deployment", name}, {"state", "busy"}}).Set(static_cast<double>(busy));
        slots_.Add({{"deployment", name}, {"state", "idle"}}).Set(static_cast<double>(engine.slots_size() - busy));
        requests_.Add({{"deployment", name}, {"state", "active"}}).Set(engine.active_requests());
        requests_.Add({{"deployment", name}, {"state", "waiting"}}).Set(engine.waiting_requests());
        resident_.Add({{"deployment", name}}).Set(static_cast<double>(engine.resident_bytes()));
        if (deployment.engine_pid() != 0) add_tokens(deployment);
    }
}

void Metrics::add_tokens(const v1::Deployment & deployment) {
    Totals & seen = totals_[deployment.name()];
    const v1::EngineStatus & engine = deployment.engine();
    if (seen.engine_pid != deployment.engine_pid()) seen = Totals{deployment.engine_pid(), 0, 0};
    const auto add = [&](const char * kind, int64_t now, int64_t & before) {
        if (now > before) {
            tokens_.Add({{"deployment", deployment.name()}, {"kind", kind}})
                .Increment(static_cast<double>(now - before));
            before = now;
        }
    };
    add("prompt", engine.prompt_tokens_total(), seen.prompt);
    add("generated", engine.generated_tokens_total(), seen.generated);
}

void Metrics::restarted(const std::string & deployment) {
    restarts_.Add({{"deployment", deployment}}).Increment();
}

void Metrics::job_ended(const std::string & kind, bool ok) {
    jobs_running_.Decrement();
    jobs_.Add({{"kind", kind}, {"outcome", ok ? "ok" : "failed"}}).Increment();
}

} // namespace strata::daemon
