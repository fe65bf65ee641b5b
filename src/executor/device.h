#pragma once

#include "base/runtime.h"
#include "executor/part_graph.h"

#include <ggml-cpp.h>

#include <array>
#include <chrono>
#include <mutex>
#include <vector>

namespace strata::executor {

// Something that has work for a device: a session, a job on a layer.
class Work {
public:
    virtual ~Work() = default;
    enum class Outcome { kMore, kWaits };
    // Does a piece, of kTurn at most as far as it can tell, and no more than one graph. Called by one thread at a time.
    virtual Outcome work() = 0;
    // Background work leaves the device to the others, as long as that is not for ever (kMaxBackgroundWait).
    virtual bool background() const { return false; }
};

// A device of ggml with a queue of its own: whoever has used least of its time goes first, among drivers and then among
// background work. Thread-safe.
class Device {
public:
    Device(ggml_backend_dev_t device, int threads, Runtime & runtime = Runtime::real());
    ~Device();

    const DeviceTraits & traits() const { return traits_; }
    ggml_backend_t backend() const { return backend_.get(); }
    int threads() const { return traits_.threads; }
    uint64_t free_bytes() const;
    uint64_t memory_bytes() const;
    const Clock & clock() const { return runtime_.clock(); }

    // Starts a thread that works; without it, somebody calls work_once().
    void start();
    void stop();
    bool work_once(); // false: nothing is ready

    void add(const std::shared_ptr<Work> & work);
    void remove(const Work * work);
    // There may be something to do for it.
    void ready(const Work * work);

private:
    struct Entry {
        std::shared_ptr<Work> work;
        int64_t used_ns = 0; // or as much as if it had always been there and busy
        bool ready = false;
    };

    Entry * next(); // mutex_ held
    int64_t & served_ns(const Work & work) { return served_ns_[work.background() ? 1 : 0]; }
    void wake();

    Runtime & runtime_;
    DeviceTraits traits_;
    ggml_backend_ptr backend_;
    ggml_backend_ptr host_; // for what the device can't compute
    std::shared_ptr<void> threadpool_;

    std::mutex mutex_;
    std::vector<Entry> entries_;
    // used_ns of who was served last, of drivers and of background work: nobody who waits has used less
    std::array<int64_t, 2> served_ns_{};
    std::chrono::steady_clock::time_point background_ran_; // last
    std::unique_ptr<Runtime::Worker> worker_;
};

} // namespace strata::executor
