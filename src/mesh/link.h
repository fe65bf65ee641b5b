#pragma once

#include "base/runtime.h"
#include "wire/message.h"
#include "wire/network.h"

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace strata::mesh {

// What all links of a lane wait on together.
struct LinkSignal {
    Runtime & runtime;
    std::mutex mutex;
    std::condition_variable changed;
    uint64_t changes = 0;

    explicit LinkSignal(Runtime & runtime)
        : runtime(runtime) {}

    uint64_t seen() {
        const std::lock_guard lock(mutex);
        return changes;
    }
    // Until something changes after what was seen.
    void wait_for_change(uint64_t seen, std::chrono::milliseconds timeout) {
        std::unique_lock lock(mutex);
        runtime.wait_for(lock, changed, timeout, [&] { return changes != seen; });
    }
};

// The driver's side of a lane at one executor: commands go out in frames, answers come in. send functions are for the
// lane's thread; answers come from the connection's.
class Link : public wire::ChannelHandler, public std::enable_shared_from_this<Link> {
public:
    // address: of an executor, and perhaps '/' and the number of its device (wire::DeviceAddress).
    Link(std::shared_ptr<LinkSignal> signal, std::string address);

    // Connects and waits for the executor's welcome.
    absl::Status open(wire::Network & network, const wire::Hello & hello);
    void close();
    const wire::DeviceInfo & device() const { return welcome_.devices[device_]; }
    const std::string & address() const { return address_; }
    const std::string & executor_address() const { return executor_address_; } // without the device
    const wire::Token & token() const { return token_; }

    // Commands gather until flush(), or until they are many.
    void add(const wire::Command & command);
    void flush();
    // Of the bindings: goes with all commands that are sent from now on.
    void set_epoch(uint64_t epoch) { epoch_ = epoch; }
    // At once, before all that waits there. Answered.
    void skip_pushes(uint64_t below_tag);
    // The answer is there, or never comes. signal's mutex held.
    bool skipped_locked(uint64_t below_tag) const { return !closed_.ok() || skipped_ >= below_tag; }
    // Waits until the executor is not too far behind.
    absl::Status wait_for_credit();

    // A read whose answer goes to `to`, piece by piece.
    void add_read(const std::vector<wire::Segment> & from, std::vector<std::span<uint8_t>> to);
    bool reads_pending() const; // signal's mutex held
    void give_up_reads();       // what they were to fill is not touched any more
    // OK while the connection stands.
    absl::Status status() const;
    // The same, and nothing that it pushed to peers is lost.
    absl::Status health() const;
    absl::Status health_locked() const; // signal's mutex held

    // Tells it of a peer.
    void set_peer(uint16_t index, const Link & peer);
    void forget_peer(const Link & peer); // it is lost, and what was pushed there does not matter
    // Peers that it lost its connection to since the last call.
    std::vector<wire::PeerLost> take_lost_peers();

    // Offers a blob. What the executor answers to the last offer of it; nothing yet: it looks for the blob.
    void offer(wire::OfferBlob offer);
    std::optional<wire::BlobAnswer> answer(const Digest & blob) const;
    // A piece of a blob that the executor needs.
    void send_blob(const wire::BlobHead & head, const MappedBytes & piece);
    bool has_room() const; // for another one

    struct Counters {
        wire::Channel::Counters wire;
        uint64_t graphs = 0;
        uint64_t busy_ns = 0;
    };
    Counters counters() const;

    absl::Status on_frame(const wire::Frame & frame) override;
    void on_closed(const absl::Status & reason) override;
    size_t max_body_bytes() const override;

private:
    struct PendingRead {
        std::vector<std::span<uint8_t>> to;
    };
    absl::Status on_result(const wire::Frame & frame);
    void notify();

    const std::shared_ptr<LinkSignal> signal_;
    const std::string address_;
    std::string executor_address_;
    uint16_t device_ = 0;
    wire::Token token_{};
    std::shared_ptr<wire::Channel> channel_;

    // Of the lane's thread.
    wire::Writer body_;
    uint64_t graphs_in_body_ = 0;
    uint64_t sequence_ = 0;
    uint64_t epoch_ = 0;
    uint64_t next_read_ = 1;
    uint32_t next_offer_ = 1;

    // Under the signal's mutex.
    bool welcomed_ = false;
    wire::Welcome welcome_;
    absl::Status closed_;
    std::map<uint64_t, PendingRead> reads_;
    struct Offer {
        uint32_t number = 0;
        std::optional<wire::BlobAnswer> answer;
    };
    std::map<Digest, Offer> offers_;
    std::set<wire::Token> peers_;
    std::vector<wire::PeerLost> lost_peers_;
    uint64_t skipped_ = 0; // what it answered last
    struct Sent {
        uint64_t sequence;
        uint64_t bytes;
        uint64_t graphs;
    };
    std::deque<Sent> unfinished_; // frames that the executor has not done yet
    uint64_t unfinished_bytes_ = 0;
    uint64_t unfinished_graphs_ = 0;
    uint64_t graphs_ = 0, busy_ns_ = 0;
};

} // namespace strata::mesh
