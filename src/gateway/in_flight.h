#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>

namespace strata::gateway {

// Counts what is under way, so that a drain can wait for it. Thread-safe.
class InFlight {
public:
    void enter() {
        const std::lock_guard lock(mutex_);
        ++count_;
    }
    void leave() {
        const std::lock_guard lock(mutex_);
        if (--count_ == 0) idle_.notify_all();
    }
    bool wait_idle(std::chrono::milliseconds timeout) {
        std::unique_lock lock(mutex_);
        return idle_.wait_for(lock, timeout, [this] { return count_ == 0; });
    }

private:
    std::mutex mutex_;
    std::condition_variable idle_;
    size_t count_ = 0;
};

// One thing under way, for as long as it lives.
class InFlightToken {
public:
    InFlightToken() = default;
    explicit InFlightToken(std::shared_ptr<InFlight> counter)
        : counter_(std::move(counter)) {
        counter_->enter();
    }
    ~InFlightToken() { reset(); }
    InFlightToken(InFlightToken &&) noexcept = default;
    InFlightToken & operator=(InFlightToken && other) noexcept {
        if (this != &other) {
            reset();
            counter_ = std::move(other.counter_);
        }
        return *this;
    }

    void reset() {
        if (auto counter = std::move(counter_)) counter->leave();
    }

private:
    std::shared_ptr<InFlight> counter_;
};

} // namespace strata::gateway
