#include "wire/simulated_network.h"

#include "wire/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>

namespace strata::wire {

using std::chrono::nanoseconds;

namespace {

constexpr std::array kLatencies{std::chrono::microseconds(20), std::chrono::microseconds(500),
                                std::chrono::microseconds(5000), std::chrono::microseconds(40000)};
constexpr std::array<uint64_t, 4> kRates{300'000, 10'000'000, 100'000'000, 3'000'000'000}; // bytes a second

} // namespace

// One end of a connection.
class SimulatedEnd : public Channel, public std::enable_shared_from_this<SimulatedEnd> {
public:
    SimulatedEnd(SimulatedNetwork & network, SimulatedNetwork::Machine & machine, std::string peer)
        : network_(network)
        , machine_(machine)
        , peer_(std::move(peer)) {}

    void join(const std::shared_ptr<SimulatedEnd> & other) { other_ = other; }
    void begin(std::shared_ptr<ChannelHandler> handler) { handler_ = std::move(handler); }

    using Channel::send;
    void send(FrameHeader header, std::span<const std::span<const uint8_t>> body, const MappedBytes & tail) override {
        if (!open_) return;
        size_t bytes = tail.bytes.size();
        for (const auto piece : body) bytes += piece.size();
        header.body_bytes = static_cast<uint32_t>(bytes);
        Frame frame{header, std::shared_ptr<uint8_t[]>(new uint8_t[bytes])};
        uint8_t * to = frame.storage.get();
        for (const auto piece : body) to = std::ranges::copy(piece, to).out;
        std::ranges::copy(tail.bytes, to);
        counters_.bytes_out += FrameHeader::kBytes + bytes;
        ++counters_.frames_out;
        deliver(frame);
    }

    void close(const absl::Status & status) override {
        if (!open_) return;
        if (!status.ok()) {
            network_.refusals_.push_back(
                fmt::format("{} to {}: {}", machine_.name_, peer_, std::string(status.message())));
            FrameHeader header;
            header.type = FrameType::kRefusal;
            const std::string text(status.message());
            const std::span<const uint8_t> piece(reinterpret_cast<const uint8_t *>(text.data()), text.size());
            send(header, std::span(&piece, 1));
        }
        end(status.ok() ? absl::CancelledError("closed") : status);
        after_all([](SimulatedEnd & other) {
            other.end(absl::UnavailableError(fmt::format("{} ended the connection", other.peer_)));
        });
    }

    size_t queued_bytes() const override {
        while (!queue_.empty() && queue_.front().first <= network_.simulation_.clock().now()) queue_.pop_front();
        size_t bytes = 0;
        for (const auto & [time, queued] : queue_) bytes += queued;
        return bytes;
    }
    std::string peer() const override { return peer_; }
    Counters counters() const override { return counters_; }

    // The machine is gone, with all that it knew.
    void vanish() {
        if (!open_) return;
        Simulation & simulation = network_.simulation_;
        last_to_arrive_ = arrived_ + simulation.random(sent_ - arrived_ + 1);
        const nanoseconds noticed = simulation.chance(20) ? nanoseconds(kSilenceTimeout) : nanoseconds(0);
        after_all(
            [](SimulatedEnd & other) {
                other.end(absl::UnavailableError(fmt::format("the connection to {} broke", other.peer_)));
            },
            noticed);
        open_ = false;
        tell(absl::CancelledError("crashed")); // even while it takes a frame
    }

    // The world ends.
    void forget() {
        open_ = false;
        handler_.reset();
    }

    // Nothing goes any more; the handler learns of it soon.
    void end(const absl::Status & reason) {
        if (!open_) return;
        open_ = false;
        network_.simulation_.after(network_.simulation_.up_to(std::chrono::microseconds(100)), "closed",
                                   [self = shared_from_this(), reason] {
                                       if (self->delivering_)
                                           self->untold_ = reason;
                                       else
                                           self->tell(reason);
                                   });
    }

private:
    void tell(const absl::Status & reason) {
        if (const auto handler = std::move(handler_)) handler->on_closed(reason);
    }

    // When the other end has what was sent before.
    nanoseconds arrival(size_t bytes) {
        Simulation & simulation = network_.simulation_;
        const auto & path = network_.path(machine_.name_, peer_);
        const auto now = simulation.clock().now();
        free_ = std::max(free_, now) + nanoseconds(bytes * 1'000'000'000 / path.bytes_per_second);
        queue_.emplace_back(free_, bytes);
        last_arrival_ = std::max(last_arrival_ + nanoseconds(1), free_ + path.latency + simulation.up_to(path.latency));
        return last_arrival_ - now;
    }

    void deliver(const Frame & frame) {
        const uint64_t number = ++sent_;
        network_.simulation_.after(arrival(FrameHeader::kBytes + frame.header.body_bytes),
                                   fmt::format("{} > {}: {} {}", machine_.name_, peer_,
                                               static_cast<int>(frame.header.type), frame.header.body_bytes),
                                   [self = shared_from_this(), number, frame] {
                                       if (number > self->last_to_arrive_) return;
                                       self->arrived_ = number;
                                       if (const auto other = self->other_.lock()) other->arrive(frame);
                                   });
    }

    void after_all(std::function<void(SimulatedEnd &)> event, nanoseconds later = nanoseconds(0)) {
        network_.simulation_.after(arrival(0) + later, fmt::format("{} | {}", machine_.name_, peer_),
                                   [other = other_, event = std::move(event)] {
                                       if (const auto end = other.lock()) event(*end);
                                   });
    }

    // A handler that waits lets more frames arrive: they stay in order.
    void arrive(const Frame & frame) {
        inbox_.push_back(frame);
        if (delivering_) return;
        delivering_ = true;
        while (open_ && !inbox_.empty()) {
            const Frame next = std::move(inbox_.front());
            inbox_.pop_front();
            take(next);
        }
        delivering_ = false;
        if (!untold_.ok()) tell(untold_);
    }

    void take(const Frame & frame) {
        const auto handler = handler_;
        if (handler == nullptr) return;
        counters_.bytes_in += FrameHeader::kBytes + frame.header.body_bytes;
        ++counters_.frames_in;
        const auto bytes = frame.header.encode();
        const auto header = FrameHeader::decode(bytes, handler->max_body_bytes());
        if (!header.ok()) return close(header.status());
        if (frame.header.type == FrameType::kRefusal) {
            const auto text = frame.body();
            return end(absl::UnavailableError(
                fmt::format("{}: {}", peer_, std::string(reinterpret_cast<const char *>(text.data()), text.size()))));
        }
        if (const absl::Status status = handler->on_frame(frame); !status.ok()) close(status);
    }

    SimulatedNetwork & network_;
    SimulatedNetwork::Machine & machine_;
    const std::string peer_;
    std::weak_ptr<SimulatedEnd> other_;
    std::shared_ptr<ChannelHandler> handler_;
    bool open_ = true;
    bool delivering_ = false;
    absl::Status untold_;
    std::deque<Frame> inbox_;

    // Of what is sent.
    mutable std::deque<std::pair<std::chrono::steady_clock::time_point, size_t>> queue_; // when it has left
    std::chrono::steady_clock::time_point free_, last_arrival_;
    uint64_t sent_ = 0, arrived_ = 0, last_to_arrive_ = UINT64_MAX;
    Counters counters_;
};

absl::StatusOr<std::shared_ptr<Channel>> SimulatedNetwork::Machine::connect(const std::string & address,
                                                                            std::shared_ptr<ChannelHandler> handler) {
    const auto target = std::ranges::find(network_.machines_, address, &Machine::name_);
    auto mine = std::make_shared<SimulatedEnd>(network_, *this, address);
    mine->begin(std::move(handler));
    ends_.push_back(mine);
    if (target == network_.machines_.end() || !target->up_ || target->acceptor_ == nullptr) {
        mine->end(absl::UnavailableError(fmt::format("cannot connect to {}", address)));
        return mine;
    }
    auto other = std::make_shared<SimulatedEnd>(network_, *target, name_);
    mine->join(other);
    other->join(mine);
    target->ends_.push_back(other);
    // Before any frame of it; both ends keep each other until then.
    if (auto taker = target->acceptor_->on_connection(other))
        other->begin(std::move(taker));
    else
        other->close(absl::ResourceExhaustedError("too many connections"));
    return mine;
}

absl::StatusOr<std::string> SimulatedNetwork::Machine::listen(const std::string &, std::shared_ptr<Acceptor> acceptor) {
    acceptor_ = std::move(acceptor);
    return name_;
}

void SimulatedNetwork::Machine::crash() {
    up_ = false;
    acceptor_.reset();
    for (const auto & end : std::exchange(ends_, {})) {
        if (const auto alive = end.lock()) alive->vanish();
    }
}

// Connections and who handles them keep each other.
SimulatedNetwork::~SimulatedNetwork() {
    for (Machine & machine : machines_) {
        machine.acceptor_.reset();
        for (const auto & end : std::exchange(machine.ends_, {})) {
            if (const auto alive = end.lock()) alive->forget();
        }
    }
}

SimulatedNetwork::Machine & SimulatedNetwork::add(std::string name) {
    return machines_.emplace_back(*this, std::move(name));
}

const SimulatedNetwork::Path & SimulatedNetwork::path(const std::string & from, const std::string & to) {
    const auto [found, inserted] = paths_.try_emplace(std::minmax(from, to));
    if (inserted) {
        found->second = {kLatencies[simulation_.random(kLatencies.size())], kRates[simulation_.random(kRates.size())]};
    }
    return found->second;
}

} // namespace strata::wire
