#include "engine/capi_handles.h"
#include "engine/driver.h"
#include "engine/driver_limits.h"
#include "mesh/directory.h"

#include <fmt/format.h>

using namespace strata::engine;

struct strata_driver {
    std::unique_ptr<Driver> driver;
};

// Outlives its driver when the caller keeps it.
struct strata_request {
    std::weak_ptr<RequestQueue> queue;
    std::shared_ptr<Request> request;
};

namespace {

class CallbackSink : public AnswerSink {
public:
    CallbackSink(const strata_response_fns & fns, void * user)
        : fns_(fns)
        , user_(user) {}
    void on_head(int status, std::string_view content_type) override {
        if (fns_.on_head) fns_.on_head(status, std::string(content_type).c_str(), user_);
    }
    void on_data(std::string_view data) override {
        if (fns_.on_data) fns_.on_data(data.data(), data.size(), user_);
    }
    void on_end(int32_t prompt_tokens, int32_t generated_tokens, double queue_ms) override {
        if (fns_.on_end) fns_.on_end(prompt_tokens, generated_tokens, queue_ms, user_);
    }

private:
    const strata_response_fns fns_;
    void * const user_;
};

absl::StatusOr<DriverOptions> to_driver_options(const strata_driver_options * given) {
    STRATA_ASSIGN_OR_RETURN(const strata_driver_options options, read_options(given, "strata_driver_options"));
    STRATA_ASSIGN_OR_RETURN(const SourceOptions source, to_source_options(options.store, options.views));
    DriverOptions result;
    result.store = source.store;
    result.views = source.views;
    result.verify = options.verify;
    if (options.alias != nullptr) {
        STRATA_ASSIGN_OR_RETURN(const std::string_view alias, bounded_string(options.alias, kMaxPathBytes, "alias"));
        result.alias = std::string(alias);
    }
    result.context_tokens = options.context_tokens;
    result.slots = options.slots;
    result.threads = options.threads;
    result.batch_tokens = options.batch_tokens;
    result.gpu_layers = options.gpu_layers;
    result.embeddings = options.embeddings;
    result.max_waiting = options.max_waiting;
    result.max_waiting_bytes = options.max_waiting_bytes;
    for (auto argument = options.llama_args; argument != nullptr && *argument != nullptr; ++argument) {
        STRATA_ASSIGN_OR_RETURN(const std::string_view text, bounded_string(*argument, kMaxTextBytes, "llama_args"));
        result.llama_args.emplace_back(text);
        if (result.llama_args.size() > kMaxLlamaArgs) {
            return absl::InvalidArgumentError(fmt::format("llama_args has more than {} entries", kMaxLlamaArgs));
        }
    }
    for (auto address = options.on; address != nullptr && *address != nullptr; ++address) {
        STRATA_ASSIGN_OR_RETURN(const std::string_view text, bounded_string(*address, kMaxPathBytes, "on"));
        if (result.on.size() >= strata::mesh::kMaxExecutors) {
            return absl::InvalidArgumentError(fmt::format("more than {} executors", strata::mesh::kMaxExecutors));
        }
        result.on.emplace_back(text);
    }
    result.lanes = options.lanes;
    if (options.on_loss != nullptr) {
        STRATA_ASSIGN_OR_RETURN(const std::string_view text, bounded_string(options.on_loss, kMaxPathBytes, "on_loss"));
        result.on_loss = text;
    }
    if (options.tls != nullptr) {
        STRATA_ASSIGN_OR_RETURN(const std::string_view folder, bounded_string(options.tls, kMaxPathBytes, "tls"));
        result.tls = folder;
    }
    if (options.split != nullptr) result.split.assign(options.split, options.split + result.on.size());
    if (options.progress != nullptr) {
        result.progress = [progress = options.progress, user = options.user](double fraction) {
            constexpr uint64_t kTotal = 1000;
            return progress("loading", static_cast<uint64_t>(fraction * kTotal), kTotal, user);
        };
    }
    return result;
}

} // namespace

strata_status strata_driver_open(const char * model, const strata_driver_options * options, strata_driver ** out) {
    if (out != nullptr) *out = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(out);
        STRATA_ASSIGN_OR_RETURN(const std::string_view name, bounded_string(model, kMaxPathBytes, "model"));
        STRATA_ASSIGN_OR_RETURN(DriverOptions driver_options, to_driver_options(options));
        auto handle = std::make_unique<strata_driver>();
        STRATA_ASSIGN_OR_RETURN(handle->driver, Driver::open(name, std::move(driver_options)));
        *out = handle.release();
        return absl::OkStatus();
    });
}

void strata_driver_close(strata_driver * driver) {
    delete driver;
}

strata_status strata_driver_request(strata_driver * driver, const char * method, const char * path, const void * body,
                                    size_t body_bytes, int64_t deadline_ms, const strata_response_fns * fns,
                                    void * user, strata_request ** out) {
    if (out != nullptr) *out = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(driver);
        STRATA_REQUIRE_ARGUMENT(fns);
        STRATA_REQUIRE_ARGUMENT(out);
        if (body == nullptr && body_bytes > 0) return null_argument("body");
        if (body_bytes > kMaxBodyBytes) {
            return absl::InvalidArgumentError(
                fmt::format("the body has {} bytes, more than the limit of {}", body_bytes, kMaxBodyBytes));
        }
        STRATA_ASSIGN_OR_RETURN(const std::string_view method_text, bounded_string(method, kMaxPathBytes, "method"));
        STRATA_ASSIGN_OR_RETURN(const std::string_view path_text, bounded_string(path, kMaxPathBytes, "path"));
        auto handle = std::make_unique<strata_request>();
        handle->queue = driver->driver->queue();
        std::string text = body_bytes == 0 ? std::string() : std::string(static_cast<const char *>(body), body_bytes);
        handle->request = driver->driver->start(std::string(method_text), std::string(path_text), std::move(text),
                                                deadline_ms, std::make_unique<CallbackSink>(*fns, user));
        *out = handle.release();
        return absl::OkStatus();
    });
}

void strata_request_cancel(strata_request * request) {
    if (request != nullptr) Driver::cancel(request->queue, request->request);
}

void strata_request_release(strata_request * request) {
    delete request;
}

strata_status strata_driver_drain(strata_driver * driver, int64_t timeout_ms) {
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(driver);
        constexpr int64_t kMaxMs = 24LL * 3600 * 1000;
        return driver->driver->drain(std::chrono::milliseconds(std::clamp<int64_t>(timeout_ms, 0, kMaxMs)));
    });
}

strata_status strata_driver_bind(strata_driver * driver, int32_t first_layer, int32_t last_layer,
                                 const char * executor) {
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(driver);
        STRATA_ASSIGN_OR_RETURN(const std::string_view address, bounded_string(executor, kMaxPathBytes, "executor"));
        return driver->driver->bind(first_layer, last_layer, std::string(address));
    });
}

strata_status strata_driver_status(strata_driver * driver, char ** json) {
    if (json != nullptr) *json = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(driver);
        STRATA_REQUIRE_ARGUMENT(json);
        *json = copy_string(driver->driver->status_json());
        return absl::OkStatus();
    });
}
