#pragma once

#include "strata/strata.h"
#include "strata/v1/engine.pb.h"

#include <grpcpp/support/status.h>

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <string>

namespace strata::engine {

// The status of a failed call of libstrata on this thread, with its sentence.
grpc::Status last_failure(strata_status status);

// The place for the one driver of this process, and the requests on it by their ids. Thread-safe.
class DriverSlot {
public:
    ~DriverSlot() { unload(); }

    // Blocks until the driver is ready. `progress` takes the fraction loaded; false gives up. FAILED_PRECONDITION when
    // there is a driver already, or one is being loaded.
    grpc::Status load(const v1::LoadRequest & request, const std::function<bool(float)> & progress);
    // Cancels what runs and waits for it. Nothing to do when there is no driver.
    void unload();

    // As strata_driver_request. FAILED_PRECONDITION when there is no driver.
    grpc::Status start(const v1::ServeRequest::Head & head, const strata_response_fns & fns, void * user,
                       strata_request ** out);

    // Takes no new requests from now on. True when none is left; false after the timeout or when `give_up` says so.
    bool drain(std::chrono::milliseconds timeout, const std::function<bool()> & give_up);

    grpc::Status bind(const v1::BindRequest & request);

    v1::EngineStatus status() const;

    // Requests by id (several may have one), to be cancelled by somebody else than the stream that they came on.
    void remember(const std::string & id, strata_request * request);
    void forget(const std::string & id, strata_request * request);
    bool cancel(const std::string & id);
    void cancel_all();

private:
    mutable std::shared_mutex driver_mutex_; // shared: uses driver_; exclusive: changes it
    strata_driver * driver_ = nullptr;
    bool loading_ = false;
    bool draining_ = false;
    v1::LoadRequest loaded_;    // what was asked for
    std::mutex requests_mutex_; // also held while one is cancelled, so that it is not released meanwhile
    std::multimap<std::string, strata_request *> requests_;
    const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
};

} // namespace strata::engine
