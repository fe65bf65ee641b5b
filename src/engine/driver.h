#pragma once

#include "base/status.h"
#include "engine/driver_options.h"
#include "engine/lane_router.h"
#include "engine/mesh_device.h"
#include "engine/model_source.h"
#include "engine/request_queue.h"
#include "engine/server_host.h"

#include <nlohmann/json_fwd.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace strata::engine {

// Answers API requests for one model: a queue in front of llama.cpp's server. Thread-safe. Destroying it cancels what
// runs and waits for its callbacks to return.
class Driver {
public:
    static absl::StatusOr<std::unique_ptr<Driver>> open(std::string_view model, DriverOptions options);
    ~Driver();

    // Starts a request and returns at once. Whatever is wrong with it reaches the sink as an HTTP status with an error
    // in the shape of the path's API. deadline_ms: how long it may wait for a slot; 0: without end.
    std::shared_ptr<Request> start(std::string method, std::string path, std::string body, int64_t deadline_ms,
                                   std::unique_ptr<AnswerSink> sink);
    // May come at any time, also after the end and after the driver is gone.
    static void cancel(const std::weak_ptr<RequestQueue> & queue, const std::shared_ptr<Request> & request);
    std::weak_ptr<RequestQueue> queue() const { return queue_; }

    // Takes no new requests from now on; kUnavailable when some are left after the timeout.
    absl::Status drain(std::chrono::milliseconds timeout);

    // As strata_driver_bind describes it.
    absl::Status bind(int32_t first_layer, int32_t last_layer, const std::string & executor);

    // As strata_driver_status describes it.
    std::string status_json();

private:
    // An independent batch: its own server, slots and caches.
    struct Lane {
        std::unique_ptr<MeshDevice> mesh; // nullptr: all runs here; outlives the server
        std::unique_ptr<ServerHost> host;
    };
    static absl::StatusOr<Lane> open_lane(const DriverOptions & options, const ModelSource & source);

    Driver(ModelSource source, DriverOptions options, std::vector<Lane> lanes);
    RequestQueue::Tokens answer(Request & request, RequestQueue::Admission & admission);
    void refresh_status(); // status_mutex_ held
    nlohmann::ordered_json parts() const;

    const ModelSource source_; // keeps the blobs
    const DriverOptions options_;
    const std::vector<Lane> lanes_; // outlive the queue's workers
    LaneRouter router_;
    std::shared_ptr<RequestQueue> queue_;

    std::mutex status_mutex_;
    std::chrono::steady_clock::time_point status_time_{};
    std::vector<SlotState> slots_;
    ServerTotals totals_;
    double prompt_per_second_ = 0;
    double generated_per_second_ = 0;
};

} // namespace strata::engine
