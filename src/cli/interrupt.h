#pragma once

#include <functional>

namespace strata::cli {

// Ctrl-C. A thread of its own waits for SIGINT, so that what happens then may do anything: cancel a call, take a lock.
// Where nothing handles it, the program ends with exit status 130.
//
// Call once, before any other thread starts (they inherit that SIGINT is blocked).
void start_interrupt_thread();

// Undoes the blocking in the calling thread; before exec, whose program would inherit it.
void unblock_interrupts();

// While it lives, the first Ctrl-C calls `handler` (on another thread, once); a second one ends the program. Scopes
// nest; the innermost one counts. The handler is not running any more when the destructor returns.
class InterruptScope {
public:
    explicit InterruptScope(std::function<void()> handler);
    ~InterruptScope();
    InterruptScope(const InterruptScope &) = delete;
    InterruptScope & operator=(const InterruptScope &) = delete;

    bool interrupted() const;

private:
    friend void start_interrupt_thread();
    std::function<void()> handler_;
    InterruptScope * outer_;
    bool interrupted_ = false;
};

constexpr int kInterruptedExitCode = 130;

} // namespace strata::cli
