#include "daemon/supervisor.h"

#include "base/check.h"
#include "base/text.h"
#include "daemon/limits.h"
#include "daemon/utf8.h"
#include "gateway/api_error.h"

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <utility>

namespace strata::daemon {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

namespace {

constexpr milliseconds kFreshStatus{500};
constexpr milliseconds kEndOfCalls{5};

bool wants_embeddings(std::string_view path) {
    return path == "/v1/embeddings";
}

bool wants_text(std::string_view path) {
    constexpr std::array<std::string_view, 6> paths = {"/v1/chat/completions", "/v1/completions", "/completion",
                                                       "/v1/responses",        "/v1/messages",    "/infill"};
    return std::find(paths.begin(), paths.end(), path) != paths.end();
}

} // namespace

Supervisor::Supervisor(boost::asio::io_context & loop, boost::asio::thread_pool & workers, SupervisorOptions options,
                       Home home, layers::Store & store, Catalog & catalog, StateStore & state, Peers & peers,
                       Metrics & metrics)
    : options_(std::move(options))
    , catalog_(catalog)
    , peers_(peers)
    , remote_calls_(loop)
    , context_{loop,
               workers,
               std::move(home),
               options_.engine_program,
               options_.engine_build,
               store,
               catalog,
               state,
               metrics,
               *this,
               {},
               false}
    , poll_timer_(loop)
    , sweep_timer_(loop)
    , shut_down_timer_(loop) {}

Supervisor::~Supervisor() = default;

absl::Status Supervisor::restore() {
    STRATA_ASSIGN_OR_RETURN(const auto saved_deployments, context_.state.deployments());
    STRATA_ASSIGN_OR_RETURN(const auto saved_engines, context_.state.engines());
    std::vector<Deployment *> kept;
    for (const SavedDeployment & saved : saved_deployments) {
        const auto name = layers::ModelName::parse(saved.model);
        if (!name.ok()) continue;
        Deployment & restored = deployment(*name);
        restored.restore(saved);
        if (saved.keep) kept.push_back(&restored);
    }
    for (const SavedEngine & saved : saved_engines) {
        if (const auto name = layers::ModelName::parse(saved.model); name.ok()) deployment(*name).adopt(saved);
    }
    for (Deployment * deployment : kept) {
        if (deployment->state() == v1::Deployment::STATE_STOPPED) deployment->start({}, false, nullptr);
    }
    tick();
    sweep();
    return absl::OkStatus();
}

// ------------------------------------------------------------------------------------------------ requests

std::shared_ptr<gateway::ApiCall> Supervisor::serve(gateway::ApiRequest request,
                                                    std::shared_ptr<gateway::ResponseSink> sink) {
    auto call = std::make_shared<ServeCall>(context_.loop, std::move(request), std::move(sink),
                                            Clock::now() + limits::kRequestDeadline);
    boost::asio::post(context_.loop, [this, call] { route(call); });
    return call;
}

void Supervisor::route(const std::shared_ptr<ServeCall> & call) {
    const auto refuse_model = [&call](int status, const std::string & why) { call->fail(status, why, {}, "model"); };
    const auto facts = model_for(call->request());
    if (const auto node = better_place(call->request(), facts)) {
        remote_calls_.run(call, node);
        return;
    }
    if (!facts.ok()) {
        refuse_model(gateway::http_status_of(facts.status().code()), std::string(facts.status().message()));
        return;
    }
    Deployment & target = deployment(facts->name);
    const bool embeds = facts->embeds || target.options().embeddings();
    if (!embeds && wants_embeddings(call->request().path)) {
        refuse_model(400, fmt::format("{} is a model for text and serves no embeddings; use an embedding model, or "
                                      "start it with the option \"embeddings\"",
                                      facts->full_name));
        return;
    }
    if (embeds && wants_text(call->request().path)) {
        refuse_model(400, fmt::format("{} serves embeddings (/v1/embeddings) and no text", facts->full_name));
        return;
    }
    target.submit(call, *facts);
}

// Another node that has the model loaded, when this one has not.
std::shared_ptr<const NodeClient> Supervisor::better_place(const gateway::ApiRequest & request,
                                                           const absl::StatusOr<ModelFacts> & facts) {
    if (request.relayed || request.model.empty() || context_.shutting_down) return nullptr;
    if (!facts.ok()) {
        const auto name = layers::ModelName::parse(request.model);
        return name.ok() ? peers_.serving(name->to_string(), {}) : nullptr;
    }
    const auto here = deployments_.find(facts->full_name);
    if (here != deployments_.end() && here->second->state() != v1::Deployment::STATE_STOPPED) return nullptr;
    return peers_.serving(facts->full_name, facts->digest.to_string());
}

absl::StatusOr<ModelFacts> Supervisor::model_for(const gateway::ApiRequest & request) {
    if (!request.model.empty()) return catalog_.resolve(request.model);
    const auto models = catalog_.models();
    if (models->size() == 1) return models->front();
    // Several models: the only loaded one is what the client means.
    std::string loaded;
    size_t count = 0;
    for (const auto & [name, deployment] : deployments_) {
        if (deployment->state() != v1::Deployment::STATE_READY) continue;
        loaded = name;
        ++count;
    }
    if (count == 1) return catalog_.resolve(loaded);
    if (models->empty()) return catalog_.resolve(""); // says that there are none
    return absl::InvalidArgumentError(
        fmt::format("the request names no model; set \"model\" to one of {}, for example \"{}\"", models->size(),
                    models->front().full_name));
}

Deployment & Supervisor::deployment(const layers::ModelName & name) {
    auto & found = deployments_[name.to_string()];
    if (!found) found = std::make_unique<Deployment>(context_, name);
    return *found;
}

std::vector<gateway::ModelSummary> Supervisor::models() {
    const auto models = catalog_.models();
    std::vector<gateway::ModelSummary> summaries;
    summaries.reserve(models->size());
    const std::lock_guard lock(ready_mutex_);
    for (const ModelFacts & model : *models) {
        summaries.push_back({model.full_name, model.imported_unix_ms / 1000, model.architecture, model.parameters,
                             model.size_bytes, model.context_tokens, ready_.count(model.full_name) != 0});
    }
    for (const v1::ServedModel & model : peers_.models()) {
        const auto same = std::find_if(summaries.begin(), summaries.end(),
                                       [&](const auto & summary) { return summary.name == model.name(); });
        if (same != summaries.end()) {
            same->ready = true;
            continue;
        }
        summaries.push_back({model.name(), model.created_unix_ms() / 1000, model.architecture(),
                             static_cast<uint64_t>(model.parameters()), static_cast<uint64_t>(model.size_bytes()),
                             static_cast<uint64_t>(model.context_tokens()), true});
    }
    return summaries;
}

std::vector<v1::ServedModel> Supervisor::serving() {
    const auto models = catalog_.models();
    std::vector<v1::ServedModel> served;
    const std::lock_guard lock(ready_mutex_);
    for (const ModelFacts & model : *models) {
        if (ready_.count(model.full_name) == 0 || served.size() >= limits::kServedModels) continue;
        v1::ServedModel & entry = served.emplace_back();
        entry.set_name(model.full_name);
        entry.set_digest(model.digest.to_string());
        entry.set_architecture(valid_utf8(model.architecture));
        entry.set_parameters(static_cast<int64_t>(model.parameters));
        entry.set_size_bytes(static_cast<int64_t>(model.size_bytes));
        entry.set_context_tokens(static_cast<int64_t>(model.context_tokens));
        entry.set_created_unix_ms(model.imported_unix_ms);
        entry.set_embeds(model.embeds);
    }
    return served;
}

// ------------------------------------------------------------------------------------------------ control

void Supervisor::list(bool all, std::function<void(std::vector<v1::Deployment>)> done) {
    boost::asio::post(context_.loop, [this, all, done = std::move(done)] {
        auto pending = std::make_shared<size_t>(1);
        const auto one_less = [this, all, done, pending] {
            if (--*pending == 0) done(describe(all));
        };
        for (const auto & [name, deployment] : deployments_) {
            if (!deployment->has_process()) continue;
            ++*pending;
            deployment->refresh(kFreshStatus, [one_less](bool) { one_less(); });
        }
        one_less();
    });
}

void Supervisor::start(std::string model, std::optional<v1::ServeOptions> options, bool keep,
                       std::shared_ptr<StartObserver> observer) {
    boost::asio::post(context_.loop, [this, model = std::move(model), options = std::move(options), keep,
                                      observer = std::move(observer)] {
        const auto facts = catalog_.resolve(model);
        if (!facts.ok()) {
            const auto name = layers::ModelName::parse(model);
            const bool elsewhere = name.ok() && !options && !keep && peers_.serving(name->to_string(), {}) != nullptr;
            if (elsewhere) {
                v1::LoadProgress ready;
                ready.set_fraction(1);
                ready.set_ready(true);
                observer->progress(ready);
            }
            observer->done(elsewhere ? absl::OkStatus() : facts.status());
            return;
        }
        deployment(facts->name).start(options, keep, observer);
    });
}

void Supervisor::forget(std::string model, std::shared_ptr<StartObserver> observer) {
    boost::asio::post(context_.loop, [this, model = std::move(model), observer = std::move(observer)] {
        if (const auto facts = catalog_.resolve(model); facts.ok()) deployment(facts->name).forget(observer);
    });
}

void Supervisor::stop(std::string model, milliseconds drain,
                      std::function<void(absl::StatusOr<v1::StopDeploymentResponse>)> done) {
    boost::asio::post(context_.loop, [this, model = std::move(model), drain, done = std::move(done)] {
        const auto stop = [&](Deployment & target) {
            v1::StopDeploymentResponse response;
            response.set_was_stopped(target.state() == v1::Deployment::STATE_STOPPED);
            target.release();
            target.stop(drain, [done, response] { done(response); });
        };
        // A model that is gone from the store may still be loaded.
        if (const auto found = deployments_.find(model); found != deployments_.end()) {
            stop(*found->second);
        } else if (const auto facts = catalog_.resolve(model); facts.ok()) {
            stop(deployment(facts->name));
        } else {
            done(facts.status());
        }
    });
}

void Supervisor::remove(std::string model, std::function<void(absl::Status)> done) {
    boost::asio::post(context_.loop, [this, model = std::move(model), done = std::move(done)] {
        const auto facts = catalog_.resolve(model);
        if (!facts.ok()) {
            done(facts.status());
            return;
        }
        Deployment & target = deployment(facts->name);
        if (target.state() == v1::Deployment::STATE_BACKOFF) target.stop(milliseconds(0), {});
        if (target.state() != v1::Deployment::STATE_STOPPED) {
            done(absl::FailedPreconditionError(
                fmt::format("{0} is loaded; \"strata stop {0}\" unloads it first", facts->full_name)));
            return;
        }
        target.restore({facts->full_name, {}, false});
        boost::asio::post(context_.workers, [this, facts = *facts, done] {
            absl::Status removed = context_.store.remove(facts.name);
            if (removed.ok()) removed = context_.state.forget_deployment(facts.full_name);
            done(removed);
        });
    });
}

// ------------------------------------------------------------------------------------------------ places

void Supervisor::wait_for_place(Deployment & deployment) {
    place_waiters_.push_back({&deployment, Clock::now()});
    give_places();
}

void Supervisor::take_place(Deployment & deployment) {
    placed_.insert(&deployment);
}

void Supervisor::leave_place(Deployment & deployment) {
    placed_.erase(&deployment);
    place_waiters_.remove_if([&](const PlaceWaiter & waiter) { return waiter.deployment == &deployment; });
    // Not from within the caller, which is in the middle of a change.
    boost::asio::post(context_.loop, [this] { give_places(); });
}

void Supervisor::became_idle(Deployment &) {
    if (!place_waiters_.empty()) make_room();
}

void Supervisor::give_places() {
    while (!place_waiters_.empty()) {
        if (options_.max_loaded > 0 && placed_.size() >= static_cast<size_t>(options_.max_loaded)) {
            make_room();
            return;
        }
        Deployment & next = *place_waiters_.front().deployment;
        place_waiters_.pop_front();
        placed_.insert(&next);
        next.launch();
    }
}

// Unloads the idle model that was used longest ago. When all are busy for long, the one used longest ago is drained, so
// that a steady stream of requests to some models can't lock out another.
void Supervisor::make_room() {
    const bool full = options_.max_loaded > 0 && placed_.size() >= static_cast<size_t>(options_.max_loaded);
    if (place_waiters_.empty() || !full) return;
    Deployment * idle = nullptr;
    Deployment * busy = nullptr;
    bool on_its_way = false;
    bool all_kept = true;
    const auto older = [](Deployment * candidate, Deployment * than) {
        return than == nullptr || candidate->last_used() < than->last_used();
    };
    for (Deployment * placed : placed_) {
        if (!placed->kept()) all_kept = false;
        if (placed->state() == v1::Deployment::STATE_STOPPING) on_its_way = true;
        if (placed->kept() || placed->state() != v1::Deployment::STATE_READY) continue;
        Deployment *& oldest = placed->idle() ? idle : busy;
        if (older(placed, oldest)) oldest = placed;
    }
    if (all_kept) {
        const std::string why =
            fmt::format("all {} places for loaded models are taken by kept ones; \"strata stop\" one, "
                        "or serve with a larger --max-loaded",
                        options_.max_loaded);
        for (const PlaceWaiter & waiter : std::exchange(place_waiters_, {})) waiter.deployment->refuse_place(why);
        return;
    }
    if (on_its_way) return;
    const bool patience_over = Clock::now() - place_waiters_.front().since >= limits::kPlacePatience;
    if (Deployment * victim = idle != nullptr ? idle : patience_over ? busy : nullptr; victim != nullptr) {
        spdlog::info("{} makes room for {}", victim->name(), place_waiters_.front().deployment->name());
        victim->stop(limits::kRequestDeadline, {});
    }
}

// ------------------------------------------------------------------------------------------------ time

void Supervisor::tick() {
    std::vector<v1::Deployment> described;
    for (const auto & [name, deployment] : deployments_) {
        deployment->poll();
        described.push_back(deployment->describe(options_.idle_timeout));
    }
    context_.metrics.update(described, context_.waiting.calls);
    poll_timer_.after(limits::kPoll, [this] { tick(); });
}

void Supervisor::sweep() {
    const auto now = Clock::now();
    std::set<std::string> ready;
    for (const auto & [name, deployment] : deployments_) {
        deployment->sweep(now);
        if (deployment->state() != v1::Deployment::STATE_READY) continue;
        ready.insert(name);
        const bool unused = deployment->idle() && now - deployment->last_used() >= options_.idle_timeout;
        if (unused && options_.idle_timeout.count() > 0 && !deployment->kept()) {
            spdlog::info("{} was not used for {} s", name,
                         std::chrono::duration_cast<std::chrono::seconds>(options_.idle_timeout).count());
            deployment->stop(milliseconds(0), {});
        }
    }
    {
        const std::lock_guard lock(ready_mutex_);
        ready_ = std::move(ready);
    }
    make_room();
    sweep_timer_.after(limits::kSweep, [this] { sweep(); });
}

std::vector<v1::Deployment> Supervisor::describe(bool all) {
    std::vector<v1::Deployment> out;
    const auto models = catalog_.models();
    for (const auto & [name, deployment] : deployments_) {
        v1::Deployment described = deployment->describe(options_.idle_timeout);
        const bool shown = described.state() != v1::Deployment::STATE_STOPPED || !described.last_error().empty();
        if (shown) out.push_back(std::move(described));
    }
    if (!all) return out;
    for (const ModelFacts & model : *models) {
        if (std::any_of(out.begin(), out.end(), [&](const auto & d) { return d.name() == model.full_name; })) continue;
        v1::Deployment stopped;
        stopped.set_name(model.full_name);
        stopped.set_state(v1::Deployment::STATE_STOPPED);
        out.push_back(std::move(stopped));
    }
    std::sort(out.begin(), out.end(), [](const auto & a, const auto & b) { return a.name() < b.name(); });
    return out;
}

// ------------------------------------------------------------------------------------------------ the end

void Supervisor::shut_down(milliseconds drain, std::function<void()> done) {
    accepting_ = false;
    boost::asio::post(context_.loop, [this, drain, done = std::move(done)] {
        STRATA_CHECK(!context_.shutting_down);
        context_.shutting_down = true;
        shut_down_done_ = done;
        for (const auto & [name, deployment] : deployments_) deployment->stop(drain, {});
        remote_calls_.drain(drain);
        finish_shut_down();
    });
}

void Supervisor::finish_shut_down() {
    const bool stopped = std::all_of(deployments_.begin(), deployments_.end(), [](const auto & entry) {
        return entry.second->state() == v1::Deployment::STATE_STOPPED && entry.second->idle();
    });
    if (stopped && EngineClient::calls_under_way() == 0) {
        poll_timer_.cancel();
        sweep_timer_.cancel();
        shut_down_done_();
        return;
    }
    shut_down_timer_.after(kEndOfCalls, [this] { finish_shut_down(); });
}

void Supervisor::kill_all() {
    for (const auto & [name, deployment] : deployments_) deployment->kill();
}

} // namespace strata::daemon
