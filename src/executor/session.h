#pragma once

#include "executor/device.h"
#include "executor/limits.h"
#include "executor/transfers.h"
#include "wire/network.h"

#include <absl/container/flat_hash_map.h>

#include <atomic>
#include <deque>
#include <map>
#include <mutex>

namespace strata::executor {

class Executor;
struct ExecutorOptions;

// One lane of one driver: its memory, its weights, its graphs, and its commands in their order. What arrives comes from
// the threads of connections; the commands run on the device's thread.
class Session : public Work, public Transfers::Waiter, public std::enable_shared_from_this<Session> {
public:
    Session(Executor & executor, Device & device, std::shared_ptr<wire::Channel> channel, const wire::Hello & hello,
            const ExecutorOptions & options);
    ~Session() override;

    // From the driver's connection.
    absl::Status on_frame(const wire::Frame & frame);
    // From a peer's connection.
    absl::Status on_push(uint64_t tag, const wire::Frame & frame, std::span<const uint8_t> payload);
    void end(); // the connection is gone

    Outcome work() override;

    void ask_driver(const wire::OfferBlob & offer) override;
    void arrived(const wire::OfferBlob & offer, const absl::StatusOr<std::shared_ptr<Blob>> & blob) override;

    struct Status {
        std::string name;
        std::string driver;
        uint64_t memory_bytes = 0;
        uint64_t weights_bytes = 0;
        uint64_t graphs = 0;
        uint64_t busy_ns = 0;
        uint64_t pushed_bytes = 0;
        wire::Channel::Counters wire;
    };
    Status status() const;
    const wire::Token & token() const { return token_; }

private:
    class PeerLink;
    struct Pending {
        wire::Frame frame; // the commands point into it
        std::vector<wire::Command> commands;
        size_t next = 0;
    };
    struct Arrived {
        wire::Frame frame;
        std::span<const uint8_t> payload;
    };
    struct StoredGraph {
        std::vector<uint8_t> encoded;
        std::unique_ptr<PartGraph> part; // nullptr until it is first run, and after weights changed
    };
    struct Peer {
        std::string address;
        wire::Token token;
        std::shared_ptr<wire::Channel> channel; // from the first push on
    };

    // False: it is not done yet.
    absl::StatusOr<bool> run(const wire::Command & command);
    absl::StatusOr<bool> execute(const wire::NewBuffer & command);
    absl::StatusOr<bool> execute(const wire::FreeBuffer & command);
    absl::StatusOr<bool> execute(const wire::SetBytes & command);
    absl::StatusOr<bool> execute(const wire::FillBytes & command);
    absl::StatusOr<bool> execute(const wire::CopyBytes & command);
    absl::StatusOr<bool> execute(const wire::DropBytes & command);
    absl::StatusOr<bool> execute(const wire::BindWeight & command);
    absl::StatusOr<bool> execute(const wire::UnbindWeight & command);
    absl::StatusOr<bool> execute(const wire::DefineGraph & command);
    absl::StatusOr<bool> execute(const wire::ForgetGraphs & command);
    absl::StatusOr<bool> execute(const wire::Compute & command);
    absl::StatusOr<bool> execute(const wire::Push & command);
    absl::StatusOr<bool> execute(const wire::Expect & command);
    absl::StatusOr<bool> execute(const wire::Read & command);
    absl::StatusOr<bool> execute(const wire::SetPeer & command);
    absl::StatusOr<bool> execute(const wire::OfferBlob & command);
    absl::StatusOr<bool> execute(const wire::Prepare & command);

    absl::StatusOr<std::vector<MappedBytes>> gather(const std::vector<wire::Segment> & segments) const;
    absl::StatusOr<MappedBytes> read(wire::Segment segment) const;
    absl::Status build(StoredGraph & graph);
    Outcome run_commands();
    bool prepare_one();
    void attach_arrived();
    // What puts weights on a device, once more when the device is full of weights that nobody uses.
    template <typename Function>
    auto with_room(Function put);
    absl::StatusOr<PartGraph::Prepared> prepare(const wire::GraphHash & hash);
    absl::Status receive_blob(const wire::Frame & frame);
    absl::Status skip(const wire::Frame & frame);
    void answer(const wire::BlobAnswer & answer);
    void tell(wire::FrameType type, std::span<const uint8_t> body);
    absl::StatusOr<std::shared_ptr<wire::Channel>> channel_to(Peer & peer);
    void peer_lost(const wire::Token & token, const absl::Status & reason);
    bool attach(BoundWeight & bound);
    void send(wire::FrameType type, std::span<const std::span<const uint8_t>> body);
    void fail(const absl::Status & status);
    void forget_parts();

    Executor & executor_;
    Device & device_;
    const std::shared_ptr<wire::Channel> channel_;
    const std::string name_;
    const wire::Token token_;

    mutable std::mutex mutex_;
    std::deque<Pending> inbox_;
    size_t inbox_bytes_ = 0;
    size_t inbox_commands_ = 0; // and frames
    std::map<uint64_t, Arrived> arrived_;
    size_t arrived_bytes_ = 0;
    uint64_t skip_below_ = 0; // pushes with smaller tags will not come
    bool ended_ = false;
    absl::flat_hash_map<Digest, std::shared_ptr<Blob>> arrived_blobs_; // since the last graph was put together
    std::vector<std::weak_ptr<wire::Channel>> peer_channels_;
    std::vector<wire::Token> lost_peers_; // a channel anew at the next push
    uint64_t generation_ = 0, epoch_ = 0;
    uint64_t next_sequence_ = 1;

    // Of the device's thread.
    Memory memory_;
    struct Offer {
        uint64_t bytes = 0;
        size_t held_bytes = 0; // of the offer itself
    };
    absl::flat_hash_map<Digest, Offer> offers_;
    size_t offers_held_bytes_ = 0;
    BoundWeights weights_;
    std::map<wire::GraphHash, StoredGraph> graphs_;
    size_t graph_bytes_ = 0;
    std::deque<wire::GraphHash> preparing_; // graphs that may have weights to be prepared
    bool prepare_again_ = false;            // something of them may have arrived
    std::map<uint16_t, Peer> peers_;
    double turn_operations_;                // as many as fit into a turn
    bool graph_begun_ = false;              // and has more pieces
    std::chrono::nanoseconds graph_time_{}; // of those that were run
    uint32_t frames_since_progress_ = 0;
    uint64_t graphs_told_ = 0;

    std::atomic<bool> failed_ = false; // nothing is done any more
    std::atomic<uint64_t> done_sequence_ = 0;
    std::atomic<uint64_t> weights_bytes_ = 0;
    std::atomic<uint64_t> graphs_run_ = 0, busy_ns_ = 0, pushed_bytes_ = 0;
};

} // namespace strata::executor
