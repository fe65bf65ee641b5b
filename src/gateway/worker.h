#pragma once

#include "gateway/connection.h"
#include "gateway/server_context.h"
#include "gateway/task.h"

#include <boost/asio/executor_work_guard.hpp>

#include <memory>
#include <optional>
#include <thread>

namespace strata::gateway {

// One thread with the connections that it serves. Each connection stays on its worker for life, so that connections
// need no locks.
class Worker {
public:
    explicit Worker(ServerContext & server);
    ~Worker();

    Executor executor() { return io_.get_executor(); }
    void start();
    // From any thread.
    void adopt(Socket socket);
    void drain();
    // Ends every connection, then the thread. Not from the worker's own thread.
    void stop();

private:
    Task<void> sweep();

    ServerContext & server_;
    Connection::Set connections_; // outlives io_, whose frames hold the connections
    boost::asio::io_context io_{1};
    boost::asio::executor_work_guard<Executor> work_;
    Timer sweep_timer_;
    std::thread thread_;
};

} // namespace strata::gateway
