#pragma once

#include "base/runtime.h"
#include "cluster/store.h"
#include "strata/v1/cluster.pb.h"

#include <chrono>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace strata::cluster {

// What the nodes of a cluster say of themselves, and which of them are there: who says nothing for a while is silent.
// Kept in the state store ("status/NAME", under a lease). Thread-safe; calls wait for the store.
class Members {
public:
    static constexpr std::chrono::milliseconds kHeartbeat{1000}, kSilent{5000};

    Members(Store & store, Runtime & runtime)
        : store_(store)
        , runtime_(runtime) {}

    // A heartbeat of a node that has shown its certificate. kInvalidArgument: it says what can't be.
    absl::Status heard(const v1::Node & node);
    // All that were taken in, by name.
    absl::StatusOr<std::vector<v1::Node>> list();

private:
    struct Heard {
        int64_t lease = 0;
        std::string status; // as it is in the store
        std::chrono::steady_clock::time_point at;
    };

    Store & store_;
    Runtime & runtime_;
    std::mutex mutex_; // not held during a call of the store
    std::map<std::string, Heard> heard_;
};

} // namespace strata::cluster
