#pragma once

#include "daemon/catalog.h"
#include "daemon/deployment.h"
#include "daemon/metrics.h"
#include "daemon/peers.h"
#include "daemon/remote_calls.h"
#include "daemon/timer.h"
#include "gateway/backend.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace strata::daemon {

struct SupervisorOptions {
    std::filesystem::path engine_program;
    std::string engine_build;
    std::chrono::milliseconds idle_timeout{std::chrono::minutes(10)}; // 0: a model stays loaded
    int max_loaded = 3;                                               // engines at once; 0: no limit
};

// All deployments of a node: sends each request to its model's engine, unloads what is idle, makes room, and comes back
// to engines that an earlier daemon started.
//
// The public functions are thread-safe and return at once, their callbacks come on the loop; the loop runs on one
// thread. The references must outlive the supervisor, and the loop and the workers must have ended before it is
// destroyed.
class Supervisor final : public gateway::Backend, private Places {
public:
    Supervisor(boost::asio::io_context & loop, boost::asio::thread_pool & workers, SupervisorOptions options, Home home,
               layers::Store & store, Catalog & catalog, StateStore & state, Peers & peers, Metrics & metrics);
    ~Supervisor() override;

    // Adopts or ends the engines of an earlier daemon, starts what is kept. Once, before the loop runs.
    absl::Status restore();

    std::shared_ptr<gateway::ApiCall> serve(gateway::ApiRequest request,
                                            std::shared_ptr<gateway::ResponseSink> sink) override;
    std::vector<gateway::ModelSummary> models() override;
    bool accepting() override { return accepting_; }
    // What is loaded here.
    std::vector<v1::ServedModel> serving();

    // Deployments that run or have failed; with `all` every model of the store.
    void list(bool all, std::function<void(std::vector<v1::Deployment>)> done);
    // Options that are given replace the remembered ones.
    void start(std::string model, std::optional<v1::ServeOptions> options, bool keep,
               std::shared_ptr<StartObserver> observer);
    // The load goes on, but nobody is told.
    void forget(std::string model, std::shared_ptr<StartObserver> observer);
    void stop(std::string model, std::chrono::milliseconds drain,
              std::function<void(absl::StatusOr<v1::StopDeploymentResponse>)> done);
    // Removes a model from the store; kFailedPrecondition when it is loaded.
    void remove(std::string model, std::function<void(absl::Status)> done);

    // Refuses new requests, lets running ones end for at most `drain`, then ends all engines. `done` comes once, last.
    void shut_down(std::chrono::milliseconds drain, std::function<void()> done);
    // Ends all engines at once, whatever they do.
    void kill_all();

private:
    void wait_for_place(Deployment & deployment) override;
    void take_place(Deployment & deployment) override;
    void leave_place(Deployment & deployment) override;
    void became_idle(Deployment & deployment) override;

    struct PlaceWaiter {
        Deployment * deployment;
        std::chrono::steady_clock::time_point since;
    };

    void route(const std::shared_ptr<ServeCall> & call);
    std::shared_ptr<const NodeClient> better_place(const gateway::ApiRequest & request,
                                                   const absl::StatusOr<ModelFacts> & facts);
    absl::StatusOr<ModelFacts> model_for(const gateway::ApiRequest & request);
    Deployment & deployment(const layers::ModelName & name);
    void give_places();
    void make_room();
    void tick();
    void sweep();
    std::vector<v1::Deployment> describe(bool all);
    void finish_shut_down();

    SupervisorOptions options_;
    Catalog & catalog_;
    Peers & peers_;
    RemoteCalls remote_calls_;
    DeploymentContext context_;
    std::atomic<bool> accepting_{true};

    std::map<std::string, std::unique_ptr<Deployment>> deployments_; // by NAME:TAG; never erased from
    std::set<Deployment *> placed_;
    std::list<PlaceWaiter> place_waiters_;
    Timer poll_timer_;
    Timer sweep_timer_;
    Timer shut_down_timer_;
    std::function<void()> shut_down_done_;

    std::mutex ready_mutex_;
    std::set<std::string> ready_; // names of loaded models, for models()
};

} // namespace strata::daemon
