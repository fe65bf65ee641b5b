#include "daemon/deployment.h"

#include "base/check.h"
#include "daemon/limits.h"
#include "daemon/metrics.h"
#include "gateway/api_error.h"

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <google/protobuf/util/message_differencer.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <utility>

namespace strata::daemon {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

// How long what broke off waits for the news of how its engine ended.
constexpr milliseconds kExitNews{3000};

bool same(const v1::ServeOptions & a, const v1::ServeOptions & b) {
    return google::protobuf::util::MessageDifferencer::Equals(a, b);
}

} // namespace

Deployment::Deployment(DeploymentContext & context, layers::ModelName name)
    : context_(context)
    , model_name_(std::move(name))
    , name_(model_name_.to_string())
    , broken_timer_(context.loop)
    , timer_(context.loop)
    , kill_timer_(context.loop)
    , log_(context.home.logs() / engine_log_name(name_)) {}

Deployment::~Deployment() = default;

template <typename Handler>
auto Deployment::of_this_engine(Handler handler) {
    return [this, &loop = context_.loop, alive = std::weak_ptr(engine_alive_), handler](auto... arguments) {
        boost::asio::post(loop, [alive, handler, ... arguments = std::move(arguments)] {
            if (!alive.expired()) handler(arguments...);
        });
    };
}

// ------------------------------------------------------------------------------------------------ asked from outside

void Deployment::restore(const SavedDeployment & saved) {
    options_ = saved.options;
    keep_ = saved.keep;
}

void Deployment::adopt(const SavedEngine & saved) {
    STRATA_CHECK(state_ == v1::Deployment::STATE_STOPPED);
    socket_ = saved.socket;
    auto process = Process::adopt(context_.loop, saved.process);
    if (!process.ok()) {
        spdlog::info("{} ended while no daemon ran", serving());
        process_gone();
        return;
    }
    process_ = std::move(*process);
    engine_alive_ = std::make_shared<char>();
    process_->on_exit([this](ExitStatus exit) { process_ended(exit); });
    client_ = std::make_shared<EngineClient>(socket_);
    digest_ = saved.model_digest;
    log_start_ = log_.size();
    state_ = v1::Deployment::STATE_STARTING;
    adopting_ = true;
    context_.places.take_place(*this);
    if (saved.build != context_.engine_build) {
        adopted(absl::FailedPreconditionError(fmt::format("it is of build {}", saved.build)));
        return;
    }
    client_->get_status(limits::kAdoption, true, of_this_engine([this](const auto & status) { adopted(status); }));
}

void Deployment::submit(std::shared_ptr<ServeCall> call, const ModelFacts & facts) {
    call->set_owner(this);
    if (context_.shutting_down) {
        call->fail(503, "the daemon is shutting down");
        return;
    }
    if (state_ == v1::Deployment::STATE_READY && !outdated_) {
        if (facts.digest.to_string() == digest_) {
            dispatch(std::move(call));
            return;
        }
        spdlog::info("{} names another model now; its engine is replaced", name_);
        outdated_ = true;
    }
    if (state_ == v1::Deployment::STATE_BACKOFF) {
        const auto left = std::max(duration_cast<milliseconds>(timer_.when() - Clock::now()), milliseconds(0));
        call->fail(503, fmt::format("{}; it is started again in {:.1f} s", last_error_, left.count() / 1000.0), left);
        return;
    }
    WaitingTotals & totals = context_.waiting;
    if (totals.calls >= limits::kWaitingRequests || totals.bytes + call->body_bytes() > limits::kWaitingBytes) {
        call->fail(429,
                   fmt::format("{} is not loaded yet, and {} requests wait for models to load; try again later", name_,
                               totals.calls),
                   milliseconds(5000));
        return;
    }
    ++totals.calls;
    totals.bytes += call->body_bytes();
    waiting_.push_back(std::move(call));
    if (state_ == v1::Deployment::STATE_STOPPED) {
        begin_start();
    } else if (state_ == v1::Deployment::STATE_READY) {
        stop(limits::kRequestDeadline, {});
    }
}

void Deployment::start(const std::optional<v1::ServeOptions> & options, bool keep,
                       std::shared_ptr<StartObserver> observer) {
    if (context_.shutting_down) {
        if (observer) observer->done(absl::UnavailableError("the daemon is shutting down"));
        return;
    }
    const bool other_options = options && !same(*options, options_);
    if (other_options) {
        if (!proven_options_) proven_options_ = options_;
        options_ = *options;
    }
    keep_ = keep_ || keep;
    if (keep) remember();

    if (state_ == v1::Deployment::STATE_READY && !other_options && !outdated_) {
        if (observer) {
            v1::LoadProgress ready;
            ready.set_fraction(1);
            ready.set_ready(true);
            *ready.mutable_status() = status_;
            observer->progress(ready);
            observer->done(absl::OkStatus());
        }
        return;
    }
    if (observer) observers_.insert(std::move(observer));
    switch (state_) {
    case v1::Deployment::STATE_STOPPED:
    case v1::Deployment::STATE_BACKOFF: // a person who asks does not wait for the back-off
        begin_start();
        break;
    case v1::Deployment::STATE_STARTING:
        if (other_options) outdated_ = true; // once it is ready it is replaced
        break;
    case v1::Deployment::STATE_READY:
        outdated_ = true;
        stop(limits::kRequestDeadline, {});
        break;
    default: // STOPPING: stopped() goes on for the observer
        break;
    }
}

void Deployment::release() {
    if (!keep_) return;
    keep_ = false;
    remember();
}

void Deployment::stop(milliseconds drain, std::function<void()> done) {
    if (done) stop_waiters_.push_back(std::move(done));
    switch (state_) {
    case v1::Deployment::STATE_STOPPED:
    case v1::Deployment::STATE_BACKOFF:
        timer_.cancel();
        stopped();
        break;
    case v1::Deployment::STATE_STARTING:
        fail_waiting(503, fmt::format("{} was stopped while it was loading", name_));
        finish_observers(absl::AbortedError(fmt::format("{} was stopped while it was loading", name_)));
        state_ = v1::Deployment::STATE_STOPPING;
        leasing_.reset();
        if (process_) {
            terminate();
        } else {
            context_.places.leave_place(*this);
            stopped();
        }
        break;
    case v1::Deployment::STATE_READY:
        state_ = v1::Deployment::STATE_STOPPING;
        spdlog::info("{} is being unloaded", name_);
        [[fallthrough]];
    case v1::Deployment::STATE_STOPPING:
        if (active_.empty()) {
            terminate();
        } else {
            timer_.after(drain, [this] {
                for (const auto & call : active_) call->cut(503, fmt::format("{} was stopped", name_));
            });
        }
        break;
    default:
        break;
    }
}

void Deployment::kill() {
    if (process_) process_->signal(SIGKILL);
}

// ------------------------------------------------------------------------------------------------ starting

void Deployment::begin_start() {
    if (state_ == v1::Deployment::STATE_BACKOFF) {
        timer_.cancel();
        ++restarts_;
        context_.metrics.restarted(name_);
    } else {
        last_error_.clear();
    }
    state_ = v1::Deployment::STATE_STARTING;
    load_fraction_ = 0;
    outdated_ = false;
    context_.places.wait_for_place(*this);
}

void Deployment::refuse_place(const std::string & why) {
    start_failed(absl::ResourceExhaustedError(why));
}

void Deployment::launch() {
    lease_model([this](absl::StatusOr<Leased> leased) {
        absl::Status failed = leased.status();
        if (failed.ok()) failed = try_launch(std::move(*leased));
        if (!failed.ok()) start_failed(failed);
    });
}

void Deployment::lease_model(std::function<void(absl::StatusOr<Leased>)> handler) {
    leasing_ = std::make_shared<char>();
    // A garbage collection may hold the store's lock for long, and the loop must not wait.
    boost::asio::post(context_.workers, [&context = context_, model_name = model_name_, name = name_,
                                         wanted = std::weak_ptr(leasing_), on_executors = options_.on_size() > 0,
                                         handler = std::move(handler)]() mutable {
        const auto lease = [&]() -> absl::StatusOr<Leased> {
            STRATA_ASSIGN_OR_RETURN(layers::StoredModel model, context.store.find(model_name));
            std::vector<Digest> blobs = model.blobs;
            if (on_executors) { // the engine says what it misses itself
                std::erase_if(blobs, [&](const Digest & blob) { return !context.store.has(blob); });
            }
            STRATA_ASSIGN_OR_RETURN(layers::Lease lease, context.store.lease("deployment " + name, blobs));
            return Leased{std::move(model), std::move(lease)};
        };
        boost::asio::post(context.loop,
                          [leased = lease(), wanted = std::move(wanted), handler = std::move(handler)]() mutable {
                              if (!wanted.expired()) handler(std::move(leased));
                          });
    });
}

absl::Status Deployment::try_launch(Leased leased) {
    STRATA_ASSIGN_OR_RETURN(const int64_t number, context_.state.next_number("engine"));
    log_.rotate_when_large();
    STRATA_ASSIGN_OR_RETURN(const UniqueFd log, log_.open_for_append());

    socket_ = context_.home.sockets() / fmt::format("engine-{}.sock", number);
    log_start_ = log_.size();
    const SpawnOptions engine{context_.engine_program, {"driver", "--socket", socket_}, log.get(), log.get()};
    STRATA_ASSIGN_OR_RETURN(process_, Process::spawn(context_.loop, engine));
    engine_alive_ = std::make_shared<char>();
    process_->on_exit([this](ExitStatus exit) { process_ended(exit); });
    lease_.emplace(std::move(leased.lease));
    digest_ = leased.model.manifest.to_string();
    STRATA_RETURN_IF_ERROR(
        context_.state.save(SavedEngine{name_, process_->id(), socket_, context_.engine_build, digest_}));
    spdlog::info("{} is being loaded by engine process {}", name_, process_->id().pid);

    client_ = std::make_shared<EngineClient>(socket_);
    client_->get_status(limits::kEngineUp, true, of_this_engine([this](const auto & status) { engine_up(status); }));
    return absl::OkStatus();
}

void Deployment::engine_up(const absl::StatusOr<v1::EngineStatus> & status) {
    if (state_ != v1::Deployment::STATE_STARTING) return;
    if (!status.ok()) {
        start_failed(absl::UnavailableError(
            fmt::format("{} did not answer within {} s of its start ({}); its log is {}", serving(),
                        duration_cast<std::chrono::seconds>(limits::kEngineUp).count(),
                        std::string(status.status().message()), log_.path().native())));
        return;
    }
    if (status->build() != context_.engine_build) {
        start_failed(absl::FailedPreconditionError(
            fmt::format("{} is of build {}, but this daemon needs {}; install both from one release",
                        context_.engine_program.native(), status->build(), context_.engine_build)));
        return;
    }
    status_ = *status;
    v1::LoadRequest request;
    request.set_store_path(context_.store.root());
    request.set_model(name_);
    request.set_views_path(context_.home.views());
    request.set_deployment(name_);
    *request.mutable_options() = options_;
    if (const auto facts = context_.catalog.resolve(name_); facts.ok() && facts->embeds) {
        request.mutable_options()->set_embeddings(true);
    }
    client_->load(std::move(request), of_this_engine([this](const v1::LoadProgress & progress) {
                      load_fraction_ = progress.fraction();
                      if (progress.ready()) {
                          status_ = progress.status();
                      } else {
                          for (const auto & observer : observers_) observer->progress(progress);
                      }
                  }),
                  of_this_engine([this](const absl::Status & status) { loaded(status); }));
}

void Deployment::loaded(const absl::Status & status) {
    if (state_ != v1::Deployment::STATE_STARTING) return;
    if (status.ok()) {
        spdlog::info("{} is ready", name_);
        become_ready();
    } else if (status.code() != absl::StatusCode::kUnavailable) {
        start_failed(status);
    } else {
        // The connection broke: most likely the process is ending, and process_ended says how.
        timer_.after(kExitNews, [this, status] { start_failed(status); });
    }
}

void Deployment::adopted(const absl::StatusOr<v1::EngineStatus> & status) {
    if (state_ != v1::Deployment::STATE_STARTING) return;
    absl::Status fits = status.status();
    if (fits.ok() && status->build() != context_.engine_build) {
        fits = absl::FailedPreconditionError(fmt::format("it is of build {}", status->build()));
    }
    if (fits.ok() && status->state() != v1::EngineStatus::STATE_READY) {
        fits = absl::FailedPreconditionError("it has not loaded its model");
    }
    if (!fits.ok()) {
        refuse_adoption(fits);
        return;
    }
    status_ = *status;
    lease_model([this](absl::StatusOr<Leased> leased) { finish_adoption(std::move(leased)); });
}

void Deployment::finish_adoption(absl::StatusOr<Leased> leased) {
    if (leased.ok() && leased->model.manifest.to_string() != digest_) {
        leased = absl::FailedPreconditionError("the name means another model now");
    }
    if (!leased.ok()) {
        refuse_adoption(leased.status());
        return;
    }
    spdlog::info("{} (process {}) is adopted", serving(), process_->id().pid);
    adopting_ = false;
    lease_.emplace(std::move(leased->lease));
    become_ready();
    last_used_ -= milliseconds(status_.idle_ms());
}

void Deployment::refuse_adoption(const absl::Status & why) {
    spdlog::info("{} (process {}) is not adopted: {}", serving(), process_->id().pid, std::string(why.message()));
    state_ = v1::Deployment::STATE_STOPPING;
    terminate();
}

void Deployment::become_ready() {
    state_ = v1::Deployment::STATE_READY;
    load_fraction_ = 1;
    crash_message_.clear();
    ready_since_ = last_used_ = Clock::now();
    silent_polls_ = 0;
    if (outdated_) {
        stop(limits::kRequestDeadline, {});
        return;
    }
    if (proven_options_) {
        proven_options_.reset();
        remember();
    }
    v1::LoadProgress ready;
    ready.set_fraction(1);
    ready.set_ready(true);
    *ready.mutable_status() = status_;
    for (const auto & observer : observers_) observer->progress(ready);
    finish_observers(absl::OkStatus());
    for (auto & call : take_waiting()) dispatch(std::move(call));
    if (active_.empty()) context_.places.became_idle(*this);
}

void Deployment::start_failed(const absl::Status & status) {
    last_error_ = fmt::format("{} can't be loaded: {}", name_, std::string(status.message()));
    spdlog::error("{}", last_error_);
    // Whatever is wrong with the model, nothing is wrong with the request.
    const int http_status =
        status.code() == absl::StatusCode::kResourceExhausted || status.code() == absl::StatusCode::kUnavailable ? 503
                                                                                                                 : 500;
    fail_waiting(http_status, last_error_);
    finish_observers(absl::Status(status.code(), last_error_));
    drop_untried_options();
    state_ = v1::Deployment::STATE_STOPPING;
    if (process_) {
        terminate();
    } else {
        context_.places.leave_place(*this);
        stopped();
    }
}

// ------------------------------------------------------------------------------------------------ calls

void Deployment::dispatch(std::shared_ptr<ServeCall> call) {
    const auto [position, added] = active_.insert(std::move(call));
    STRATA_CHECK(added);
    (*position)->start(*client_);
}

void Deployment::on_waiting_cancelled(const std::shared_ptr<ServeCall> & call) {
    const auto found = std::find(waiting_.begin(), waiting_.end(), call);
    if (found == waiting_.end()) return; // it runs or has its answer
    --context_.waiting.calls;
    context_.waiting.bytes -= call->body_bytes();
    waiting_.erase(found);
    call->fail(0, {});
}

void Deployment::on_call_done(const std::shared_ptr<ServeCall> & call, const absl::Status & status) {
    active_.erase(call);
    last_used_ = Clock::now();
    if (!status.ok()) {
        const bool connection_lost = status.code() == absl::StatusCode::kUnavailable;
        if (connection_lost && process_) {
            // Its process is probably ending: how, is known in a moment.
            broken_.push_back(call);
            broken_timer_.after(kExitNews, [this, why = std::string(status.message())] {
                for (const auto & waiting : std::exchange(broken_, {})) {
                    waiting->fail(503, fmt::format("the connection to {} was lost: {}", serving(), why));
                }
            });
        } else if (connection_lost) {
            call->fail(503, crash_message_.empty() ? fmt::format("{} was stopped", name_) : crash_message_);
        } else {
            call->fail(gateway::http_status_of(status.code()), std::string(status.message()));
        }
    }
    if (!active_.empty()) return;
    if (state_ == v1::Deployment::STATE_STOPPING) {
        terminate();
    } else if (state_ == v1::Deployment::STATE_READY) {
        context_.places.became_idle(*this);
    }
}

std::deque<std::shared_ptr<ServeCall>> Deployment::take_waiting() {
    for (const auto & call : waiting_) {
        --context_.waiting.calls;
        context_.waiting.bytes -= call->body_bytes();
    }
    return std::exchange(waiting_, {});
}

void Deployment::fail_waiting(int http_status, const std::string & message, std::optional<milliseconds> retry) {
    for (const auto & call : take_waiting()) call->fail(http_status, message, retry);
}

void Deployment::finish_observers(const absl::Status & status) {
    for (const auto & observer : std::exchange(observers_, {})) observer->done(status);
}

void Deployment::sweep(Time now) {
    // Deadlines are all as long, so the oldest call has the nearest one.
    while (!waiting_.empty() && waiting_.front()->deadline() <= now) {
        const std::shared_ptr<ServeCall> call = waiting_.front();
        waiting_.pop_front();
        --context_.waiting.calls;
        context_.waiting.bytes -= call->body_bytes();
        call->fail(503, fmt::format("{} was not loaded within {} minutes", name_,
                                    duration_cast<std::chrono::minutes>(limits::kRequestDeadline).count()));
    }
}

// ------------------------------------------------------------------------------------------------ ending

void Deployment::terminate() {
    if (std::exchange(terminating_, true)) return;
    timer_.cancel();
    process_->signal(SIGTERM);
    kill_timer_.after(limits::kTermination, [this] {
        spdlog::warn("{} did not end on SIGTERM within {} s and is killed", serving(),
                     duration_cast<std::chrono::seconds>(limits::kTermination).count());
        kill();
    });
}

void Deployment::process_ended(ExitStatus exit) {
    kill_timer_.cancel();
    const bool was_asked = state_ == v1::Deployment::STATE_STOPPING;
    const bool was_loading = state_ == v1::Deployment::STATE_STARTING;
    const bool healthy = !was_loading && Clock::now() - ready_since_ >= limits::kHealthy;
    std::string how;
    if (!was_asked) {
        const std::string reason = log_.reason_since(log_start_);
        how = fmt::format("{} {} ({}{}{})", serving(), was_loading ? "ended while loading" : "ended unexpectedly",
                          killed_because_.empty() ? exit.describe() : killed_because_, reason.empty() ? "" : ": ",
                          reason);
    }
    process_gone();
    context_.places.leave_place(*this);
    if (was_asked) {
        // Calls that were cut short by the stop still get their end from gRPC.
        for (const auto & call : std::exchange(broken_, {})) call->fail(503, fmt::format("{} was stopped", name_));
        stopped();
        return;
    }
    if (healthy) failures_in_row_ = 0;
    if (was_loading) drop_untried_options();
    crashed(how);
}

void Deployment::process_gone() {
    process_.reset();
    engine_alive_.reset();
    client_.reset();
    leasing_.reset();
    lease_.reset();
    status_.Clear();
    digest_.clear();
    killed_because_.clear();
    timer_.cancel(); // it was about this engine's start or its calls
    polling_ = adopting_ = terminating_ = false;
    silent_polls_ = 0;
    load_fraction_ = 0;
    ::unlink(socket_.c_str());
    if (absl::Status failed = context_.state.forget_engine(name_); !failed.ok()) {
        spdlog::error("{}", std::string(failed.message()));
    }
}

void Deployment::crashed(const std::string & how) {
    ++failures_in_row_;
    const bool again = keep_ || failures_in_row_ <= limits::kFailuresInRow;
    const milliseconds pause = limits::backoff_after(failures_in_row_);
    last_error_ = how;
    spdlog::error(
        "{}; {}", how,
        again ? fmt::format("restart in {:.1f} s", pause.count() / 1000.0)
              : fmt::format("after {} failures in a row it stays stopped until it is asked for", failures_in_row_));
    crash_message_ = again ? how + "; it is being restarted" : how;
    broken_timer_.cancel();
    for (const auto & call : std::exchange(broken_, {})) call->fail(503, crash_message_, pause);
    fail_waiting(503, crash_message_, pause);
    finish_observers(absl::UnavailableError(how));
    // Calls in active_ learn of the lost connection from gRPC in a moment, and find crash_message_.
    if (!again) {
        failures_in_row_ = 0;
        stopped();
        return;
    }
    state_ = v1::Deployment::STATE_BACKOFF;
    timer_.after(pause, [this] { begin_start(); });
}

void Deployment::stopped() {
    state_ = v1::Deployment::STATE_STOPPED;
    for (auto & done : std::exchange(stop_waiters_, {})) done();
    if (context_.shutting_down) {
        fail_waiting(503, "the daemon is shutting down");
        finish_observers(absl::UnavailableError("the daemon is shutting down"));
    } else if (state_ == v1::Deployment::STATE_STOPPED && (!waiting_.empty() || !observers_.empty())) {
        begin_start();
    }
}

// ------------------------------------------------------------------------------------------------ watching

void Deployment::refresh(milliseconds timeout, std::function<void(bool answered)> done) {
    if (!client_) {
        done(false);
        return;
    }
    // `done` comes in any case, the rest only when the engine is still the same.
    client_->get_status(timeout, false,
                        [this, &loop = context_.loop, alive = std::weak_ptr(engine_alive_),
                         done = std::move(done)](absl::StatusOr<v1::EngineStatus> status) {
                            boost::asio::post(loop, [this, alive, done, status = std::move(status)] {
                                if (status.ok() && !alive.expired()) status_ = *status;
                                done(status.ok());
                            });
                        });
}

void Deployment::poll() {
    log_.rotate_when_large();
    const bool running = state_ == v1::Deployment::STATE_READY || state_ == v1::Deployment::STATE_STARTING;
    if (!client_ || !running || adopting_ || polling_) return;
    // Counted in polls, not in time: when this daemon itself was held up, that is not the engine's fault.
    if (silent_polls_ >= limits::kEngineSilent / limits::kPoll && !process_->traced()) {
        killed_because_ = fmt::format("killed, as it had not answered for {} s",
                                      duration_cast<std::chrono::seconds>(limits::kEngineSilent).count());
        kill();
        return;
    }
    polling_ = true;
    refresh(limits::kPollAnswer, of_this_engine([this](bool answered) {
                polling_ = false;
                silent_polls_ = answered ? 0 : silent_polls_ + 1;
            }));
}

// A person's mistake in the options of one start must not make the model unusable.
void Deployment::drop_untried_options() {
    if (!proven_options_) return;
    options_ = *std::move(proven_options_);
    proven_options_.reset();
}

void Deployment::remember() {
    const absl::Status saved = context_.state.save(SavedDeployment{name_, proven_options_.value_or(options_), keep_});
    if (!saved.ok()) spdlog::error("the options of {} are not remembered: {}", name_, std::string(saved.message()));
}

v1::Deployment Deployment::describe(milliseconds idle_timeout) const {
    v1::Deployment out;
    out.set_name(name_);
    out.set_state(state_);
    out.set_load_fraction(load_fraction_);
    if (process_) {
        *out.mutable_engine() = status_;
        out.set_engine_pid(process_->id().pid);
    }
    out.set_restarts(restarts_);
    out.set_last_error(last_error_);
    out.set_model_digest(digest_);
    const Time now = Clock::now();
    if (state_ == v1::Deployment::STATE_BACKOFF) {
        out.set_retry_in_ms(std::max<int64_t>(duration_cast<milliseconds>(timer_.when() - now).count(), 0));
    }
    if (state_ == v1::Deployment::STATE_READY && active_.empty() && !keep_ && idle_timeout.count() > 0) {
        const auto left = duration_cast<milliseconds>(last_used_ + idle_timeout - now).count();
        out.set_unload_in_ms(std::max<int64_t>(left, 1));
    }
    return out;
}

} // namespace strata::daemon
