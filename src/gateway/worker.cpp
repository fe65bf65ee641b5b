#include "gateway/worker.h"

#include "base/check.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <exception>
#include <vector>

namespace strata::gateway {

namespace asio = boost::asio;

Worker::Worker(ServerContext & server)
    : server_(server)
    , work_(io_.get_executor())
    , sweep_timer_(io_.get_executor()) {}

Worker::~Worker() {
    stop();
}

void Worker::start() {
    asio::co_spawn(io_, sweep(), asio::detached);
    thread_ = std::thread([this] {
        pthread_setname_np(pthread_self(), "gateway");
        for (;;) {
            try {
                io_.run();
                return;
            } catch (const std::exception & failure) {
                // A handler ran out of memory. Its connection is left to its deadlines; the others go on.
                spdlog::error("an HTTP worker goes on after: {}", failure.what());
            }
        }
    });
}

void Worker::adopt(Socket socket) {
    // The handler owns the socket; a worker that has stopped closes it with the handler.
    asio::post(io_, [this, socket = std::move(socket)]() mutable {
        std::make_shared<Connection>(std::move(socket), server_, connections_)->start();
    });
}

void Worker::drain() {
    asio::post(io_, [this] {
        for (Connection * connection : connections_) connection->drain();
    });
}

void Worker::stop() {
    if (!thread_.joinable()) return;
    STRATA_CHECK(thread_.get_id() != std::this_thread::get_id());
    asio::post(io_, [this] {
        for (Connection * connection : connections_) connection->stop();
        sweep_timer_.cancel();
        work_.reset();
    });
    thread_.join(); // run() returns when the last connection has ended
}

Task<void> Worker::sweep() {
    while (work_.owns_work()) {
        sweep_timer_.expires_after(server_.limits.sweep_time);
        co_await sweep_timer_.async_wait(kAwait);
        const auto now = std::chrono::steady_clock::now();
        for (Connection * connection : connections_) connection->sweep(now);
    }
}

} // namespace strata::gateway
