#pragma once

#include "base/runtime.h"
#include "executor/blobs.h"
#include "executor/device.h"
#include "wire/network.h"

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace strata::executor {

// Makes layers from layers of the store for operators: computes on a device, as background work, and reads and writes
// on a thread of its own, so that no driver waits for a disk. Thread-safe.
class LayerJobs {
public:
    using Log = std::function<void(const std::string & line)>;

    // store: nullptr when there is none; it and the device outlive this.
    LayerJobs(Runtime & runtime, BlobStore * store, Device & device, Log log);
    ~LayerJobs();

    // Begins a job, or tells `operator_channel` why not. An error is one of the protocol.
    absl::Status start(const wire::LayerJob & order, const std::shared_ptr<wire::Channel> & operator_channel);
    // Cancels the jobs of an operator that is gone. A result that is complete stays in the store.
    void leave(const wire::Channel & operator_channel);

private:
    class Job;

    void to_disk(std::shared_ptr<Job> job); // it has something to do there
    void forget(const Job & job);
    std::chrono::nanoseconds work_once();

    const Clock & clock_;
    BlobStore * const store_;
    Device & device_;
    const Log log_;

    std::mutex mutex_;
    std::vector<std::shared_ptr<Job>> jobs_;
    std::deque<std::shared_ptr<Job>> disk_queue_;
    const std::unique_ptr<Runtime::Worker> worker_; // uses all of the above
};

} // namespace strata::executor
