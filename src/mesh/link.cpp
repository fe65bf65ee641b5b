#include "mesh/link.h"

#include "base/text.h"
#include "mesh/limits.h"
#include "wire/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

namespace strata::mesh {

Link::Link(std::shared_ptr<LinkSignal> signal, std::string address)
    : signal_(std::move(signal))
    , address_(std::move(address))
    , executor_address_(address_) {
    if (const size_t slash = address_.find('/'); slash != std::string::npos) {
        std::from_chars(address_.data() + slash + 1, address_.data() + address_.size(), device_);
        executor_address_.resize(slash);
    }
}

absl::Status Link::open(wire::Network & network, const wire::Hello & hello) {
    wire::Hello mine = hello;
    signal_->runtime.random_bytes(token_);
    mine.token = token_;
    mine.device = device_;
    STRATA_ASSIGN_OR_RETURN(channel_, network.connect(executor_address_, shared_from_this()));
    wire::FrameHeader header;
    header.type = wire::FrameType::kHello;
    channel_->send(header, mine.encode());
    std::unique_lock lock(signal_->mutex);
    signal_->runtime.wait_for(lock, signal_->changed, kOpenTimeout, [&] { return welcomed_ || !closed_.ok(); });
    if (!closed_.ok()) return closed_;
    if (!welcomed_) return absl::DeadlineExceededError(fmt::format("{} does not answer", address_));
    if (welcome_.build != hello.build) {
        return absl::FailedPreconditionError(
            fmt::format("{} is {}, this engine {}", address_, welcome_.build, hello.build));
    }
    if (welcome_.devices.size() <= device_)
        return absl::InvalidArgumentError(fmt::format("{} has no device {}", executor_address_, device_));
    return absl::OkStatus();
}

void Link::close() {
    if (channel_ != nullptr) channel_->close(absl::OkStatus());
}

void Link::add(const wire::Command & command) {
    if (std::holds_alternative<wire::Compute>(command)) ++graphs_in_body_;
    wire::encode(body_, command);
    if (body_.size() >= kFlushBytes) flush();
}

void Link::flush() {
    if (body_.empty()) return;
    wire::FrameHeader header;
    header.type = wire::FrameType::kCommands;
    header.epoch = epoch_;
    header.sequence = ++sequence_;
    {
        const std::lock_guard lock(signal_->mutex);
        unfinished_.push_back({sequence_, body_.size(), graphs_in_body_});
        unfinished_bytes_ += body_.size();
        unfinished_graphs_ += graphs_in_body_;
    }
    channel_->send(header, body_.bytes());
    body_.clear();
    graphs_in_body_ = 0;
}

void Link::skip_pushes(uint64_t below_tag) {
    wire::FrameHeader header;
    header.type = wire::FrameType::kSkip;
    channel_->send(header, wire::encode(wire::Skip{below_tag}));
}

absl::Status Link::wait_for_credit() {
    std::unique_lock lock(signal_->mutex);
    signal_->runtime.wait(lock, signal_->changed, [&] {
        return !health_locked().ok() ||
               (unfinished_graphs_ <= kMaxUnfinishedGraphs && unfinished_bytes_ <= kMaxUnfinishedBytes);
    });
    return health_locked();
}

void Link::add_read(const std::vector<wire::Segment> & from, std::vector<std::span<uint8_t>> to) {
    const uint64_t id = next_read_++;
    {
        const std::lock_guard lock(signal_->mutex);
        reads_[id].to = std::move(to);
    }
    add(wire::Read{id, from});
}

bool Link::reads_pending() const {
    return !reads_.empty();
}

void Link::give_up_reads() {
    const std::lock_guard lock(signal_->mutex);
    reads_.clear();
}

absl::Status Link::status() const {
    const std::lock_guard lock(signal_->mutex);
    return closed_;
}

absl::Status Link::health() const {
    const std::lock_guard lock(signal_->mutex);
    return health_locked();
}

absl::Status Link::health_locked() const {
    if (!closed_.ok() || lost_peers_.empty()) return closed_;
    return absl::UnavailableError(
        fmt::format("{} lost its way to another executor: {}", address_, printable(lost_peers_.front().reason, 300)));
}

void Link::set_peer(uint16_t index, const Link & peer) {
    {
        const std::lock_guard lock(signal_->mutex);
        peers_.insert(peer.token());
    }
    add(wire::SetPeer{index, peer.executor_address(), peer.token()});
}

void Link::forget_peer(const Link & peer) {
    const std::lock_guard lock(signal_->mutex);
    peers_.erase(peer.token());
    std::erase_if(lost_peers_, [&](const wire::PeerLost & lost) { return lost.token == peer.token(); });
}

std::vector<wire::PeerLost> Link::take_lost_peers() {
    const std::lock_guard lock(signal_->mutex);
    return std::exchange(lost_peers_, {});
}

void Link::offer(wire::OfferBlob offer) {
    offer.number = next_offer_++;
    {
        const std::lock_guard lock(signal_->mutex);
        offers_[offer.digest] = {offer.number, std::nullopt};
    }
    add(offer);
}

std::optional<wire::BlobAnswer> Link::answer(const Digest & blob) const {
    const std::lock_guard lock(signal_->mutex);
    const auto offer = offers_.find(blob);
    return offer == offers_.end() ? std::nullopt : offer->second.answer;
}

void Link::send_blob(const wire::BlobHead & head, const MappedBytes & piece) {
    wire::FrameHeader header;
    header.type = wire::FrameType::kBlob;
    const auto encoded = wire::encode(head);
    channel_->send(header, std::array{std::span<const uint8_t>(encoded)}, piece);
}

bool Link::has_room() const {
    return channel_->queued_bytes() <= kMaxQueuedBlobBytes;
}

Link::Counters Link::counters() const {
    Counters counters;
    if (channel_ != nullptr) counters.wire = channel_->counters();
    const std::lock_guard lock(signal_->mutex);
    counters.graphs = graphs_;
    counters.busy_ns = busy_ns_;
    return counters;
}

size_t Link::max_body_bytes() const {
    return wire::kMaxFrameBytes;
}

absl::Status Link::on_frame(const wire::Frame & frame) {
    if (frame.header.type == wire::FrameType::kResult) STRATA_RETURN_IF_ERROR(on_result(frame));
    {
        const std::lock_guard lock(signal_->mutex);
        while (!unfinished_.empty() && unfinished_.front().sequence <= frame.header.sequence) {
            unfinished_bytes_ -= unfinished_.front().bytes;
            unfinished_graphs_ -= unfinished_.front().graphs;
            unfinished_.pop_front();
        }
        switch (frame.header.type) {
        case wire::FrameType::kResult:
            break;
        case wire::FrameType::kWelcome: {
            if (welcomed_) return absl::InvalidArgumentError("a second welcome");
            STRATA_ASSIGN_OR_RETURN(welcome_, wire::Welcome::decode(frame.body()));
            welcomed_ = true;
            break;
        }
        case wire::FrameType::kProgress: {
            STRATA_ASSIGN_OR_RETURN(const wire::Progress progress, wire::decode_progress(frame.body()));
            graphs_ = progress.graphs;
            busy_ns_ = progress.busy_ns;
            break;
        }
        case wire::FrameType::kBlobState: {
            STRATA_ASSIGN_OR_RETURN(wire::BlobAnswer answer, wire::decode_blob_answer(frame.body()));
            const auto offer = offers_.find(answer.digest);
            if (offer != offers_.end() && offer->second.number == answer.offer)
                offer->second.answer = std::move(answer);
            break;
        }
        case wire::FrameType::kSkip: {
            STRATA_ASSIGN_OR_RETURN(const wire::Skip skip, wire::decode_skip(frame.body()));
            skipped_ = std::max(skipped_, skip.below_tag);
            break;
        }
        case wire::FrameType::kPeerLost: {
            STRATA_ASSIGN_OR_RETURN(wire::PeerLost lost, wire::decode_peer_lost(frame.body()));
            if (peers_.contains(lost.token)) lost_peers_.push_back(std::move(lost));
            break;
        }
        default:
            return absl::InvalidArgumentError(
                fmt::format("a frame of type {} from an executor", static_cast<int>(frame.header.type)));
        }
    }
    notify();
    return absl::OkStatus();
}

void Link::notify() {
    {
        const std::lock_guard lock(signal_->mutex);
        ++signal_->changes;
    }
    signal_->changed.notify_all();
}

absl::Status Link::on_result(const wire::Frame & frame) {
    auto data = frame.body();
    STRATA_ASSIGN_OR_RETURN(const wire::ResultHead head, wire::decode_result(data));
    const std::lock_guard lock(signal_->mutex);
    const auto read = reads_.find(head.id);
    if (read == reads_.end()) return absl::OkStatus(); // given up
    for (const auto piece : read->second.to) {
        if (piece.size() > data.size()) return absl::InvalidArgumentError("a result that is too short");
        std::ranges::copy(data.first(piece.size()), piece.begin());
        data = data.subspan(piece.size());
    }
    if (!data.empty()) return absl::InvalidArgumentError("a result that is too long");
    reads_.erase(read);
    graphs_ = head.graphs;
    busy_ns_ = head.busy_ns;
    return absl::OkStatus();
}

void Link::on_closed(const absl::Status & reason) {
    {
        const std::lock_guard lock(signal_->mutex);
        closed_ = reason;
        reads_.clear();
    }
    notify();
}

} // namespace strata::mesh
