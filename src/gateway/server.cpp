#include "gateway/server.h"

#include "base/api_error.h"
#include "gateway/connect.h"
#include "gateway/server_context.h"
#include "gateway/task.h"
#include "gateway/worker.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <future>
#include <mutex>

namespace strata::gateway {

namespace asio = boost::asio;
using Tcp = asio::ip::tcp;
using Acceptor = asio::basic_socket_acceptor<Tcp, Executor>;

namespace {

constexpr int kMaxThreads = 64;
constexpr size_t kOtherFiles = 512; // that the rest of the process may have open
constexpr std::chrono::milliseconds kAcceptPause{100};

// What one connection too many is told, written as far as the socket takes it at once.
const std::string & too_many_connections() {
    static const std::string text = [] {
        const std::string body = error_body("", 503, "too many connections; try again soon");
        return fmt::format("HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
                           "content-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{}",
                           body.size(), body);
    }();
    return text;
}

absl::StatusOr<asio::ip::address> loopback_address(std::string text) {
    if (text == "localhost") text = "127.0.0.1";
    if (text.size() > 2 && text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
    boost::system::error_code error;
    const asio::ip::address address = asio::ip::make_address(text, error);
    if (error) {
        return absl::InvalidArgumentError(
            fmt::format("cannot listen on '{}': not an IP address; use 127.0.0.1 or ::1", text));
    }
    if (!address.is_loopback()) {
        return absl::InvalidArgumentError(
            fmt::format("cannot listen on {}: only loopback addresses (127.0.0.1, ::1) are allowed until certificates "
                        "and API keys exist; to serve others, put a proxy that authenticates them in front",
                        text));
    }
    return address;
}

// Each connection is a file.
void raise_open_files(size_t connections) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    const rlim_t wanted = std::min<rlim_t>(connections + kOtherFiles, limit.rlim_max);
    if (limit.rlim_cur >= wanted) return;
    limit.rlim_cur = wanted;
    ::setrlimit(RLIMIT_NOFILE, &limit);
}

} // namespace

class Server::Impl {
public:
    Impl(const ServerOptions & options, Backend & backend, prometheus::Registry & registry,
         std::unique_ptr<ConnectBridge> connect)
        : context_(options.limits, options.allow_hosts, backend, registry, std::move(connect)) {
        const int threads = std::clamp(options.threads, 1, kMaxThreads);
        for (int i = 0; i < threads; ++i) workers_.push_back(std::make_unique<Worker>(context_));
        acceptor_.emplace(workers_[0]->executor());
    }
    ~Impl() { stop(); }

    absl::Status listen(const asio::ip::address & address, uint16_t port) {
        const Tcp::endpoint endpoint(address, port);
        boost::system::error_code error;
        acceptor_->open(endpoint.protocol(), error);
        if (!error) acceptor_->set_option(Acceptor::reuse_address(true), error);
        if (!error) acceptor_->bind(endpoint, error);
        if (!error) acceptor_->listen(asio::socket_base::max_listen_connections, error);
        const auto local = error ? endpoint : acceptor_->local_endpoint(error);
        if (error) {
            const std::string where = fmt::format("cannot listen on {}:{}", address.to_string(), port);
            if (error == asio::error::address_in_use) {
                return absl::AlreadyExistsError(
                    fmt::format("{}: another program uses this port, perhaps another stratad; end it, or choose "
                                "another port with --listen {}:PORT",
                                where, address.to_string()));
            }
            return absl::UnavailableError(fmt::format("{}: {}", where, error.message()));
        }
        port_ = local.port();
        url_ = address.is_v6() ? fmt::format("http://[{}]:{}", address.to_string(), port_)
                               : fmt::format("http://{}:{}", address.to_string(), port_);
        for (auto & worker : workers_) worker->start();
        asio::co_spawn(workers_[0]->executor(), accept(), asio::detached);
        return absl::OkStatus();
    }

    uint16_t port() const { return port_; }
    const std::string & url() const { return url_; }

    void drain() {
        const std::lock_guard lock(ending_);
        drain_locked();
    }

    bool wait_idle(std::chrono::milliseconds timeout) { return context_.in_flight->wait_idle(timeout); }

    void stop() {
        const std::lock_guard lock(ending_);
        if (std::exchange(stopped_, true)) return;
        if (port_ != 0) drain_locked();
        for (auto & worker : workers_) worker->stop();
    }

private:
    void drain_locked() {
        if (context_.draining.exchange(true)) return;
        // The port is free when this returns, for the daemon that comes next.
        std::promise<void> closed;
        const std::future<void> done = closed.get_future();
        asio::post(workers_[0]->executor(), [this, closed = std::move(closed)]() mutable {
            boost::system::error_code ignored;
            acceptor_->close(ignored);
            closed.set_value();
        });
        done.wait();
        for (auto & worker : workers_) worker->drain();
    }

    Task<void> accept() {
        Timer pause(workers_[0]->executor());
        bool failing = false; // said once, not for each attempt
        for (size_t next = 0; acceptor_->is_open(); ++next) {
            Worker & worker = *workers_[next % workers_.size()];
            Socket socket(worker.executor());
            const auto [error] = co_await acceptor_->async_accept(socket, kAwait);
            if (!acceptor_->is_open()) break;
            if (error) {
                // Out of files, or a client that left at once.
                if (error != asio::error::connection_aborted) {
                    if (!std::exchange(failing, true)) {
                        spdlog::warn("cannot accept HTTP connections for now: {}", error.message());
                    }
                    pause.expires_after(kAcceptPause);
                    co_await pause.async_wait(kAwait);
                }
                continue;
            }
            failing = false;
            if (context_.connections.fetch_add(1) >= context_.limits.connections) {
                context_.connections.fetch_sub(1);
                context_.metrics.refused("too_many_connections");
                boost::system::error_code ignored;
                socket.non_blocking(true, ignored);
                socket.write_some(asio::buffer(too_many_connections()), ignored);
                continue;
            }
            worker.adopt(std::move(socket));
        }
    }

    ServerContext context_;
    std::vector<std::unique_ptr<Worker>> workers_;
    std::optional<Acceptor> acceptor_; // on the first worker's thread
    uint16_t port_ = 0;
    std::string url_;
    std::mutex ending_;
    bool stopped_ = false;
};

Server::Server(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
Server::~Server() = default;

absl::StatusOr<std::unique_ptr<Server>> Server::start(const ServerOptions & options, Backend & backend,
                                                      prometheus::Registry & registry,
                                                      std::shared_ptr<grpc::Channel> control) {
    STRATA_ASSIGN_OR_RETURN(const asio::ip::address address, loopback_address(options.address));
    raise_open_files(options.limits.connections);
    auto connect = control ? std::make_unique<ConnectBridge>(std::move(control)) : nullptr;
    auto impl = std::make_unique<Impl>(options, backend, registry, std::move(connect));
    STRATA_RETURN_IF_ERROR(impl->listen(address, options.port));
    return std::unique_ptr<Server>(new Server(std::move(impl)));
}

uint16_t Server::port() const {
    return impl_->port();
}

std::string Server::url() const {
    return impl_->url();
}

void Server::drain() {
    impl_->drain();
}

bool Server::wait_idle(std::chrono::milliseconds timeout) {
    return impl_->wait_idle(timeout);
}

void Server::stop() {
    impl_->stop();
}

} // namespace strata::gateway
