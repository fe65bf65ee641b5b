#pragma once

#include "engine/driver_slot.h"
#include "strata/v1/engine.grpc.pb.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace strata::engine {

// Runs the few calls that block (load, drain, bind, unload) beside gRPC's threads: at most two at the same time, the
// others wait.
class ControlThreads {
public:
    ControlThreads();
    ~ControlThreads(); // runs what was taken

    // False when too many wait.
    bool run(std::function<void()> work);

private:
    void loop();

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> waiting_;
    bool stopping_ = false;
    std::vector<std::thread> threads_;
};

// The gRPC service of an engine process, asynchronous throughout: an open call costs memory, not a thread.
class EngineService : public v1::Engine::CallbackService {
public:
    using Clock = std::chrono::steady_clock;

    DriverSlot & slot() { return slot_; }
    // How long nobody has asked for anything; zero while a request or a load is under way.
    Clock::duration quiet() const;

    grpc::ServerWriteReactor<v1::LoadProgress> * Load(grpc::CallbackServerContext * context,
                                                      const v1::LoadRequest * request) override;
    grpc::ServerUnaryReactor * GetStatus(grpc::CallbackServerContext * context,
                                         const v1::GetEngineStatusRequest * request,
                                         v1::EngineStatus * response) override;
    grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> *
    Serve(grpc::CallbackServerContext * context) override;
    grpc::ServerUnaryReactor * Cancel(grpc::CallbackServerContext * context, const v1::CancelRequest * request,
                                      v1::CancelResponse * response) override;
    grpc::ServerUnaryReactor * Drain(grpc::CallbackServerContext * context, const v1::DrainRequest * request,
                                     v1::DrainResponse * response) override;
    grpc::ServerUnaryReactor * Unload(grpc::CallbackServerContext * context, const v1::UnloadRequest * request,
                                      v1::UnloadResponse * response) override;
    grpc::ServerUnaryReactor * Bind(grpc::CallbackServerContext * context, const v1::BindRequest * request,
                                    v1::BindResponse * response) override;

private:
    void touch() { last_call_ = Clock::now().time_since_epoch().count(); }

    DriverSlot slot_;
    std::atomic<Clock::rep> last_call_ = Clock::now().time_since_epoch().count();
    ControlThreads control_; // its work uses the slot: ends first
};

} // namespace strata::engine
