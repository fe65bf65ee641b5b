#include "wire/tcp_channel.h"

#include "base/text.h"
#include "wire/limits.h"
#include "wire/tcp.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

namespace strata::wire {
namespace {

using std::chrono::milliseconds;

// How long a connection that we end is still read, so that the peer gets to see why.
constexpr milliseconds kLastWords{1000};
constexpr size_t kReadAhead = size_t{64} << 10;
constexpr size_t kMaxPieces = 64; // of one sendmsg

void prepare(int fd) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    const timeval tick{0, std::chrono::microseconds(kTick).count()};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tick, sizeof(tick));
}

iovec iovec_of(std::span<const uint8_t> bytes) {
    return {const_cast<uint8_t *>(bytes.data()), bytes.size()};
}

// The last frame of a connection.
std::vector<uint8_t> refusal(const absl::Status & status) {
    const std::string text(status.message().substr(0, 1000));
    FrameHeader header;
    header.type = FrameType::kRefusal;
    header.body_bytes = static_cast<uint32_t>(text.size());
    std::vector<uint8_t> frame(FrameHeader::kBytes + text.size());
    std::ranges::copy(text, std::ranges::copy(header.encode(), frame.begin()).out);
    return frame;
}

} // namespace

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

TcpChannel::TcpChannel(TcpNetwork & network, std::shared_ptr<const TlsContext> tls, std::string peer, UniqueFd fd)
    : network_(network)
    , peer_(std::move(peer))
    , accepted_(fd.valid())
    , tls_(tls == nullptr ? nullptr : std::make_unique<TlsStream>(std::move(tls), accepted_, peer_))
    , fd_(std::move(fd))
    , connected_(accepted_ && tls_ == nullptr) {
    if (accepted_) prepare(fd_.get());
}

// -------------------- sending

void TcpChannel::send(FrameHeader header, std::span<const std::span<const uint8_t>> body, const MappedBytes & tail) {
    size_t body_bytes = tail.bytes.size();
    for (const auto piece : body) body_bytes += piece.size();
    header.body_bytes = static_cast<uint32_t>(body_bytes);
    auto head = header.encode();
    std::vector<iovec> pieces;
    pieces.reserve(body.size() + 2);
    pieces.push_back({head.data(), head.size()});
    for (const auto piece : body) {
        if (!piece.empty()) pieces.push_back(iovec_of(piece));
    }
    if (!tail.bytes.empty()) pieces.push_back(iovec_of(tail.bytes));
    bool left = false;
    {
        const std::lock_guard lock(mutex_);
        if (closing_) return;
        frames_out_.fetch_add(1, std::memory_order_relaxed);
        transmit(pieces, tail);
        left = connected_ && !waiting_.empty();
        if (waiting_bytes_ > kMaxQueuedBytes) {
            set_closing(absl::ResourceExhaustedError(fmt::format("{} does not take what is sent to it", peer_)));
        }
    }
    if (left) network_.wake();
}

void TcpChannel::transmit(std::vector<iovec> & pieces, const MappedBytes & tail) {
    if (tls_ == nullptr || !connected_) return write_or_keep(pieces, tail);
    const absl::Status written = tls_->write(pieces, [this](std::span<const uint8_t> records) {
        std::vector<iovec> whole{iovec_of(records)};
        write_or_keep(whole, {});
    });
    if (!written.ok()) set_closing(written);
}

void TcpChannel::write_or_keep(std::vector<iovec> & pieces, const MappedBytes & tail) {
    if (connected_ && waiting_.empty()) write_now(pieces);
    keep(pieces, tail);
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
        last_sent_.store(SteadyClock::now(), std::memory_order_relaxed);
        auto left = static_cast<size_t>(sent);
        while (first < pieces.size() && left >= pieces[first].iov_len) left -= pieces[first++].iov_len;
        if (left > 0) {
            pieces[first].iov_base = static_cast<uint8_t *>(pieces[first].iov_base) + left;
            pieces[first].iov_len -= left;
        }
    }
    pieces.erase(pieces.begin(), pieces.begin() + static_cast<ptrdiff_t>(first));
}

// tail: what the last of the pieces is the end of, if it has an owner.
void TcpChannel::keep(const std::vector<iovec> & pieces, const MappedBytes & tail) {
    if (pieces.empty() || closing_) return;
    const auto copy = std::make_shared<std::vector<uint8_t>>();
    std::span<const uint8_t> owned;
    for (const iovec & piece : pieces) {
        const std::span<const uint8_t> bytes(static_cast<const uint8_t *>(piece.iov_base), piece.iov_len);
        if (tail.owner != nullptr && bytes.data() + bytes.size() == tail.bytes.data() + tail.bytes.size())
            owned = bytes;
        else
            copy->insert(copy->end(), bytes.begin(), bytes.end());
    }
    waiting_bytes_ += copy->size() + owned.size();
    if (!copy->empty()) waiting_.push_back({*copy, copy});
    if (!owned.empty()) waiting_.push_back({owned, tail.owner});
}

void TcpChannel::flush() {
    const std::lock_guard lock(mutex_);
    while (connected_ && !closing_ && !waiting_.empty()) {
        std::span<const uint8_t> & front = waiting_.front().bytes;
        std::vector<iovec> pieces{iovec_of(front)};
        write_now(pieces);
        if (closing_) return; // and nothing waits any more
        const size_t left = pieces.empty() ? 0 : pieces[0].iov_len;
        waiting_bytes_ -= front.size() - left;
        front = front.last(left);
        if (left > 0) return;
        waiting_.pop_front();
    }
}

int TcpChannel::fd_to_flush() {
    const std::lock_guard lock(mutex_);
    return connected_ && !closing_ && !waiting_.empty() ? fd_.get() : -1;
}

void TcpChannel::ping_if_quiet() {
    if (SteadyClock::now() - last_sent_.load(std::memory_order_relaxed) < kPingInterval) return;
    FrameHeader header;
    header.type = FrameType::kPing;
    send(header, std::span<const std::span<const uint8_t>>());
}

void TcpChannel::close(const absl::Status & status) {
    const std::lock_guard lock(mutex_);
    if (closing_) return;
    if (!status.ok() && connected_ && waiting_.empty()) {
        const auto frame = refusal(status);
        std::vector<iovec> pieces{iovec_of(frame)};
        transmit(pieces, {});
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
    if (status.ok() && tls_ != nullptr) status = handshake();
    if (status.ok()) {
        open();
        status = read_frames();
    }
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
        return absl::OkStatus();
    }
    return status;
}

absl::Status TcpChannel::handshake() {
    const auto deadline = SteadyClock::now() + kHelloTimeout;
    const auto send_all = [this](std::span<const uint8_t> bytes) {
        const std::lock_guard lock(mutex_);
        std::vector<iovec> pieces{iovec_of(bytes)};
        if (!closing_) write_now(pieces); // a few kilobytes: nothing is left
    };
    while (true) {
        const auto done = tls_->handshake(send_all);
        // Who speaks without TLS is told so without TLS.
        if (accepted_ && absl::IsFailedPrecondition(done.status())) send_all(refusal(done.status()));
        STRATA_RETURN_IF_ERROR(done.status());
        if (*done) return absl::OkStatus();
        STRATA_ASSIGN_OR_RETURN(const size_t got, receive_plain(tls_->room()));
        tls_->arrived(got);
        if (SteadyClock::now() > deadline) {
            return absl::DeadlineExceededError(fmt::format("{} did not finish the handshake of TLS in time", peer_));
        }
        const std::lock_guard lock(mutex_);
        if (closing_) return reason_;
    }
}

// What was sent before goes out now.
void TcpChannel::open() {
    const std::lock_guard lock(mutex_);
    if (connected_ || closing_) return;
    connected_ = true;
    waiting_bytes_ = 0;
    for (const MappedBytes & part : std::exchange(waiting_, {})) {
        std::vector<iovec> pieces{iovec_of(part.bytes)};
        transmit(pieces, part);
    }
    if (!waiting_.empty()) network_.wake();
}

absl::StatusOr<size_t> TcpChannel::receive_plain(std::span<uint8_t> into) {
    const ssize_t got = recv(fd_.get(), into.data(), into.size(), 0);
    if (got == 0) return absl::UnavailableError(fmt::format("{} ended the connection", peer_));
    if (got < 0) {
        if (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK) return 0;
        return absl::UnavailableError(fmt::format("the connection to {} broke: {}", peer_, strerror(errno)));
    }
    bytes_in_.fetch_add(static_cast<uint64_t>(got), std::memory_order_relaxed);
    return static_cast<size_t>(got);
}

absl::StatusOr<size_t> TcpChannel::receive(std::span<uint8_t> into) {
    if (tls_ == nullptr) return receive_plain(into);
    STRATA_ASSIGN_OR_RETURN(const size_t left, tls_->read(into)); // over from the last time
    if (left > 0) return left;
    STRATA_ASSIGN_OR_RETURN(const size_t got, receive_plain(tls_->room()));
    tls_->arrived(got);
    return tls_->read(into);
}

// Reads between at_least and at_most bytes.
absl::Status TcpChannel::read_some(uint8_t * into, size_t at_least, size_t at_most, size_t & got,
                                   SteadyClock::time_point deadline, std::string_view waiting_for) {
    got = 0;
    auto last_byte = SteadyClock::now();
    while (got < at_least) {
        STRATA_ASSIGN_OR_RETURN(const size_t more, receive({into + got, at_most - got}));
        got += more;
        if (more > 0) last_byte = SteadyClock::now();
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

} // namespace strata::wire
