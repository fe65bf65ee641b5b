#include "wire/tcp.h"

#include "wire/limits.h"
#include "wire/tcp_channel.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

namespace strata::wire {
namespace {

using std::chrono::milliseconds;

std::string name_of(const sockaddr_storage & address, socklen_t length) {
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (getnameinfo(reinterpret_cast<const sockaddr *>(&address), length, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        return "?";
    }
    return Address{host, static_cast<uint16_t>(std::atoi(port))}.to_string();
}

} // namespace

TcpNetwork::TcpNetwork(std::shared_ptr<const TlsContext> tls)
    : tls_(std::move(tls))
    , wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
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
    auto channel = std::make_shared<TcpChannel>(*this, tls(), address, UniqueFd());
    if (!start(channel))
        return absl::ResourceExhaustedError(fmt::format("no more than {} connections", kMaxConnections));
    channel->start(std::move(handler));
    return channel;
}

absl::StatusOr<std::string> TcpNetwork::listen(const std::string & text, std::shared_ptr<Acceptor> acceptor) {
    STRATA_ASSIGN_OR_RETURN(const Address address, Address::parse(text, kDefaultExecutorPort));
    if (!address.is_loopback() && tls() == nullptr) {
        return absl::PermissionDeniedError(
            fmt::format("{} is not a loopback address: engines listen there with certificates only (--tls DIR)", text));
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

// Certificates are renewed while programs run.
std::shared_ptr<const TlsContext> TcpNetwork::tls() {
    const std::lock_guard lock(mutex_);
    tls_ = TlsContext::renewed(std::move(tls_));
    return tls_;
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
        auto channel = std::make_shared<TcpChannel>(*this, tls(), name_of(from, length), std::move(fd));
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
