#pragma once

#include "base/home.h"
#include "base/status.h"
#include "daemon/catalog.h"
#include "daemon/engine_client.h"
#include "daemon/log_file.h"
#include "daemon/process.h"
#include "daemon/serve_call.h"
#include "daemon/state.h"
#include "daemon/timer.h"
#include "layers/store.h"
#include "strata/v1/deployments.pb.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace strata::daemon {

class Deployment;
class Metrics;

// How many models may be loaded at once, and which one has to go.
class Places {
public:
    virtual ~Places() = default;
    // Calls deployment.launch() when there is a place: at once or later.
    virtual void wait_for_place(Deployment & deployment) = 0;
    // For an engine that runs already, however many there are.
    virtual void take_place(Deployment & deployment) = 0;
    // Gives the place back, or ends the waiting for one.
    virtual void leave_place(Deployment & deployment) = 0;
    // A deployment without requests may go when another one waits.
    virtual void became_idle(Deployment & deployment) = 0;
};

// Requests held for a load, over all deployments.
struct WaitingTotals {
    size_t calls = 0;
    size_t bytes = 0;
};

// What every deployment of a daemon shares. All of it outlives the deployments.
struct DeploymentContext {
    boost::asio::io_context & loop;
    boost::asio::thread_pool & workers; // for what may wait for the store's lock
    Home home;
    std::filesystem::path engine_program;
    std::string engine_build; // an engine of another build is not used
    layers::Store & store;
    Catalog & catalog;
    StateStore & state;
    Metrics & metrics;
    Places & places;
    WaitingTotals waiting;
    bool shutting_down = false;
};

// Follows a start from outside. Called on the loop.
struct StartObserver {
    std::function<void(const v1::LoadProgress &)> progress;
    std::function<void(absl::Status)> done;
};

// One model being served by an engine process of its own: starts it when it is needed, restarts it when it fails, ends
// it. Used on the loop only.
//
//            start, request                      loaded
//   STOPPED ───────────────► STARTING ──────────────────────► READY ──┐ stop, idle
//      ▲                     │ ▲    │ the process ends                │
//      │        load refused │ │    ├──────────────► BACKOFF ◄────────┤ the process ends
//      │                     ▼ └────┼── time is over ───┘             ▼
//      └──────────────────────── STOPPING ◄───────────────────────────┘
class Deployment final : public CallOwner {
public:
    using State = v1::Deployment::State;
    using Time = std::chrono::steady_clock::time_point;

    Deployment(DeploymentContext & context, layers::ModelName name);
    ~Deployment() override;

    const std::string & name() const { return name_; }
    State state() const { return state_; }
    bool kept() const { return keep_; }
    bool has_process() const { return process_ != nullptr; }
    bool idle() const { return active_.empty(); }
    Time last_used() const { return last_used_; }
    const v1::ServeOptions & options() const { return options_; }

    // What the state store remembers; before anything else.
    void restore(const SavedDeployment & saved);
    // Takes over an engine of an earlier daemon when it fits, ends it when not.
    void adopt(const SavedEngine & saved);

    // Runs the call, starting the engine for it when there is none. `facts` are the model's as they are now.
    void submit(std::shared_ptr<ServeCall> call, const ModelFacts & facts);
    // Starts the engine without a call. New options restart an engine that runs with others.
    void start(const std::optional<v1::ServeOptions> & options, bool keep, std::shared_ptr<StartObserver> observer);
    void forget(const std::shared_ptr<StartObserver> & observer) { observers_.erase(observer); }
    // Lets running calls end, for at most `drain`, then ends the engine. `done` may be empty.
    void stop(std::chrono::milliseconds drain, std::function<void()> done);
    // A stop that a person asked for: what is kept is kept no longer.
    void release();
    // Ends the process at once.
    void kill();

    // There is a place among the loaded models.
    void launch();
    // No place can come free.
    void refuse_place(const std::string & why);

    // Asks the engine for its status; `done` follows, also when there is none or it does not answer.
    void refresh(std::chrono::milliseconds timeout, std::function<void(bool answered)> done);
    // Refreshes, and ends an engine that has not answered for a long time.
    void poll();
    // Deadlines of waiting calls.
    void sweep(Time now);

    v1::Deployment describe(std::chrono::milliseconds idle_timeout) const;

private:
    void on_waiting_cancelled(const std::shared_ptr<ServeCall> & call) override;
    void on_call_done(const std::shared_ptr<ServeCall> & call, const absl::Status & status) override;

    // Wraps a handler so that it runs on the loop, and only when the same process still runs then.
    template <typename Handler>
    auto of_this_engine(Handler handler);

    // The model as it is in the store, its blobs safe from garbage collection.
    struct Leased {
        layers::StoredModel model;
        layers::Lease lease;
    };
    // Leases the model on a worker; the handler is called on the loop, unless the start was given up meanwhile.
    void lease_model(std::function<void(absl::StatusOr<Leased>)> handler);

    void begin_start();
    absl::Status try_launch(Leased leased);
    void engine_up(const absl::StatusOr<v1::EngineStatus> & status);
    void adopted(const absl::StatusOr<v1::EngineStatus> & status);
    void finish_adoption(absl::StatusOr<Leased> leased);
    void refuse_adoption(const absl::Status & why);
    void loaded(const absl::Status & status);
    void become_ready();
    void dispatch(std::shared_ptr<ServeCall> call);
    void start_failed(const absl::Status & status);
    void crashed(const std::string & how);
    void terminate();
    void process_ended(ExitStatus exit);
    void stopped();
    void process_gone();

    std::deque<std::shared_ptr<ServeCall>> take_waiting();
    void fail_waiting(int http_status, const std::string & message,
                      std::optional<std::chrono::milliseconds> retry = {});
    void finish_observers(const absl::Status & status);
    void remember();
    void drop_untried_options();
    std::string serving() const { return "the engine serving " + name_; }

    DeploymentContext & context_;
    const layers::ModelName model_name_;
    const std::string name_;

    State state_ = v1::Deployment::STATE_STOPPED;
    v1::ServeOptions options_; // as asked for
    // What it was served with before, until a load has shown that `options_` can be used.
    std::optional<v1::ServeOptions> proven_options_;
    bool keep_ = false;

    std::deque<std::shared_ptr<ServeCall>> waiting_;
    std::set<std::shared_ptr<ServeCall>> active_;
    // Calls that their engine dropped and whose process has not been seen to end yet.
    std::vector<std::shared_ptr<ServeCall>> broken_;
    std::set<std::shared_ptr<StartObserver>> observers_;
    std::vector<std::function<void()>> stop_waiters_;
    Timer broken_timer_;
    Timer timer_;      // of the state: back-off, drain
    Timer kill_timer_; // from SIGTERM to SIGKILL

    // Of the running engine.
    std::unique_ptr<Process> process_;
    std::shared_ptr<char> engine_alive_; // gone with the process: late callbacks see it
    std::shared_ptr<EngineClient> client_;
    std::optional<layers::Lease> lease_;
    std::string socket_;
    std::string digest_;    // of the model that is loaded
    bool outdated_ = false; // the name means another model now, or other options are wanted
    bool adopting_ = false;
    bool terminating_ = false;
    LogFile log_;
    uint64_t log_start_ = 0; // where this engine's part of the log begins
    v1::EngineStatus status_;
    float load_fraction_ = 0;
    int silent_polls_ = 0;
    bool polling_ = false;
    std::shared_ptr<char> leasing_; // while a worker leases the model; gone when the start was given up
    std::string killed_because_;
    Time ready_since_;
    Time last_used_;

    int failures_in_row_ = 0;
    int restarts_ = 0;
    std::string last_error_;    // for people, until the next start after a stop
    std::string crash_message_; // for the calls of the engine that crashed last, until another one is ready
};

} // namespace strata::daemon
