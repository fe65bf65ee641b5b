#pragma once

#include <chrono>
#include <csignal>

namespace strata::engine {

// Waits for SIGTERM or SIGINT on this thread; the threads that come after don't get them.
class StopSignals {
public:
    StopSignals() {
        ::sigemptyset(&set_);
        ::sigaddset(&set_, SIGTERM);
        ::sigaddset(&set_, SIGINT);
        ::pthread_sigmask(SIG_BLOCK, &set_, nullptr);
        ::signal(SIGPIPE, SIG_IGN);
    }
    // The signal that came, or 0.
    int wait(std::chrono::milliseconds timeout) const {
        const timespec time = {timeout.count() / 1000, timeout.count() % 1000 * 1000000};
        const int signal = ::sigtimedwait(&set_, nullptr, &time);
        return signal > 0 ? signal : 0;
    }

private:
    sigset_t set_;
};

} // namespace strata::engine
