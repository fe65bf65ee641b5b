#pragma once

#include "base/runtime.h"
#include "executor/device.h"
#include "executor/layer_job.h"
#include "executor/session.h"
#include "executor/transfers.h"
#include "wire/network.h"

#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace strata::executor {

struct ExecutorOptions {
    std::string name;                                // for people
    std::string build;                               // of the engine; drivers and peers of another one are refused
    std::string folder;                              // for blobs that come over the network and need not be kept
    std::shared_ptr<BlobStore> store;                // for those that are to be kept; nullptr: there is none
    uint64_t memory_limit_bytes = UINT64_MAX;        // for each driver, of the host's memory
    uint64_t device_memory_limit_bytes = UINT64_MAX; // and of a device's own
    uint64_t kept_blobs_bytes = UINT64_MAX;          // of blobs in memory that nobody uses now
    double first_turn_operations = kFirstTurnOperations;
    std::function<void(const std::string &)> log = [](const std::string &) {};
    Runtime * runtime = &Runtime::real();
};

// Serves the lanes of many drivers on the devices of this machine. Thread-safe.
class Executor : public wire::Acceptor, public std::enable_shared_from_this<Executor> {
public:
    Executor(wire::Network & network, ExecutorOptions options, std::vector<std::unique_ptr<Device>> devices);
    ~Executor() override;

    std::shared_ptr<wire::ChannelHandler> on_connection(std::shared_ptr<wire::Channel> channel) override;

    // For sessions.
    Transfers & transfers() { return transfers_; }
    Runtime & runtime() { return *options_.runtime; }
    // A connection to another executor.
    absl::StatusOr<std::shared_ptr<wire::Channel>> connect_peer(const std::string & address,
                                                                std::shared_ptr<wire::ChannelHandler> handler);
    std::shared_ptr<Blob> blob_here(const Digest & digest, uint64_t bytes);
    // Those that no session uses, and what devices have of them.
    void forget_unused_blobs() { blobs_.forget_unused(); }
    // What one driver may use of a device's memory.
    uint64_t memory_limit(const Device & device) const;
    void log(const std::string & line) const { options_.log(line); }

    struct Status {
        std::string name;
        BlobCache::Totals blobs;
        std::vector<Session::Status> sessions;
    };
    Status status() const;

private:
    class Connection;
    class BlobLink;

    absl::StatusOr<std::shared_ptr<Session>> open_session(const wire::Hello & hello,
                                                          const std::shared_ptr<wire::Channel> & channel);
    void close_session(const std::shared_ptr<Session> & session);
    std::shared_ptr<Session> session(const wire::Token & token) const;
    void forget_blob_link(const std::string & address, const BlobLink * link, const absl::Status & reason);
    absl::StatusOr<std::shared_ptr<wire::Channel>> blob_link(const std::string & address);
    absl::Status ask_peer(const std::string & address, const Digest & digest, uint64_t offset);
    std::vector<uint8_t> welcome() const;
    Device & cpu() const; // where layer jobs run

    wire::Network & network_;
    const ExecutorOptions options_;
    UnnamedBlobs unnamed_blobs_;
    BlobCache blobs_;
    const std::vector<std::unique_ptr<Device>> devices_;

    mutable std::mutex mutex_;
    std::map<wire::Token, std::shared_ptr<Session>> sessions_;
    // Connections for blobs, by address.
    std::map<std::string, std::pair<const BlobLink *, std::shared_ptr<wire::Channel>>> blob_links_;
    Transfers transfers_;
    LayerJobs layer_jobs_; // the threads of both end first
};

} // namespace strata::executor
