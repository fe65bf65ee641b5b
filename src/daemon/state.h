#pragma once

#include "base/status.h"
#include "daemon/process.h"
#include "strata/v1/engine.pb.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace strata::daemon {

// What a person asked for.
struct SavedDeployment {
    std::string model; // NAME:TAG
    v1::ServeOptions options;
    bool keep = false;
};

// An engine that was started, written down so that the next daemon can adopt or end it.
struct SavedEngine {
    std::string model; // NAME:TAG
    ProcessId process;
    std::string socket;
    std::string build;
    std::string model_digest;
};

// The cluster that this node belongs to.
struct SavedMembership {
    std::string cluster;                   // its name; empty: none
    std::string name;                      // of the node
    std::string address;                   // where this daemon answers the others, "host:port"
    std::string leader;                    // where the one answers that has the cluster's state; empty: this one has it
    std::vector<std::string> removed = {}; // admissions of nodes that were removed, as last heard
};

// What outlives the daemon. Thread-safe. A change is on the disk when the call returns, as far as a killed process
// goes; a power failure may take the last ones.
class StateStore {
public:
    virtual ~StateStore() = default;

    virtual absl::StatusOr<std::vector<SavedDeployment>> deployments() = 0;
    virtual absl::Status save(const SavedDeployment & deployment) = 0; // replaces by model
    virtual absl::Status forget_deployment(const std::string & model) = 0;

    virtual absl::StatusOr<std::vector<SavedEngine>> engines() = 0;
    virtual absl::Status save(const SavedEngine & engine) = 0; // replaces by model
    virtual absl::Status forget_engine(const std::string & model) = 0;

    virtual absl::StatusOr<SavedMembership> membership() = 0;
    virtual absl::Status save(const SavedMembership & membership) = 0;

    // A number that no call has returned before, also not to an earlier daemon.
    virtual absl::StatusOr<int64_t> next_number(const std::string & sequence) = 0;
};

// In a SQLite file, made when there is none. An error says what to do: a damaged file, or one that a newer release
// wrote.
absl::StatusOr<std::unique_ptr<StateStore>> open_sqlite_state(const std::filesystem::path & file);

} // namespace strata::daemon
