#pragma once

#include <chrono>

namespace strata {

// Time as a dependency, so that tests decide what it is. Implementations are thread-safe.
class Clock {
public:
    virtual ~Clock() = default;
    // For intervals and deadlines; never goes back.
    virtual std::chrono::steady_clock::time_point now() const = 0;
    // For what is shown or stored.
    virtual std::chrono::system_clock::time_point wall() const = 0;

    static const Clock & real();
};

inline int64_t unix_ms(std::chrono::system_clock::time_point time) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
}

} // namespace strata
