#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace strata::gateway {

// Bytes that many holders share: none may take more than is left. Thread-safe, without locks.
class MemoryBudget {
public:
    explicit MemoryBudget(size_t limit_bytes)
        : limit_(limit_bytes) {}

    bool take(size_t bytes) {
        size_t used = used_.load(std::memory_order_relaxed);
        do {
            if (bytes > limit_ - used) return false;
        } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
        return true;
    }
    void give_back(size_t bytes) { used_.fetch_sub(bytes, std::memory_order_relaxed); }
    size_t used() const { return used_.load(std::memory_order_relaxed); }

private:
    const size_t limit_;
    std::atomic<size_t> used_ = 0;
};

// What one holder has taken of a budget; gives it back when it goes. Not thread-safe by itself.
class MemoryShare {
public:
    MemoryShare() = default;
    explicit MemoryShare(std::shared_ptr<MemoryBudget> budget)
        : budget_(std::move(budget)) {}
    ~MemoryShare() { reset(); }
    MemoryShare(MemoryShare && other) noexcept
        : budget_(std::move(other.budget_))
        , bytes_(std::exchange(other.bytes_, 0)) {}
    MemoryShare & operator=(MemoryShare && other) noexcept {
        if (this != &other) {
            reset();
            budget_ = std::move(other.budget_);
            bytes_ = std::exchange(other.bytes_, 0);
        }
        return *this;
    }

    // Takes so much more that the share is `bytes`; false, and unchanged, when the budget has no room.
    bool grow_to(size_t bytes) {
        if (bytes <= bytes_) return true;
        if (!budget_->take(bytes - bytes_)) return false;
        bytes_ = bytes;
        return true;
    }
    void reset() {
        if (bytes_ > 0) budget_->give_back(std::exchange(bytes_, 0));
    }
    size_t bytes() const { return bytes_; }

private:
    std::shared_ptr<MemoryBudget> budget_;
    size_t bytes_ = 0;
};

} // namespace strata::gateway
