#include "engine/driver.h"

#include "base/api_error.h"
#include "engine/driver_limits.h"
#include "engine/guarded_sink.h"
#include "engine/llama_args.h"
#include "engine/log.h"

#include <absl/cleanup/cleanup.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>

namespace strata::engine {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

void send_error(Request & request, int status, std::string_view message, const ErrorDetails & details = {}) {
    request.sink->on_head(status, "application/json; charset=utf-8");
    request.sink->on_data(error_body(request.path, status, message, details));
}

// Speed of what was done between two looks; the last one while nothing was.
void update_speed(double & per_second, int64_t tokens, double seconds) {
    if (tokens > 0 && seconds > 0) per_second = static_cast<double>(tokens) / seconds;
}

absl::StatusOr<std::unique_ptr<MeshDevice>> open_mesh(const DriverOptions & options, const ModelSource & source) {
    MeshDevice::Options mesh;
    mesh.on = options.on;
    mesh.split = options.split;
    mesh.on_loss = options.on_loss;
    mesh.tls = options.tls;
    mesh.name = options.alias;
    if (options.progress) {
        mesh.progress = [progress = options.progress](uint64_t done, uint64_t total) {
            (void)progress(static_cast<double>(done) / static_cast<double>(total));
        };
    }
    return MeshDevice::open(mesh, source);
}

std::string without_query(std::string path) {
    return path.substr(0, path.find('?'));
}

} // namespace

absl::StatusOr<std::unique_ptr<Driver>> Driver::open(std::string_view model, DriverOptions options) {
    SourceOptions where;
    where.store = options.store;
    where.views = options.views;
    where.verify = options.verify;
    if (options.progress) {
        where.progress = [&options](uint64_t, uint64_t) { return options.progress(0); }; // nothing is loaded yet
    }
    where.hollow = !options.on.empty();
    STRATA_ASSIGN_OR_RETURN(ModelSource source, ModelSource::open(model, where));
    const uint64_t trained = source.stored() ? source.stored()->index->context_tokens : 0;
    STRATA_ASSIGN_OR_RETURN(options, with_defaults(std::move(options), trained));
    if (options.alias.empty()) options.alias = source.name();
    std::vector<Lane> lanes;
    while (lanes.size() < static_cast<size_t>(options.lanes)) {
        STRATA_ASSIGN_OR_RETURN(Lane lane, open_lane(options, source));
        const std::set<size_t> needed =
            lane.mesh == nullptr ? std::set<size_t>() : lane.mesh->layers_needed_here(source);
        if (needed.empty()) {
            lanes.push_back(std::move(lane));
            continue;
        }
        // Ops that a mesh does not run: with what they need here, once more.
        log_message(STRATA_LOG_INFO,
                    fmt::format("{} layers of {} are needed by the driver itself", needed.size(), source.name()));
        where.real_layers.insert(needed.begin(), needed.end());
        lane = {};
        STRATA_ASSIGN_OR_RETURN(source, ModelSource::open(model, where));
    }
    return std::unique_ptr<Driver>(new Driver(std::move(source), std::move(options), std::move(lanes)));
}

absl::StatusOr<Driver::Lane> Driver::open_lane(const DriverOptions & options, const ModelSource & source) {
    Lane lane;
    DriverOptions here = options;
    if (!options.on.empty()) {
        STRATA_ASSIGN_OR_RETURN(lane.mesh, open_mesh(options, source));
        here.device = lane.mesh->name();
        here.progress = nullptr; // hollow files are loaded in no time; the mesh tells its own
    }
    STRATA_ASSIGN_OR_RETURN(lane.host, ServerHost::load(here, source.first_file()));
    if (lane.mesh != nullptr) {
        lane.mesh->end_loading();
        STRATA_RETURN_IF_ERROR(lane.mesh->health()); // llama.cpp loads all the same
    }
    return lane;
}

Driver::Driver(ModelSource source, DriverOptions options, std::vector<Lane> lanes)
    : source_(std::move(source))
    , options_(std::move(options))
    , lanes_(std::move(lanes))
    , router_(lanes_.size(), options_.slots_per_lane()) {
    QueueOptions queue;
    queue.slots = options_.slots;
    queue.short_workers = kShortWorkers;
    queue.max_waiting = static_cast<size_t>(options_.max_waiting);
    queue.max_waiting_bytes = static_cast<size_t>(options_.max_waiting_bytes);
    queue_ = std::make_shared<RequestQueue>(
        queue, [this](Request & request, RequestQueue::Admission & admission) { return answer(request, admission); },
        [](Request & request, int status, std::string_view message) { send_error(request, status, message); });
}

Driver::~Driver() {
    // A cancel on another thread may hold the queue for a moment; its threads must be gone before the server.
    queue_->stop();
}

std::shared_ptr<Request> Driver::start(std::string method, std::string path, std::string body, int64_t deadline_ms,
                                       std::unique_ptr<AnswerSink> sink) {
    auto request = std::make_shared<Request>();
    request->method = std::move(method);
    request->path = without_query(std::move(path));
    request->body = std::move(body);
    request->sink = std::move(sink);
    const auto route = lanes_.front().host->find(request->method, request->path);
    if (!route.ok()) {
        const auto message = route.status().message();
        queue_->refuse(request, route.status().code() == absl::StatusCode::kNotFound ? 404 : 405,
                       std::string(message.data(), message.size()));
        return request;
    }
    request->need = ServerHost::need(**route);
    queue_->submit(request, deadline_ms);
    return request;
}

void Driver::cancel(const std::weak_ptr<RequestQueue> & queue, const std::shared_ptr<Request> & request) {
    if (const auto alive = queue.lock()) alive->cancel(request);
}

RequestQueue::Tokens Driver::answer(Request & request, RequestQueue::Admission & admission) try {
    const ServerHost & first = *lanes_.front().host; // all are alike
    const ServerHost::Route & route = **first.find(request.method, request.path);
    int32_t width = 1;
    if (request.method == "POST") {
        const auto checked = check_request(ServerHost::body_kind(route), request.body, first.bounds());
        if (!checked.ok()) {
            const auto message = checked.status().message();
            const bool too_long = checked.status().code() == absl::StatusCode::kOutOfRange;
            send_error(request, 400, std::string_view(message.data(), message.size()),
                       {too_long ? "exceed_context_size_error" : "", field_of(checked.status())});
            return {};
        }
        width = checked->width;
    }
    // Who wants a server alone has all of them.
    if (!admission.enter(width > first.bounds().slots ? options_.slots + 1 : width)) return {};
    if (request.need == Need::kShort) return lanes_.front().host->run(route, request);
    const size_t number = router_.enter(request.body, width);
    const absl::Cleanup leave = [&] { router_.leave(number, width); };
    const Lane & lane = lanes_[number];
    if (lane.mesh == nullptr) return lane.host->run(route, request);
    std::unique_ptr<AnswerSink> sink = std::move(request.sink);
    request.sink = std::make_unique<GuardedSink>(
        *sink, [&lane] { return lane.mesh->health(); }, request.path);
    const absl::Cleanup restore = [&] { request.sink = std::move(sink); };
    return lane.host->run(route, request);
} catch (const std::exception & e) { // of memory, or of a JSON library; the head may be out
    log_message(STRATA_LOG_ERROR, fmt::format("a request to {} failed: {}", request.path, e.what()));
    return {};
}

absl::Status Driver::drain(milliseconds timeout) {
    queue_->close();
    if (queue_->wait_idle(timeout)) return absl::OkStatus();
    const RequestQueue::Counts counts = queue_->counts();
    return absl::UnavailableError(fmt::format("{} requests are still running and {} waiting after {} ms", counts.active,
                                              counts.waiting, timeout.count()));
}

absl::Status Driver::bind(int32_t first_layer, int32_t last_layer, const std::string & executor) {
    for (const Lane & lane : lanes_) {
        if (lane.mesh == nullptr)
            return absl::FailedPreconditionError("the model runs in this engine, not on executors");
        STRATA_RETURN_IF_ERROR(lane.mesh->bind(first_layer, last_layer, executor));
    }
    return absl::OkStatus();
}

void Driver::refresh_status() {
    const auto now = steady_clock::now();
    if (!slots_.empty() && now - status_time_ < milliseconds(kStatusReuseMs)) return;
    std::vector<SlotState> slots;
    ServerTotals sum;
    for (const Lane & lane : lanes_) {
        const auto of_lane = lane.host->slots(milliseconds(kSlotsTimeoutMs));
        const auto totals = lane.host->totals(milliseconds(kSlotsTimeoutMs));
        if (!of_lane || !totals) return; // the last known ones
        for (SlotState slot : *of_lane) {
            slot.id = static_cast<int32_t>(slots.size());
            slots.push_back(slot);
        }
        sum += *totals;
    }
    slots_ = std::move(slots);
    update_speed(prompt_per_second_, sum.prompt_tokens - totals_.prompt_tokens,
                 sum.prompt_seconds - totals_.prompt_seconds);
    update_speed(generated_per_second_, sum.generate_steps - totals_.generate_steps,
                 sum.generate_seconds - totals_.generate_seconds);
    totals_ = sum;
    status_time_ = steady_clock::now();
}

// The parts of all lanes; where two have the same, what they did is added up.
nlohmann::ordered_json Driver::parts() const {
    auto all = nlohmann::ordered_json::array();
    for (const Lane & lane : lanes_) {
        if (lane.mesh == nullptr) continue;
        for (nlohmann::ordered_json & part : lane.mesh->parts()) {
            const auto same = std::ranges::find_if(all, [&](const nlohmann::ordered_json & other) {
                return other["executor"] == part["executor"] && other["first_layer"] == part["first_layer"] &&
                       other["last_layer"] == part["last_layer"];
            });
            if (same == all.end()) {
                all.push_back(std::move(part));
                continue;
            }
            for (const char * key : {"bytes_out", "bytes_in", "graphs"})
                (*same)[key] = (*same)[key].get<uint64_t>() + part[key].get<uint64_t>();
            (*same)["busy_ms"] = (*same)["busy_ms"].get<double>() + part["busy_ms"].get<double>();
        }
    }
    return all;
}

std::string Driver::status_json() {
    using Json = nlohmann::ordered_json;
    const RequestQueue::Counts counts = queue_->counts();
    const std::lock_guard lock(status_mutex_);
    refresh_status();
    Json slots = Json::array();
    for (const SlotState & slot : slots_) {
        slots.push_back(Json{{"id", slot.id},
                             {"busy", slot.busy},
                             {"context_tokens", slot.context_tokens},
                             {"used_tokens", slot.used_tokens}});
    }
    const Json options = {{"context_tokens", lanes_.front().host->slot_context_tokens()},
                          {"slots", options_.slots},
                          {"threads", lanes_.front().host->threads()},
                          {"batch_tokens", options_.batch_tokens},
                          {"gpu_layers", options_.gpu_layers},
                          {"embeddings", options_.embeddings},
                          {"max_waiting", options_.max_waiting},
                          {"max_waiting_bytes", options_.max_waiting_bytes},
                          {"llama_args", options_.llama_args},
                          {"on", options_.on},
                          {"split", options_.split},
                          {"lanes", options_.lanes},
                          {"on_loss", options_.on_loss},
                          {"tls", options_.tls}};
    const Json status = {{"model", source_.name()},
                         {"alias", options_.alias},
                         {"waiting", counts.waiting},
                         {"active", counts.active},
                         {"slots", std::move(slots)},
                         {"prompt_tokens_total", totals_.prompt_tokens},
                         {"generated_tokens_total", totals_.generated_tokens},
                         {"requests_total", counts.total},
                         {"prompt_tokens_per_second", prompt_per_second_},
                         {"generated_tokens_per_second", generated_per_second_},
                         {"idle_ms", counts.idle_ms},
                         {"weights_bytes", lanes_.front().host->weights_bytes()},
                         {"draining", counts.closed},
                         {"parts", parts()},
                         {"options", options}};
    return status.dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace strata::engine
