#pragma once

#include "base/unique_fd.h"
#include "wire/address.h"
#include "wire/network.h"
#include "wire/tls.h"

#include <atomic>
#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>

namespace strata::wire {

class TcpChannel;

// Frames over TCP. A connection has a thread that reads; who sends writes to the socket itself, and one thread of the
// network sends what the sockets did not take at once, and pings. Connections are few (machines of a mesh), so threads
// are; a frame goes from one program's thread to the other's in one write and one read.
class TcpNetwork : public Network {
public:
    // With a context all connections are TLS, both ways.
    explicit TcpNetwork(std::shared_ptr<const TlsContext> tls = nullptr);
    ~TcpNetwork() override; // ends all connections and waits for their threads

    absl::StatusOr<std::shared_ptr<Channel>> connect(const std::string & address,
                                                     std::shared_ptr<ChannelHandler> handler) override;
    absl::StatusOr<std::string> listen(const std::string & address, std::shared_ptr<Acceptor> acceptor) override;

private:
    friend class TcpChannel;
    struct Listener {
        UniqueFd fd;
        std::shared_ptr<Acceptor> acceptor;
        std::thread thread;
    };

    void accept_loop(Listener & listener);
    bool start(const std::shared_ptr<TcpChannel> & channel); // false: too many connections, or ending
    void attend();                                           // the thread that flushes and pings
    void wake();
    std::shared_ptr<const TlsContext> tls();

    std::mutex mutex_;
    std::shared_ptr<const TlsContext> tls_;
    std::list<std::shared_ptr<TcpChannel>> channels_;
    std::list<Listener> listeners_;
    std::atomic<bool> stopping_ = false;
    UniqueFd wake_fd_;
    std::thread attendant_;
};

} // namespace strata::wire
