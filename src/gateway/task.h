#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <chrono>

namespace strata::gateway {

// Asio bound to one thread's io_context, without type-erased executors: the memory of thousands of connections counts.
using Executor = boost::asio::io_context::executor_type;
template <typename T>
using Task = boost::asio::awaitable<T, Executor>;
using Socket = boost::asio::basic_stream_socket<boost::asio::ip::tcp, Executor>;
using Timer = boost::asio::basic_waitable_timer<std::chrono::steady_clock,
                                                boost::asio::wait_traits<std::chrono::steady_clock>, Executor>;

// co_await something(args, kAwait) gives a tuple that begins with the error.
inline constexpr boost::asio::as_tuple_t<boost::asio::use_awaitable_t<Executor>> kAwait;

// Wakes one waiting coroutine of the same thread. What is notified while nobody waits is not lost.
class Signal {
public:
    explicit Signal(Executor executor)
        : timer_(executor) {}

    void notify() {
        notified_ = true;
        timer_.cancel();
    }
    Task<void> wait() {
        if (!notified_) {
            timer_.expires_at(std::chrono::steady_clock::time_point::max());
            co_await timer_.async_wait(kAwait);
        }
        notified_ = false;
    }

private:
    Timer timer_;
    bool notified_ = false;
};

} // namespace strata::gateway
