#pragma once

#include "base/unique_fd.h"
#include "wire/address.h"
#include "wire/network.h"
#include "wire/tls.h"

#include <netdb.h>
#include <sys/uio.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace strata::wire {

class TcpNetwork;

// How often a thread that waits for bytes looks at its deadlines.
inline constexpr std::chrono::milliseconds kTick{500};

struct AddressList {
    addrinfo * first = nullptr;
    ~AddressList() {
        if (first != nullptr) freeaddrinfo(first);
    }
};

absl::Status resolve(const Address & address, bool passive, AddressList & list);

// A connection of a TcpNetwork.
class TcpChannel : public Channel, public std::enable_shared_from_this<TcpChannel> {
public:
    using SteadyClock = std::chrono::steady_clock;

    // One that connects (no fd yet), or one that was accepted. Without TLS when there is no context for it.
    TcpChannel(TcpNetwork & network, std::shared_ptr<const TlsContext> tls, std::string peer, UniqueFd fd);

    void start(std::shared_ptr<ChannelHandler> handler) {
        const std::lock_guard lock(mutex_); // the thread may be at its end before it has a name
        handler_ = std::move(handler);
        thread_ = std::thread([self = shared_from_this()] { self->run(); });
    }

    using Channel::send;
    void send(FrameHeader header, std::span<const std::span<const uint8_t>> body, const MappedBytes & tail) override;
    void close(const absl::Status & status) override;
    size_t queued_bytes() const override {
        const std::lock_guard lock(mutex_);
        return waiting_bytes_;
    }
    std::string peer() const override { return peer_; }
    Counters counters() const override {
        return {bytes_in_.load(std::memory_order_relaxed), bytes_out_.load(std::memory_order_relaxed),
                frames_in_.load(std::memory_order_relaxed), frames_out_.load(std::memory_order_relaxed)};
    }

    // For the attendant of the network.
    bool finished() const { return finished_.load(std::memory_order_acquire); }
    void join() {
        std::thread thread;
        {
            const std::lock_guard lock(mutex_);
            thread = std::move(thread_);
        }
        thread.join();
    }
    void flush();
    void ping_if_quiet();
    int fd_to_flush(); // -1: nothing waits

private:
    void run();
    absl::Status connect_now();
    absl::Status handshake();
    void open();
    absl::Status read_frames();
    absl::StatusOr<size_t> receive(std::span<uint8_t> into);       // 0: nothing within a tick
    absl::StatusOr<size_t> receive_plain(std::span<uint8_t> into); // of TLS, if any
    absl::Status read_some(uint8_t * into, size_t at_least, size_t at_most, size_t & got,
                           SteadyClock::time_point deadline, std::string_view waiting_for);
    void drain();
    // mutex_ held.
    void transmit(std::vector<iovec> & pieces, const MappedBytes & tail);
    void write_or_keep(std::vector<iovec> & pieces, const MappedBytes & tail);
    void write_now(std::vector<iovec> & pieces); // leaves what was not taken
    void keep(const std::vector<iovec> & pieces, const MappedBytes & tail);
    void set_closing(const absl::Status & status);

    TcpNetwork & network_;
    const std::string peer_;
    const bool accepted_;
    const std::unique_ptr<TlsStream> tls_; // nullptr: without
    std::shared_ptr<ChannelHandler> handler_;
    std::thread thread_;
    std::atomic<bool> finished_ = false;

    mutable std::mutex mutex_;
    UniqueFd fd_;            // closed by the reading thread only
    bool connected_ = false; // and the handshake of TLS done
    bool closing_ = false;
    absl::Status reason_;
    std::deque<MappedBytes> waiting_; // to be sent
    size_t waiting_bytes_ = 0;

    std::atomic<SteadyClock::time_point> last_sent_ = SteadyClock::now();
    std::atomic<uint64_t> bytes_in_ = 0, bytes_out_ = 0, frames_in_ = 0, frames_out_ = 0;
};

} // namespace strata::wire
