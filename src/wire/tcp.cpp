#include "wire/tcp.h"

#include "base/text.h"
#include "wire/limits.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <vector>

namespace strata::wire {
namespace {

using SteadyClock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// How often a thread that waits for bytes looks at its deadlines.
constexpr milliseconds kTick{500};
// How long a connection that we end is still read, so that the peer gets to see why.
constexpr milliseconds kLastWords{1000};
constexpr size_t kReadAhead = size_t{64} << 10;
constexpr size_t kMaxPieces = 64; // of one sendmsg

int64_t ticks(SteadyClock::time_point time) {
    return time.time_since_epoch().count();
}

void prepare(int fd) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    const timeval tick{0, std::chrono::microseconds(kTick).count()};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof(tick));
}

struct AddressList {
    addrinfo * first = nullptr;
    ~AddressList() {
        if (first != nullptr) freeaddrinfo(first);
    }
};

absl::Status resolve(const Address & address, bool passive, AddressList & list) {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = passive ? AI_PASSIVE : 0;
    const int error = getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &list.first);
    if (error != 0) {
        return absl::UnavailableError(
            fmt::format("cannot resolve {}: {}", printable(address.host), gai_strerror(error)));
    }
    return absl::OkStatus();
}

std::string name_of(const sockaddr_storage & address, socklen_t length) {
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getnameinfo(reinterpret_cast<const sockaddr *>(&address), length, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return "?";
    }
    return Address{host, static_cast<uint16_t>(std::atoi(port))}.to_string();
}

} // namespace

class TcpChannel : public Channel, public std::enable_shared_from_this<TcpChannel> {
public:
    // One that connects (no fd yet), or one that was accepted.
    TcpChannel(TcpNetwork & network, std::string peer, UniqueFd fd)
        : network_(network)
        , peer_(std::move(peer))
        , accepted_(fd.valid())
        , fd_(std::move(fd)) {
        if (accepted_) connected_ = true;
        touch(last_sent_);
    }

    void start(std::shared_ptr<ChannelHandler> handler) {
        const std::lock_guard lock(mutex_); // the thread may be at its end before it has a name
        handler_ = std::move(handler);
        thread_ = std::thread([self = shared_from_this()] { self->run(); });
    }

    void send(FrameHeader header, std::span<const std::span<const uint8_t>> body) override;
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
    absl::Status read_frames();
    absl::Status read_some(uint8_t * into, size_t at_least, size_t at_most, size_t & got,
                           SteadyClock::time_point deadline, std::string_view waiting_for);
    void write_now(std::vector<iovec> & pieces); // mutex_ held; leaves what was not taken
    void keep(const std::vector<iovec> & pieces);
    void drain();
    void set_closing(const absl::Status & status); // mutex_ held
    static void touch(std::atomic<int64_t> & time) { time.store(ticks(SteadyClock::now()), std::memory_order_relaxed); }

    TcpNetwork & network_;
    const std::string peer_;
    const bool accepted_;
    std::shared_ptr<ChannelHandler> handler_;
    std::thread thread_;
    std::atomic<bool> finished_ = false;

    mutable std::mutex mutex_;
    UniqueFd fd_; // closed by the reading thread only
    bool connected_ = false;
    bool closing_ = false;
    absl::Status reason_;
    std::deque<std::vector<uint8_t>> waiting_; // to be sent
    size_t waiting_from_ = 0;                  // of the first
    size_t waiting_bytes_ = 0;

    std::atomic<int64_t> last_sent_ = 0;
    std::atomic<uint64_t> bytes_in_ = 0, bytes_out_ = 0, frames_in_ = 0, frames_out_ = 0;
};

// -------------------- sending

void TcpChannel::send(FrameHeader header, std::span<const std::span<const uint8_t>> body) {
    size_t body_bytes = 0;
    for (const auto piece : body) body_bytes += piece.size();
    header.body_bytes = static_cast<uint32_t>(body_bytes);
    auto head = header.encode();
    std::vector<iovec> pieces;
    pieces.reserve(body.size() + 1);
    pieces.push_back({head.data(), head.size()});
    for (const auto piece : body) {
        if (!piece.empty()) pieces.push_back({const_cast<uint8_t *>(piece.data()), piece.size()});
    }
    bool left = false;
    {
        const std::lock_guard lock(mutex_);
        if (closing_) return;
        frames_out_.fetch_add(1, std::memory_order_relaxed);
        if (connected_ && waiting_.empty()) write_now(pieces);
        keep(pieces);
        left = connected_ && !waiting_.empty();
        if (waiting_bytes_ > kMaxQueuedBytes) {
            set_closing(absl::ResourceExhaustedError(fmt::format("{} does not take what is sent to it", peer_)));
        }
    }
    if (left) network_.wake();
}

void TcpChannel::write_now(std::vector<iovec> & pieces) {
    size_t first = 0;
    while (first < pieces.size()) {
        msghdr message{};
        message.msg_iov = pieces.data() + first;
        message.msg_iovlen = std::min(pieces.size() - first, kMaxPieces);
        const ssize_t sent = sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) {
            if (errno != EAGAIN && errno != EWOULDBLOCK) set_closing(errno_status(errno, "cannot send to", peer_));
            break;
        }
        bytes_out_.fetch_add(static_cast<uint64_t>(sent), std::memory_order_relaxed);
        touch(last_sent_);
        auto left = static_cast<size_t>(sent);
        while (first < pieces.size() && left >= pieces[first].iov_len) left -= pieces[first++].iov_len;
        if (left > 0) {
            pieces[first].iov_base = static_cast<uint8_t *>(pieces[first].iov_base) + left;
            pieces[first].iov_len -= left;
        }
    }
    pieces.erase(pieces.begin(), pieces.begin() + static_cast<ptrdiff_t>(first));
}

void TcpChannel::keep(const std::vector<iovec> & pieces) {
    if (pieces.empty() || closing_) return;
    std::vector<uint8_t> copy;
    for (const iovec & piece : pieces) {
        const auto * bytes = static_cast<const uint8_t *>(piece.iov_base);
        copy.insert(copy.end(), bytes, bytes + piece.iov_len);
    }
    waiting_bytes_ += copy.size();
    waiting_.push_back(std::move(copy));
}

void TcpChannel::flush() {
    const std::lock_guard lock(mutex_);
    while (connected_ && !closing_ && !waiting_.empty()) {
        auto & front = waiting_.front();
        std::vector<iovec> pieces{{front.data() + waiting_from_, front.size() - waiting_from_}};
        write_now(pieces);
        const size_t left = pieces.empty() ? 0 : pieces[0].iov_len;
        waiting_bytes_ -= front.size() - waiting_from_ - left;
        waiting_from_ = front.size() - left;
        if (left > 0) return;
        waiting_.pop_front();
        waiting_from_ = 0;
    }
}

int TcpChannel::fd_to_flush() {
    const std::lock_guard lock(mutex_);
    return connected_ && !closing_ && !waiting_.empty() ? fd_.get() : -1;
}

void TcpChannel::ping_if_quiet() {
    const auto quiet = SteadyClock::now().time_since_epoch() - SteadyClock::duration(last_sent_.load());
    if (quiet < kPingInterval) return;
    FrameHeader header;
    header.type = FrameType::kPing;
    send(header, std::span<const std::span<const uint8_t>>());
}

void TcpChannel::close(const absl::Status & status) {
    const std::lock_guard lock(mutex_);
    if (closing_) return;
    if (!status.ok() && connected_ && waiting_.empty()) {
        FrameHeader header;
        header.type = FrameType::kRefusal;
        const std::string text(status.message().substr(0, 1000));
        header.body_bytes = static_cast<uint32_t>(text.size());
        auto head = header.encode();
        std::vector<iovec> pieces{{head.data(), head.size()}, {const_cast<char *>(text.data()), text.size()}};
        write_now(pieces);
    }
    set_closing(status.ok() ? absl::CancelledError("closed") : status);
}

void TcpChannel::set_closing(const absl::Status & status) {
    if (closing_) return;
    closing_ = true;
    reason_ = status;
    waiting_.clear();
    waiting_bytes_ = 0;
    if (fd_.valid()) shutdown(fd_.get(), SHUT_WR); // the reading thread does the rest
}

// -------------------- reading

void TcpChannel::run() {
    absl::Status status = accepted_ ? absl::OkStatus() : connect_now();
    if (status.ok()) status = read_frames();
    {
        const std::lock_guard lock(mutex_);
        if (closing_) status = reason_;
    }
    if (!status.ok() && status.code() != absl::StatusCode::kUnavailable) close(status);
    {
        const std::lock_guard lock(mutex_);
        set_closing(status);
    }
    drain();
    handler_->on_closed(status);
    handler_.reset();
    {
        const std::lock_guard lock(mutex_);
        fd_.reset();
    }
    finished_.store(true, std::memory_order_release);
    network_.wake();
}

absl::Status TcpChannel::connect_now() {
    STRATA_ASSIGN_OR_RETURN(const Address address, Address::parse(peer_, 0));
    AddressList list;
    STRATA_RETURN_IF_ERROR(resolve(address, false, list));
    absl::Status status = absl::UnavailableError(fmt::format("cannot connect to {}", peer_));
    for (const addrinfo * at = list.first; at != nullptr; at = at->ai_next) {
        UniqueFd fd(socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol));
        if (!fd.valid()) continue;
        int error = 0;
        if (::connect(fd.get(), at->ai_addr, at->ai_addrlen) != 0) {
            error = errno;
            if (error == EINPROGRESS) {
                const auto deadline = SteadyClock::now() + kConnectTimeout;
                pollfd poll_fd{fd.get(), POLLOUT, 0};
                while (poll(&poll_fd, 1, static_cast<int>(kTick.count())) == 0 && SteadyClock::now() < deadline) {
                    const std::lock_guard lock(mutex_);
                    if (closing_) return reason_;
                }
                socklen_t size = sizeof(error);
                if (poll_fd.revents == 0)
                    error = ETIMEDOUT;
                else
                    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
            }
        }
        if (error != 0) {
            status = absl::UnavailableError(fmt::format("cannot connect to {}: {}", peer_, strerror(error)));
            continue;
        }
        const int flags = fcntl(fd.get(), F_GETFL);
        fcntl(fd.get(), F_SETFL, flags & ~O_NONBLOCK);
        prepare(fd.get());
        const std::lock_guard lock(mutex_);
        if (closing_) return reason_;
        fd_ = std::move(fd);
        connected_ = true;
        network_.wake(); // what waits is sent now
        return absl::OkStatus();
    }
    return status;
}

// Reads between at_least and at_most bytes.
absl::Status TcpChannel::read_some(uint8_t * into, size_t at_least, size_t at_most, size_t & got,
                                   SteadyClock::time_point deadline, std::string_view waiting_for) {
    got = 0;
    auto last_byte = SteadyClock::now();
    while (got < at_least) {
        const ssize_t n = recv(fd_.get(), into + got, at_most - got, 0);
        if (n > 0) {
            got += static_cast<size_t>(n);
            last_byte = SteadyClock::now();
            bytes_in_.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
        } else if (n == 0) {
            return absl::UnavailableError(fmt::format("{} ended the connection", peer_));
        } else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK) {
            return absl::UnavailableError(fmt::format("the connection to {} broke: {}", peer_, strerror(errno)));
        }
        if (got >= at_least) break;
        if (const auto now = SteadyClock::now(); now > deadline || now - last_byte > kSilenceTimeout) {
            return absl::DeadlineExceededError(fmt::format("{} sent no {} in time", peer_, waiting_for));
        }
        const std::lock_guard lock(mutex_);
        if (closing_) return reason_;
    }
    return absl::OkStatus();
}

absl::Status TcpChannel::read_frames() {
    const auto buffer = std::make_unique<uint8_t[]>(kReadAhead);
    size_t begin = 0, end = 0; // what of the buffer is not used yet
    milliseconds patience = accepted_ ? kHelloTimeout : kSilenceTimeout;
    while (true) {
        if (end - begin < FrameHeader::kBytes) {
            std::copy(buffer.get() + begin, buffer.get() + end, buffer.get());
            end -= begin;
            begin = 0;
            size_t got = 0;
            STRATA_RETURN_IF_ERROR(read_some(buffer.get() + end, FrameHeader::kBytes - end, kReadAhead - end, got,
                                             SteadyClock::now() + patience, "frame"));
            end += got;
        }
        STRATA_ASSIGN_OR_RETURN(const FrameHeader header,
                                FrameHeader::decode(std::span<const uint8_t, FrameHeader::kBytes>(buffer.get() + begin,
                                                                                                  FrameHeader::kBytes),
                                                    handler_->max_body_bytes()));
        begin += FrameHeader::kBytes;
        Frame frame{header, std::shared_ptr<uint8_t[]>(new uint8_t[header.body_bytes])};
        const size_t there = std::min<size_t>(header.body_bytes, end - begin);
        std::copy_n(buffer.get() + begin, there, frame.storage.get());
        begin += there;
        if (there < header.body_bytes) {
            const size_t rest = header.body_bytes - there;
            size_t got = 0;
            STRATA_RETURN_IF_ERROR(read_some(
                frame.storage.get() + there, rest, rest, got,
                SteadyClock::now() + kFrameTimeout + std::chrono::seconds(rest / kMinBytesPerSecond), "whole frame"));
        }
        frames_in_.fetch_add(1, std::memory_order_relaxed);
        patience = kSilenceTimeout;
        if (header.type == FrameType::kPing) continue;
        if (header.type == FrameType::kRefusal) {
            const auto body = frame.body();
            return absl::UnavailableError(fmt::format(
                "{}: {}", peer_, printable({reinterpret_cast<const char *>(body.data()), body.size()}, 1000)));
        }
        STRATA_RETURN_IF_ERROR(handler_->on_frame(frame));
    }
}

// Reads on for a moment: closing a socket with unread bytes would take back the last words that the peer has not read.
void TcpChannel::drain() {
    if (!fd_.valid()) return;
    uint8_t sink[4096];
    const auto deadline = SteadyClock::now() + kLastWords;
    while (!network_.stopping_.load() && SteadyClock::now() < deadline) {
        const ssize_t n = recv(fd_.get(), sink, sizeof(sink), 0);
        if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)) return;
    }
}

// -------------------- network

TcpNetwork::TcpNetwork()
    : wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
    , attendant_([this] { attend(); }) {}

TcpNetwork::~TcpNetwork() {
    stopping_.store(true);
    for (Listener & listener : listeners_) {
        shutdown(listener.fd.get(), SHUT_RDWR);
        listener.thread.join();
    }
    {
        const std::lock_guard lock(mutex_);
        for (const auto & channel : channels_) channel->close(absl::OkStatus());
    }
    wake();
    attendant_.join();
}

void TcpNetwork::wake() {
    const uint64_t one = 1;
    (void)!write(wake_fd_.get(), &one, sizeof(one));
}

bool TcpNetwork::start(const std::shared_ptr<TcpChannel> & channel) {
    const std::lock_guard lock(mutex_);
    if (stopping_.load() || channels_.size() >= kMaxConnections) return false;
    channels_.push_back(channel);
    return true;
}

absl::StatusOr<std::shared_ptr<Channel>> TcpNetwork::connect(const std::string & address,
                                                             std::shared_ptr<ChannelHandler> handler) {
    auto channel = std::make_shared<TcpChannel>(*this, address, UniqueFd());
    if (!start(channel))
        return absl::ResourceExhaustedError(fmt::format("no more than {} connections", kMaxConnections));
    channel->start(std::move(handler));
    return channel;
}

absl::StatusOr<std::string> TcpNetwork::listen(const std::string & text, std::shared_ptr<Acceptor> acceptor) {
    STRATA_ASSIGN_OR_RETURN(const Address address, Address::parse(text, kDefaultExecutorPort));
    if (!address.is_loopback()) {
        return absl::PermissionDeniedError(fmt::format(
            "{} is not a loopback address: until strata has certificates, engines listen on 127.0.0.0/8 only", text));
    }
    AddressList list;
    STRATA_RETURN_IF_ERROR(resolve(address, true, list));
    UniqueFd fd(socket(list.first->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (!fd.valid() || bind(fd.get(), list.first->ai_addr, list.first->ai_addrlen) != 0 ||
        ::listen(fd.get(), 64) != 0) {
        return errno_status(errno, "cannot listen on", address.to_string());
    }
    sockaddr_storage bound{};
    socklen_t length = sizeof(bound);
    getsockname(fd.get(), reinterpret_cast<sockaddr *>(&bound), &length);
    const std::lock_guard lock(mutex_);
    Listener & listener = listeners_.emplace_back();
    listener.fd = std::move(fd);
    listener.acceptor = std::move(acceptor);
    listener.thread = std::thread([this, &listener] { accept_loop(listener); });
    return name_of(bound, length);
}

void TcpNetwork::accept_loop(Listener & listener) {
    while (!stopping_.load()) {
        sockaddr_storage from{};
        socklen_t length = sizeof(from);
        UniqueFd fd(accept4(listener.fd.get(), reinterpret_cast<sockaddr *>(&from), &length, SOCK_CLOEXEC));
        if (!fd.valid()) {
            if (errno == EINTR || errno == ECONNABORTED || stopping_.load()) continue;
            std::this_thread::sleep_for(milliseconds(100)); // out of descriptors: others may end
            continue;
        }
        prepare(fd.get());
        auto channel = std::make_shared<TcpChannel>(*this, name_of(from, length), std::move(fd));
        auto handler = listener.acceptor->on_connection(channel);
        if (handler == nullptr || !start(channel)) {
            channel->close(absl::ResourceExhaustedError("too many connections"));
            continue;
        }
        channel->start(std::move(handler));
    }
}

void TcpNetwork::attend() {
    std::vector<std::shared_ptr<TcpChannel>> done, all;
    std::vector<pollfd> fds;
    while (true) {
        done.clear();
        all.clear();
        {
            const std::lock_guard lock(mutex_);
            for (auto at = channels_.begin(); at != channels_.end();) {
                const bool finished = (*at)->finished();
                (finished ? done : all).push_back(*at);
                at = finished ? channels_.erase(at) : std::next(at);
            }
        }
        for (const auto & channel : done) channel->join();
        if (stopping_.load() && all.empty()) return;
        fds.assign(1, {wake_fd_.get(), POLLIN, 0});
        for (const auto & channel : all) {
            channel->ping_if_quiet();
            const int fd = channel->fd_to_flush();
            if (fd >= 0) fds.push_back({fd, POLLOUT, 0});
        }
        poll(fds.data(), fds.size(), static_cast<int>(kTick.count()));
        uint64_t count = 0;
        (void)!read(wake_fd_.get(), &count, sizeof(count));
        for (const auto & channel : all) channel->flush();
    }
}

} // namespace strata::wire
