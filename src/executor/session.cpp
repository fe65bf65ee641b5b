#include "executor/session.h"

#include "base/check.h"
#include "base/text.h"
#include "executor/executor.h"
#include "wire/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

namespace strata::executor {
namespace {

std::vector<std::span<const uint8_t>> with_head(std::span<const uint8_t> head,
                                                const std::vector<MappedBytes> & pieces) {
    std::vector<std::span<const uint8_t>> all{head};
    all.reserve(1 + pieces.size());
    for (const MappedBytes & piece : pieces) all.push_back(piece.bytes);
    return all;
}

} // namespace

Session::Session(Executor & executor, Device & device, std::shared_ptr<wire::Channel> channel,
                 const wire::Hello & hello, const ExecutorOptions & options)
    : executor_(executor)
    , device_(device)
    , channel_(std::move(channel))
    , name_(hello.name)
    , token_(hello.token)
    , memory_(executor.memory_limit(device), device.traits().memory, [&executor] { executor.forget_unused_blobs(); })
    , turn_operations_(options.first_turn_operations) {}

Session::~Session() = default;

// -------------------- arrivals

absl::Status Session::on_frame(const wire::Frame & frame) {
    if (frame.header.type == wire::FrameType::kBlob) return receive_blob(frame);
    if (frame.header.type == wire::FrameType::kSkip) return skip(frame);
    if (frame.header.type != wire::FrameType::kCommands) {
        return absl::InvalidArgumentError(
            fmt::format("a frame of type {} from a driver", static_cast<int>(frame.header.type)));
    }
    STRATA_ASSIGN_OR_RETURN(auto commands, wire::decode_commands(frame.body()));
    {
        const std::lock_guard lock(mutex_);
        if (frame.header.sequence != next_sequence_) {
            return absl::InvalidArgumentError(
                fmt::format("frame {} came instead of {}", frame.header.sequence, next_sequence_));
        }
        ++next_sequence_;
        if (frame.header.generation < generation_ || frame.header.epoch < epoch_) {
            return absl::FailedPreconditionError("a frame of an older generation or epoch");
        }
        generation_ = frame.header.generation;
        epoch_ = frame.header.epoch;
        if (ended_) return absl::CancelledError("ended");
        inbox_bytes_ += frame.header.body_bytes;
        inbox_commands_ += 1 + commands.size();
        if (inbox_bytes_ > kMaxInboxBytes || inbox_commands_ > kMaxInboxCommands) {
            return absl::ResourceExhaustedError("the driver is too far ahead of this executor");
        }
        inbox_.push_back({frame, std::move(commands)});
    }
    device_.ready(this);
    return absl::OkStatus();
}

absl::Status Session::on_push(uint64_t tag, const wire::Frame & frame, std::span<const uint8_t> payload) {
    {
        const std::lock_guard lock(mutex_);
        if (ended_ || tag < skip_below_) return absl::OkStatus();
        if (arrived_bytes_ + payload.size() > kMaxArrivedBytes) {
            fail(absl::ResourceExhaustedError("peers push more than the driver lets this executor use"));
            return absl::OkStatus();
        }
        if (!arrived_.emplace(tag, Arrived{frame, payload}).second) return absl::OkStatus(); // a repeat
        arrived_bytes_ += payload.size();
    }
    device_.ready(this);
    return absl::OkStatus();
}

void Session::end() {
    std::vector<std::weak_ptr<wire::Channel>> channels;
    {
        const std::lock_guard lock(mutex_);
        ended_ = true;
        channels.swap(peer_channels_);
        inbox_.clear();
        arrived_.clear();
        arrived_blobs_.clear();
    }
    for (const auto & channel : channels) {
        if (const auto open = channel.lock()) open->close(absl::OkStatus());
    }
    device_.remove(this);
}

absl::Status Session::skip(const wire::Frame & frame) {
    STRATA_ASSIGN_OR_RETURN(const wire::Skip skip, wire::decode_skip(frame.body()));
    {
        const std::lock_guard lock(mutex_);
        skip_below_ = std::max(skip_below_, skip.below_tag);
    }
    tell(wire::FrameType::kSkip, wire::encode(skip));
    device_.ready(this);
    return absl::OkStatus();
}

absl::Status Session::receive_blob(const wire::Frame & frame) {
    auto data = frame.body();
    STRATA_ASSIGN_OR_RETURN(const wire::BlobHead head, wire::decode_blob(data));
    executor_.transfers().add_from_driver(*this, head, data);
    return absl::OkStatus();
}

void Session::ask_driver(const wire::OfferBlob & offer) {
    answer({offer.number, offer.digest, wire::BlobState::kNeed, ""});
}

void Session::arrived(const wire::OfferBlob & offer, const absl::StatusOr<std::shared_ptr<Blob>> & blob) {
    if (!blob.ok()) {
        return answer({offer.number, offer.digest, wire::BlobState::kMissing, std::string(blob.status().message())});
    }
    {
        const std::lock_guard lock(mutex_);
        if (ended_) return;
        arrived_blobs_[offer.digest] = *blob;
    }
    answer({offer.number, offer.digest, wire::BlobState::kHave, ""});
    device_.ready(this);
}

// -------------------- the queue

Work::Outcome Session::work() {
    const Outcome outcome = run_commands();
    return outcome == Outcome::kWaits && prepare_one() ? Outcome::kMore : outcome;
}

Work::Outcome Session::run_commands() {
    bool computed = false; // one graph at a time; what follows it goes out at once, since others wait for it
    bool begun = false;
    auto end_of_turn = device_.clock().now() + kTurn;
    while (true) {
        // end() may empty the queue meanwhile, so the commands are taken out while they run; their place stays.
        std::vector<wire::Command> commands;
        wire::Frame frame;
        size_t next = 0;
        {
            const std::lock_guard lock(mutex_);
            if (ended_ || failed_ || inbox_.empty()) return Outcome::kWaits;
            Pending & pending = inbox_.front();
            commands = std::move(pending.commands);
            frame = pending.frame;
            next = pending.next;
        }
        std::optional<Outcome> outcome; // the end of this piece of work
        for (; next < commands.size() && !outcome; ++next) {
            const bool is_graph = std::holds_alternative<wire::Compute>(commands[next]);
            if ((is_graph && computed) || (std::exchange(begun, true) && device_.clock().now() > end_of_turn)) {
                outcome = Outcome::kMore;
                break;
            }
            const auto done = run(commands[next]);
            if (!done.ok()) {
                fail(done.status());
                return Outcome::kWaits;
            }
            if (!*done) {
                outcome = graph_begun_ ? Outcome::kMore : Outcome::kWaits;
                break;
            }
            if (is_graph) {
                computed = true;
                end_of_turn = device_.clock().now() + kTurn;
            }
        }
        const bool whole = next == commands.size();
        {
            const std::lock_guard lock(mutex_);
            if (ended_) return Outcome::kWaits;
            if (whole) {
                inbox_bytes_ -= frame.header.body_bytes;
                inbox_commands_ -= 1 + commands.size();
                inbox_.pop_front();
            } else {
                inbox_.front().commands = std::move(commands);
                inbox_.front().next = next;
            }
        }
        if (whole) {
            done_sequence_.store(frame.header.sequence);
            if (++frames_since_progress_ >= kFramesPerProgress || graphs_run_ - graphs_told_ >= kGraphsPerProgress) {
                const auto body = wire::encode(wire::Progress{frame.header.sequence, graphs_run_, busy_ns_});
                const std::span<const uint8_t> piece = body;
                send(wire::FrameType::kProgress, std::span(&piece, 1));
            }
        }
        if (outcome) return *outcome;
    }
}

absl::StatusOr<bool> Session::run(const wire::Command & command) {
    return std::visit([&](const auto & body) { return execute(body); }, command);
}

void Session::fail(const absl::Status & status) {
    executor_.log(fmt::format("{}: {}", channel_->peer(), std::string(status.message())));
    failed_ = true;
    channel_->close(status);
}

void Session::send(wire::FrameType type, std::span<const std::span<const uint8_t>> body) {
    wire::FrameHeader header;
    header.type = type;
    header.sequence = done_sequence_.load();
    frames_since_progress_ = 0;
    graphs_told_ = graphs_run_;
    channel_->send(header, body);
}

// What does not belong to the order of the commands.
void Session::tell(wire::FrameType type, std::span<const uint8_t> body) {
    wire::FrameHeader header;
    header.type = type;
    header.sequence = done_sequence_.load();
    channel_->send(header, body);
}

void Session::answer(const wire::BlobAnswer & answer) {
    tell(wire::FrameType::kBlobState, wire::encode(answer));
}

// -------------------- peers

// The lane's own connection to a session of it elsewhere: when it ends, this lane and no other has lost something.
class Session::PeerLink : public wire::ChannelHandler {
public:
    PeerLink(std::weak_ptr<Session> session, const wire::Token & token)
        : session_(std::move(session))
        , token_(token) {}

    size_t max_body_bytes() const override { return wire::kMaxHelloBytes; }
    absl::Status on_frame(const wire::Frame & frame) override {
        if (frame.header.type == wire::FrameType::kWelcome) return absl::OkStatus();
        return absl::InvalidArgumentError("a peer that is pushed to has nothing to say");
    }
    void on_closed(const absl::Status & reason) override {
        if (const auto session = session_.lock()) session->peer_lost(token_, reason);
    }

private:
    const std::weak_ptr<Session> session_;
    const wire::Token token_;
};

absl::StatusOr<std::shared_ptr<wire::Channel>> Session::channel_to(Peer & peer) {
    {
        const std::lock_guard lock(mutex_);
        if (std::erase(lost_peers_, peer.token) > 0) peer.channel.reset();
        if (ended_) return absl::CancelledError("ended");
    }
    if (peer.channel != nullptr) return peer.channel;
    auto link = std::make_shared<PeerLink>(weak_from_this(), peer.token);
    STRATA_ASSIGN_OR_RETURN(peer.channel, executor_.connect_peer(peer.address, std::move(link)));
    const std::lock_guard lock(mutex_);
    std::erase_if(peer_channels_, [](const auto & channel) { return channel.expired(); });
    peer_channels_.push_back(peer.channel);
    if (ended_) peer.channel->close(absl::OkStatus());
    return peer.channel;
}

void Session::peer_lost(const wire::Token & token, const absl::Status & reason) {
    {
        const std::lock_guard lock(mutex_);
        if (ended_) return;
        lost_peers_.push_back(token);
    }
    executor_.log(fmt::format("{} ({}): {}", channel_->peer(), printable(name_), std::string(reason.message())));
    tell(wire::FrameType::kPeerLost, wire::encode(wire::PeerLost{token, std::string(reason.message())}));
}

// -------------------- commands

absl::StatusOr<bool> Session::execute(const wire::NewBuffer & command) {
    STRATA_RETURN_IF_ERROR(memory_.add(command.id, command.range));
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::FreeBuffer & command) {
    forget_parts(); // they point into it
    STRATA_RETURN_IF_ERROR(memory_.remove(command.id));
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::SetBytes & command) {
    STRATA_RETURN_IF_ERROR(memory_.write(command.address, command.data));
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::FillBytes & command) {
    STRATA_RETURN_IF_ERROR(memory_.fill(command.range, command.value));
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::CopyBytes & command) {
    attach_arrived();
    // In pieces, since a device's bytes come over the host; from the end, when the target begins inside of the source.
    const wire::Segment from = command.from;
    const bool backwards = command.to > from.address;
    for (uint64_t done = 0; done < from.bytes;) {
        const uint64_t bytes = std::min(kCopyPieceBytes, from.bytes - done);
        const uint64_t at = backwards ? from.bytes - done - bytes : done;
        const auto piece = read({from.address + at, bytes});
        if (absl::IsUnavailable(piece.status())) return false; // a weight that has not arrived
        if (!piece.ok()) return piece.status();
        STRATA_RETURN_IF_ERROR(memory_.write(command.to + at, piece->bytes));
        done += bytes;
    }
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::DropBytes & command) {
    STRATA_RETURN_IF_ERROR(memory_.drop(command.range));
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::DefineGraph & command) {
    if (wire::Graph::hash(command.graph) != command.hash)
        return absl::InvalidArgumentError("a graph with a wrong hash");
    if (graphs_.contains(command.hash)) return true;
    if (graphs_.size() >= kMaxGraphs || graph_bytes_ + command.graph.size() > kMaxGraphBytes) {
        return absl::ResourceExhaustedError("too many graphs");
    }
    graph_bytes_ += command.graph.size();
    graphs_[command.hash].encoded.assign(command.graph.begin(), command.graph.end());
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::ForgetGraphs &) {
    graphs_.clear();
    graph_bytes_ = 0;
    preparing_.clear();
    return true;
}

template <typename Function>
auto Session::with_room(Function put) {
    auto done = put();
    if (!absl::IsResourceExhausted(done.status()) || device_.traits().memory == nullptr) return done;
    executor_.forget_unused_blobs();
    return put();
}

absl::StatusOr<PartGraph::Prepared> Session::prepare(const wire::GraphHash & hash) {
    const auto stored = graphs_.find(hash);
    if (stored == graphs_.end()) return absl::NotFoundError("it was forgotten");
    STRATA_ASSIGN_OR_RETURN(const wire::Graph graph, wire::Graph::decode(stored->second.encoded));
    return with_room([&] { return PartGraph::prepare(graph, memory_, weights_, device_.traits()); });
}

absl::Status Session::build(StoredGraph & stored) {
    stored.part.reset();
    attach_arrived();
    STRATA_ASSIGN_OR_RETURN(const wire::Graph graph, wire::Graph::decode(stored.encoded));
    STRATA_ASSIGN_OR_RETURN(stored.part,
                            with_room([&] { return PartGraph::build(graph, memory_, weights_, device_.traits()); }));
    return absl::OkStatus();
}

absl::StatusOr<bool> Session::execute(const wire::Compute & command) {
    const auto stored = graphs_.find(command.hash);
    if (stored == graphs_.end()) return absl::InvalidArgumentError("a graph that was not defined");
    auto & part = stored->second.part;
    if (part == nullptr || !part->holds_in(memory_)) {
        const absl::Status built = build(stored->second);
        if (absl::IsUnavailable(built)) return false; // a blob has not arrived
        STRATA_RETURN_IF_ERROR(built);
    }
    const auto begin = device_.clock().now();
    STRATA_ASSIGN_OR_RETURN(const bool done, part->run(device_.backend(), turn_operations_));
    const std::chrono::nanoseconds time = device_.clock().now() - begin;
    busy_ns_ += static_cast<uint64_t>(time.count());
    graph_time_ += time;
    graph_begun_ = !done;
    if (time > kTurn)
        turn_operations_ = std::max(turn_operations_ / 2, 1.0);
    else if (!done && time < kTurn / 2)
        turn_operations_ *= 2;
    if (!done) {
        if (graph_time_ <= kMaxGraphTime) return false;
        return absl::DeadlineExceededError(
            fmt::format("a graph that is not done after {} minutes", kMaxGraphTime.count()));
    }
    graph_time_ = {};
    ++graphs_run_;
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::Push & command) {
    const auto peer = peers_.find(command.peer);
    if (peer == peers_.end()) return absl::InvalidArgumentError(fmt::format("peer {} was not named", command.peer));
    attach_arrived();
    const auto gathered = gather(command.from);
    if (absl::IsUnavailable(gathered.status())) return false; // a weight that has not arrived
    if (!gathered.ok()) return gathered.status();
    const auto head = wire::encode(wire::PushHead{peer->second.token, command.tag});
    const auto pieces = with_head(head, *gathered);
    for (const auto piece : pieces) pushed_bytes_ += piece.size();
    wire::FrameHeader header;
    header.type = wire::FrameType::kPush;
    STRATA_ASSIGN_OR_RETURN(const auto channel, channel_to(peer->second));
    channel->send(header, pieces);
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::Expect & command) {
    Arrived arrived;
    {
        const std::lock_guard lock(mutex_);
        const auto found = arrived_.find(command.tag);
        if (found == arrived_.end()) return command.tag < skip_below_;
        arrived = std::move(found->second);
        arrived_.erase(found);
        arrived_bytes_ -= arrived.payload.size();
    }
    auto payload = arrived.payload;
    for (const wire::Segment & segment : command.to) {
        if (segment.bytes > payload.size()) return absl::InvalidArgumentError("a push that is too short");
        STRATA_RETURN_IF_ERROR(memory_.write(segment.address, payload.first(segment.bytes)));
        payload = payload.subspan(segment.bytes);
    }
    if (!payload.empty()) return absl::InvalidArgumentError("a push that is too long");
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::Read & command) {
    attach_arrived();
    const auto gathered = gather(command.from);
    if (absl::IsUnavailable(gathered.status())) return false; // a weight that has not arrived
    if (!gathered.ok()) return gathered.status();
    const auto head = wire::encode(wire::ResultHead{command.id, graphs_run_, busy_ns_});
    send(wire::FrameType::kResult, with_head(head, *gathered));
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::SetPeer & command) {
    if (peers_.size() >= kMaxPeers) return absl::ResourceExhaustedError("too many peers");
    peers_[command.index] = {command.address, command.token, nullptr};
    return true;
}

absl::StatusOr<MappedBytes> Session::read(wire::Segment segment) const {
    auto bound = weights_.upper_bound(segment.address);
    if (bound != weights_.begin() && segment.address - (--bound)->first < bound->second.bytes) {
        const uint64_t offset = segment.address - bound->first;
        if (segment.bytes > bound->second.bytes - offset) return absl::OutOfRangeError("a range beyond its weight");
        if (bound->second.blob == nullptr) return absl::UnavailableError("a weight that is not here yet");
        return MappedBytes{bound->second.data().subspan(offset, segment.bytes), bound->second.blob};
    }
    return memory_.read(segment);
}

absl::StatusOr<std::vector<MappedBytes>> Session::gather(const std::vector<wire::Segment> & segments) const {
    uint64_t left = wire::kMaxFrameBytes - 64;
    std::vector<MappedBytes> pieces;
    pieces.reserve(segments.size());
    for (const wire::Segment & segment : segments) {
        if (segment.bytes > left) return absl::InvalidArgumentError("more bytes than fit into a frame");
        left -= segment.bytes;
        STRATA_ASSIGN_OR_RETURN(pieces.emplace_back(), read(segment));
    }
    return pieces;
}

void Session::forget_parts() {
    for (auto & [hash, graph] : graphs_) graph.part.reset();
}

Session::Status Session::status() const {
    Status status;
    status.name = name_;
    status.driver = channel_->peer();
    status.memory_bytes = memory_.used_bytes();
    status.weights_bytes = weights_bytes_;
    status.graphs = graphs_run_;
    status.busy_ns = busy_ns_;
    status.pushed_bytes = pushed_bytes_;
    status.wire = channel_->counters();
    return status;
}

} // namespace strata::executor
