#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <utility>

namespace strata::daemon {

// Calls a function on the loop after a while. Setting it again, cancelling it or its end drop the earlier function for
// sure, also one that is about to be called. Used on the loop's thread only.
class Timer {
public:
    explicit Timer(boost::asio::io_context & loop)
        : timer_(loop) {}

    void after(std::chrono::milliseconds delay, std::function<void()> function) {
        turn_ = std::make_shared<char>();
        timer_.expires_after(delay);
        timer_.async_wait([turn = std::weak_ptr(turn_), function = std::move(function)](const auto & error) {
            if (!error && !turn.expired()) function();
        });
    }
    void cancel() {
        turn_.reset();
        timer_.cancel();
    }
    // When it fires; meaningful while it is set.
    std::chrono::steady_clock::time_point when() const { return timer_.expiry(); }

private:
    boost::asio::steady_timer timer_;
    std::shared_ptr<char> turn_; // whose turn it is: a queued call of an earlier setting finds it gone
};

} // namespace strata::daemon
