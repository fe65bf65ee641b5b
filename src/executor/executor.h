#pragma once

#include "executor/device.h"
#include "executor/session.h"
#include "executor/weights.h"
#include "wire/network.h"

#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace strata::executor {

struct ExecutorOptions {
    std::string name;                         // for people
    std::string build;                        // of the engine; drivers and peers of another one are refused
    std::string folder;                       // for weights that come over the network
    uint64_t memory_limit_bytes = UINT64_MAX; // for each driver
    uint64_t kept_weights_bytes = UINT64_MAX; // of weights that nobody uses now
    std::function<void(const std::string &)> log = [](const std::string &) {};
};

// Serves the lanes of many drivers on the devices of this machine. Thread-safe.
class Executor : public wire::Acceptor, public std::enable_shared_from_this<Executor> {
public:
    Executor(wire::Network & network, ExecutorOptions options, std::vector<std::unique_ptr<Device>> devices);
    ~Executor() override;

    std::shared_ptr<wire::ChannelHandler> on_connection(std::shared_ptr<wire::Channel> channel) override;

    // For sessions.
    WeightCache & weights() { return weights_; }
    // The connection to another executor, made when there is none.
    absl::StatusOr<std::shared_ptr<wire::Channel>> peer(const std::string & address);
    // Gets a weight from the first of the peers that has it. fetch_status says when that came to nothing.
    void fetch(const Digest & digest, uint64_t bytes, std::vector<std::string> sources);
    absl::Status fetch_status(std::string_view digest) const;
    void log(const std::string & line) const { options_.log(line); }

    struct Status {
        std::string name;
        WeightCache::Totals weights;
        std::vector<Session::Status> sessions;
    };
    Status status() const;

private:
    class Connection;
    class PeerLink;

    absl::StatusOr<std::shared_ptr<Session>> open_session(const wire::Hello & hello,
                                                          const std::shared_ptr<wire::Channel> & channel);
    void close_session(const std::shared_ptr<Session> & session);
    std::shared_ptr<Session> session(const wire::Token & token) const;
    void forget_peer(const std::string & address, const PeerLink * link, const absl::Status & reason);
    void request_piece(const Digest & digest);
    absl::Status on_weight(const wire::Frame & frame);
    void fetch_failed(const Digest & digest, const absl::Status & reason);
    std::vector<uint8_t> welcome() const;

    wire::Network & network_;
    const ExecutorOptions options_;
    WeightCache weights_;
    const std::vector<std::unique_ptr<Device>> devices_;

    mutable std::mutex mutex_;
    std::map<wire::Token, std::shared_ptr<Session>> sessions_;
    std::map<std::string, std::pair<const PeerLink *, std::shared_ptr<wire::Channel>>> peers_;
    struct Fetch {
        uint64_t bytes = 0;
        uint64_t received = 0;
        std::vector<std::string> sources; // the first is asked now
        std::unique_ptr<WeightCache::Receiver> receiver;
        absl::Status failed;
    };
    std::map<Digest, Fetch> fetches_;
};

} // namespace strata::executor
