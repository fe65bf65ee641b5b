#include "cli/interrupt.h"

#include "cli/terminal.h"

#include <pthread.h>
#include <unistd.h>

#include <csignal>
#include <mutex>
#include <thread>

namespace strata::cli {

namespace {

std::mutex mutex;
InterruptScope * innermost = nullptr; // guarded by mutex

sigset_t interrupt_signals() {
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    return signals;
}

} // namespace

void start_interrupt_thread() {
    const sigset_t signals = interrupt_signals();
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    std::thread([signals] {
        while (true) {
            int signal = 0;
            if (sigwait(&signals, &signal) != 0) continue;
            const std::lock_guard lock(mutex);
            if (innermost == nullptr || innermost->interrupted_) {
                // Begins a new line, so that the shell's prompt doesn't follow "^C" or half an answer.
                if (::isatty(STDERR_FILENO) == 1) [[maybe_unused]]
                    const auto ignored = ::write(STDERR_FILENO, "\n", 1);
                restore_terminal();
                ::_exit(kInterruptedExitCode);
            }
            innermost->interrupted_ = true;
            innermost->handler_();
        }
    }).detach();
}

void unblock_interrupts() {
    const sigset_t signals = interrupt_signals();
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

InterruptScope::InterruptScope(std::function<void()> handler)
    : handler_(std::move(handler)) {
    const std::lock_guard lock(mutex);
    outer_ = innermost;
    innermost = this;
}

InterruptScope::~InterruptScope() {
    const std::lock_guard lock(mutex);
    innermost = outer_;
}

bool InterruptScope::interrupted() const {
    const std::lock_guard lock(mutex);
    return interrupted_;
}

} // namespace strata::cli
