#pragma once

#include "base/mapped_bytes.h"
#include "wire/frame.h"

#include <memory>
#include <span>
#include <string>
#include <string_view>

// What mesh and executor know of a network: connections that carry frames, in order. Behind it are sockets (tcp.h) or,
// in tests, a simulation.
namespace strata::wire {

// One end of a connection. Thread-safe.
class Channel {
public:
    virtual ~Channel() = default;
    // Takes a frame: header.body_bytes is set from `body`, the pieces of which are borrowed for the call only, and
    // `tail`, which comes after it and is not copied when it has to wait. Does not wait for the peer. After the end of
    // the connection frames are dropped.
    virtual void send(FrameHeader header, std::span<const std::span<const uint8_t>> body, const MappedBytes & tail) = 0;
    void send(const FrameHeader & header, std::span<const std::span<const uint8_t>> body) { send(header, body, {}); }
    void send(const FrameHeader & header, std::span<const uint8_t> body) { send(header, std::span(&body, 1)); }
    // Ends the connection: a status that is not OK is told to the peer. on_closed comes soon, from another thread.
    virtual void close(const absl::Status & status) = 0;
    // Bytes taken that the network has not: a sender of much waits until they are few.
    virtual size_t queued_bytes() const = 0;
    virtual std::string peer() const = 0;

    struct Counters {
        uint64_t bytes_in = 0;
        uint64_t bytes_out = 0;
        uint64_t frames_in = 0;
        uint64_t frames_out = 0;
    };
    virtual Counters counters() const = 0;
};

// Takes what arrives on one connection. Calls come one at a time; on_closed is the last.
class ChannelHandler {
public:
    virtual ~ChannelHandler() = default;
    // An error ends the connection and is told to the peer.
    virtual absl::Status on_frame(const Frame & frame) = 0;
    virtual void on_closed(const absl::Status & reason) = 0;
    // How large the body of the next frame may be.
    virtual size_t max_body_bytes() const = 0;
};

// Accepts connections: called for each with its channel, before any frame of it. nullptr refuses.
class Acceptor {
public:
    virtual ~Acceptor() = default;
    virtual std::shared_ptr<ChannelHandler> on_connection(std::shared_ptr<Channel> channel) = 0;
};

class Network {
public:
    virtual ~Network() = default;
    // Returns at once; frames wait until the connection stands. A connection that can't be made is closed. Refused when
    // there are too many.
    virtual absl::StatusOr<std::shared_ptr<Channel>> connect(const std::string & address,
                                                             std::shared_ptr<ChannelHandler> handler) = 0;
    // Returns the address that is listened on ("127.0.0.1:7500"), with the port that was chosen for port 0.
    virtual absl::StatusOr<std::string> listen(const std::string & address, std::shared_ptr<Acceptor> acceptor) = 0;
};

} // namespace strata::wire
