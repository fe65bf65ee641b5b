#pragma once

#include "base/clock.h"

#include <absl/functional/function_ref.h>

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>

namespace strata {

// Time, threads, waiting and chance as dependencies: those of the operating system, or those of a simulation, in which
// everything happens on one thread, in an order that follows from a seed. Thread-safe.
class Runtime {
public:
    virtual ~Runtime() = default;

    virtual const Clock & clock() const = 0;
    // Bytes that nobody can guess.
    virtual void random_bytes(std::span<uint8_t> out) = 0;

    // A thread. Its end waits for the work that is being done.
    class Worker {
    public:
        virtual ~Worker() = default;
        // There may be work now.
        virtual void wake() = 0;
    };
    // Work does one piece, and says in how long there will be another one.
    using Work = std::function<std::chrono::nanoseconds()>;
    static constexpr std::chrono::nanoseconds kMore{0};
    static constexpr std::chrono::nanoseconds kUntilWoken = std::chrono::hours(24 * 365);
    virtual std::unique_ptr<Worker> start(Work work) = 0;

    // Waits until done(), which is called with the lock held; whoever makes it true notifies `changed`. False: the time
    // was over before.
    virtual bool wait_for(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
                          std::chrono::nanoseconds timeout, absl::FunctionRef<bool()> done) = 0;
    virtual void wait(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
                      absl::FunctionRef<bool()> done) = 0;

    static Runtime & real();
};

} // namespace strata
