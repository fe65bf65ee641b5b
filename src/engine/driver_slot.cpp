#include "engine/driver_slot.h"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include <fstream>
#include <vector>

namespace strata::engine {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

grpc::StatusCode to_grpc_code(strata_status status) {
    switch (status) {
    case STRATA_OK:
        return grpc::StatusCode::OK;
    case STRATA_INVALID_ARGUMENT:
        return grpc::StatusCode::INVALID_ARGUMENT;
    case STRATA_NOT_FOUND:
        return grpc::StatusCode::NOT_FOUND;
    case STRATA_CORRUPT:
        return grpc::StatusCode::DATA_LOSS;
    case STRATA_CANCELLED:
        return grpc::StatusCode::CANCELLED;
    case STRATA_RESOURCE_EXHAUSTED:
        return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case STRATA_UNAVAILABLE:
        return grpc::StatusCode::UNAVAILABLE;
    case STRATA_INTERNAL:
        return grpc::StatusCode::INTERNAL;
    }
    return grpc::StatusCode::INTERNAL;
}

// Members of a JSON object that this process made itself; what is missing is zero.
template <typename T>
T member(const nlohmann::json & object, const char * key) {
    const auto found = object.find(key);
    if (found == object.end()) return {};
    if constexpr (std::is_same_v<T, bool>)
        return found->is_boolean() && found->get<bool>();
    else if constexpr (std::is_same_v<T, std::string>)
        return found->is_string() ? found->get<std::string>() : T();
    else
        return found->is_number() ? found->get<T>() : T();
}

void read_options(const nlohmann::json & json, v1::ServeOptions & options) {
    options.set_context_tokens(member<int32_t>(json, "context_tokens"));
    options.set_slots(member<int32_t>(json, "slots"));
    options.set_threads(member<int32_t>(json, "threads"));
    options.set_batch_tokens(member<int32_t>(json, "batch_tokens"));
    options.set_gpu_layers(member<int32_t>(json, "gpu_layers"));
    options.set_embeddings(member<bool>(json, "embeddings"));
    options.set_max_waiting(member<int32_t>(json, "max_waiting"));
    options.set_max_waiting_bytes(member<int64_t>(json, "max_waiting_bytes"));
    if (json.contains("on")) {
        for (const nlohmann::json & address : json["on"]) options.add_on(address.get<std::string>());
    }
    if (json.contains("split")) {
        for (const nlohmann::json & share : json["split"]) options.add_split(share.get<double>());
    }
    options.set_lanes(member<int32_t>(json, "lanes"));
    options.set_on_loss(member<std::string>(json, "on_loss"));
    options.set_tls(member<std::string>(json, "tls"));
}

void read_part(const nlohmann::json & json, v1::PartStatus & part) {
    part.set_executor(member<std::string>(json, "executor"));
    part.set_first_layer(member<int32_t>(json, "first_layer"));
    part.set_last_layer(member<int32_t>(json, "last_layer"));
    part.set_weights_bytes(member<int64_t>(json, "weights_bytes"));
    part.set_lost(member<bool>(json, "lost"));
    part.set_bytes_out(member<int64_t>(json, "bytes_out"));
    part.set_bytes_in(member<int64_t>(json, "bytes_in"));
    part.set_graphs(member<int64_t>(json, "graphs"));
    part.set_busy_ms(member<double>(json, "busy_ms"));
}

void read_driver_status(const nlohmann::json & json, v1::EngineStatus & status) {
    status.set_waiting_requests(member<int32_t>(json, "waiting"));
    status.set_active_requests(member<int32_t>(json, "active"));
    status.set_weights_bytes(member<int64_t>(json, "weights_bytes"));
    status.set_prompt_tokens_total(member<int64_t>(json, "prompt_tokens_total"));
    status.set_generated_tokens_total(member<int64_t>(json, "generated_tokens_total"));
    status.set_requests_total(member<int64_t>(json, "requests_total"));
    status.set_prompt_tokens_per_second(member<double>(json, "prompt_tokens_per_second"));
    status.set_generated_tokens_per_second(member<double>(json, "generated_tokens_per_second"));
    status.set_idle_ms(member<int64_t>(json, "idle_ms"));
    if (json.contains("slots")) {
        for (const nlohmann::json & item : json["slots"]) {
            v1::SlotStatus & slot = *status.add_slots();
            slot.set_id(member<int32_t>(item, "id"));
            slot.set_busy(member<bool>(item, "busy"));
            slot.set_context_tokens(member<int32_t>(item, "context_tokens"));
            slot.set_used_tokens(member<int32_t>(item, "used_tokens"));
        }
    }
    if (json.contains("parts")) {
        for (const nlohmann::json & part : json["parts"]) read_part(part, *status.add_parts());
    }
    if (json.contains("options")) read_options(json["options"], *status.mutable_options());
}

// Resident memory and threads, from the kernel.
void read_process(v1::EngineStatus & status) {
    std::ifstream file("/proc/self/status");
    for (std::string key; file >> key;) {
        int64_t value = 0;
        if (key == "VmRSS:" && file >> value)
            status.set_resident_bytes(value * 1024);
        else if (key == "Threads:" && file >> value)
            status.set_threads(static_cast<int32_t>(value));
        file.clear();
        file.ignore(4096, '\n');
    }
    status.set_pid(::getpid());
}

} // namespace

grpc::Status last_failure(strata_status status) {
    return grpc::Status(to_grpc_code(status), strata_last_error());
}

grpc::Status DriverSlot::load(const v1::LoadRequest & request, const std::function<bool(float)> & progress) {
    {
        const std::unique_lock lock(driver_mutex_);
        if (loading_ || driver_ != nullptr) {
            return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                                "this engine serves " + loaded_.model() + " already; unload it first");
        }
        loading_ = true;
        draining_ = false;
        loaded_ = request;
    }
    const v1::ServeOptions & given = request.options();
    std::vector<const char *> llama_args;
    for (const std::string & argument : given.llama_args()) llama_args.push_back(argument.c_str());
    llama_args.push_back(nullptr);
    std::vector<const char *> on;
    for (const std::string & address : given.on()) on.push_back(address.c_str());
    on.push_back(nullptr);
    if (given.split_size() != 0 && given.split_size() != given.on_size()) {
        const std::unique_lock lock(driver_mutex_);
        loading_ = false;
        loaded_.Clear();
        return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "a split has one share for each executor");
    }

    strata_driver_options options;
    STRATA_INIT(&options);
    options.store = request.store_path().empty() ? nullptr : request.store_path().c_str();
    options.views = request.views_path().empty() ? nullptr : request.views_path().c_str();
    options.alias = request.deployment().empty() ? nullptr : request.deployment().c_str();
    options.context_tokens = given.context_tokens();
    options.slots = given.slots();
    options.threads = given.threads();
    options.batch_tokens = given.batch_tokens();
    options.gpu_layers = given.gpu_layers();
    options.embeddings = given.embeddings();
    options.max_waiting = given.max_waiting();
    options.max_waiting_bytes = given.max_waiting_bytes();
    options.llama_args = llama_args.data();
    options.on = on.data();
    options.lanes = given.lanes();
    options.on_loss = given.on_loss().empty() ? nullptr : given.on_loss().c_str();
    options.tls = given.tls().empty() ? nullptr : given.tls().c_str();
    options.split = given.split_size() == 0 ? nullptr : given.split().data();
    options.verify = true; // damage is found before it is used
    options.progress = [](const char *, uint64_t done, uint64_t total, void * user) {
        return (*static_cast<const std::function<bool(float)> *>(user))(static_cast<float>(done) /
                                                                        static_cast<float>(total));
    };
    options.user = const_cast<std::function<bool(float)> *>(&progress);

    strata_driver * driver = nullptr;
    const strata_status status = strata_driver_open(request.model().c_str(), &options, &driver);
    grpc::Status result = status == STRATA_OK ? grpc::Status::OK : last_failure(status);
    const std::unique_lock lock(driver_mutex_);
    loading_ = false;
    driver_ = driver;
    if (!result.ok()) loaded_.Clear();
    return result;
}

void DriverSlot::unload() {
    strata_driver * driver = nullptr;
    {
        const std::unique_lock lock(driver_mutex_);
        std::swap(driver, driver_);
        draining_ = false;
        if (driver != nullptr) loaded_.Clear();
    }
    strata_driver_close(driver);
}

grpc::Status DriverSlot::start(const v1::ServeRequest::Head & head, const strata_response_fns & fns, void * user,
                               strata_request ** out) {
    const std::shared_lock lock(driver_mutex_);
    if (driver_ == nullptr) return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "this engine serves no model");
    const strata_status status =
        strata_driver_request(driver_, head.method().c_str(), head.path().c_str(), head.body().data(),
                              head.body().size(), head.deadline_ms(), &fns, user, out);
    return status == STRATA_OK ? grpc::Status::OK : last_failure(status);
}

bool DriverSlot::drain(milliseconds timeout, const std::function<bool()> & give_up) {
    const auto end = steady_clock::now() + timeout;
    {
        const std::unique_lock lock(driver_mutex_);
        draining_ = driver_ != nullptr;
    }
    // In short pieces, so that an unload need not wait.
    constexpr milliseconds kPiece{50};
    while (true) {
        {
            const std::shared_lock lock(driver_mutex_);
            const auto left = std::chrono::duration_cast<milliseconds>(end - steady_clock::now());
            if (driver_ == nullptr) return true;
            if (strata_driver_drain(driver_, std::clamp(left, milliseconds(0), kPiece).count()) == STRATA_OK)
                return true;
        }
        if (steady_clock::now() >= end || give_up()) return false;
    }
}

grpc::Status DriverSlot::bind(const v1::BindRequest & request) {
    const std::shared_lock lock(driver_mutex_);
    if (driver_ == nullptr) return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, "this engine serves no model");
    const strata_status status =
        strata_driver_bind(driver_, request.first_layer(), request.last_layer(), request.executor().c_str());
    return status == STRATA_OK ? grpc::Status::OK : last_failure(status);
}

v1::EngineStatus DriverSlot::status() const {
    v1::EngineStatus status;
    status.set_build(strata_engine_build());
    status.set_uptime_ms(std::chrono::duration_cast<milliseconds>(steady_clock::now() - started_).count());
    read_process(status);
    const std::shared_lock lock(driver_mutex_);
    status.set_deployment(loaded_.deployment());
    status.set_model(loaded_.model());
    *status.mutable_options() = loaded_.options();
    status.set_state(loading_ ? v1::EngineStatus::STATE_LOADING : v1::EngineStatus::STATE_EMPTY);
    if (driver_ == nullptr) return status;
    status.set_state(draining_ ? v1::EngineStatus::STATE_DRAINING : v1::EngineStatus::STATE_READY);
    char * text = nullptr;
    if (strata_driver_status(driver_, &text) != STRATA_OK) return status;
    const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
    strata_free(text);
    if (json.is_object()) read_driver_status(json, status);
    return status;
}

void DriverSlot::remember(const std::string & id, strata_request * request) {
    const std::lock_guard lock(requests_mutex_);
    requests_.emplace(id, request);
}

void DriverSlot::forget(const std::string & id, strata_request * request) {
    const std::lock_guard lock(requests_mutex_);
    const auto [begin, end] = requests_.equal_range(id);
    for (auto it = begin; it != end; ++it) {
        if (it->second != request) continue;
        requests_.erase(it);
        return;
    }
}

bool DriverSlot::cancel(const std::string & id) {
    const std::lock_guard lock(requests_mutex_);
    const auto [begin, end] = requests_.equal_range(id);
    for (auto it = begin; it != end; ++it) strata_request_cancel(it->second);
    return begin != end;
}

void DriverSlot::cancel_all() {
    const std::lock_guard lock(requests_mutex_);
    for (const auto & [id, request] : requests_) strata_request_cancel(request);
}

} // namespace strata::engine
