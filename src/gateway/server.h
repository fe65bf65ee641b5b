#pragma once

#include "base/status.h"
#include "gateway/backend.h"
#include "gateway/limits.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace grpc {
class Channel;
}
namespace prometheus {
class Registry;
}

namespace strata::gateway {

struct ServerOptions {
    std::string address = "127.0.0.1"; // loopback only: "127.0.0.1", "::1", "localhost"
    uint16_t port = 7420;              // 0: the system picks one
    int threads = 2;                   // all connections are served by these
    // Names that a Host or Origin header may carry besides those of loopback, without port.
    std::vector<std::string> allow_hosts;
    Limits limits;
};

// The HTTP server of a node: model APIs, Connect JSON of the control plane, health and metrics. See README.md for what
// it answers. A stream costs memory, never a thread.
//
// Thread-safe. Requests are answered from start() until stop(); the backend and the registry must outlive the server.
class Server {
public:
    // control: a channel to this node's gRPC services, for Connect; null leaves Connect out.
    // Raises the process's soft limit on open files as far as options.limits.connections needs it.
    // Errors: InvalidArgument for an address that is not loopback, AlreadyExists for a port in use.
    static absl::StatusOr<std::unique_ptr<Server>> start(const ServerOptions & options, Backend & backend,
                                                         prometheus::Registry & registry,
                                                         std::shared_ptr<grpc::Channel> control);
    ~Server(); // stops

    uint16_t port() const;
    // "http://127.0.0.1:7420"
    std::string url() const;

    // Takes no new connections and requests; those under way go on. A request on an open connection is answered 503.
    void drain();
    // Waits until no request is under way; false when the timeout passes first.
    bool wait_idle(std::chrono::milliseconds timeout);
    // Cancels what runs, closes every connection and joins the threads. No callback reaches the backend afterwards; a
    // sink that the backend still holds drops what it is given.
    void stop();

private:
    class Impl;
    explicit Server(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

} // namespace strata::gateway
