#pragma once

#include "base/runtime.h"

#include <map>
#include <random>
#include <string>
#include <string_view>

namespace strata::wire {

// A Runtime for tests: everything happens on the thread that asks for it, one event after the other, at invented times.
// The order follows from the seed alone. Who waits lets events happen until what it waits for is true; so nobody may
// wait while holding a lock that an event needs, and where that could happen it is a test that never ends. Not
// thread-safe.
class Simulation : public Runtime, private Clock {
public:
    explicit Simulation(uint64_t seed)
        : seed_(seed)
        , random_(seed) {}

    uint64_t seed() const { return seed_; }
    // Below a bound; the same numbers for the same seed.
    uint64_t random(uint64_t below) { return below == 0 ? 0 : random_() % below; }
    bool chance(uint64_t percent) { return random(100) < percent; }
    std::chrono::nanoseconds up_to(std::chrono::nanoseconds most);

    // `what` is for people who look at a failure, and part of the history.
    void after(std::chrono::nanoseconds delay, std::string_view what, std::function<void()> event);
    // The next event; false: there is none.
    bool run_one() { return run_one_until(std::chrono::steady_clock::time_point::max()); }
    // Something that happened, beside the events.
    void note(std::string_view what);
    // What happened when: two runs of one seed have the same.
    uint64_t history() const { return history_; }

    const Clock & clock() const override { return *this; }
    void random_bytes(std::span<uint8_t> out) override;
    std::unique_ptr<Worker> start(Work work) override;
    bool wait_for(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
                  std::chrono::nanoseconds timeout, absl::FunctionRef<bool()> done) override;
    void wait(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
              absl::FunctionRef<bool()> done) override;

private:
    class SimulatedWorker;
    struct Event {
        std::string what;
        std::function<void()> run;
    };

    std::chrono::steady_clock::time_point now() const override;
    std::chrono::system_clock::time_point wall() const override;
    bool run_one_until(std::chrono::steady_clock::time_point end);
    bool wait_until(std::unique_lock<std::mutex> & lock, std::chrono::steady_clock::time_point end,
                    absl::FunctionRef<bool()> done);
    void others_run(std::unique_lock<std::mutex> & lock);

    const uint64_t seed_;
    mutable std::mt19937_64 random_;
    mutable std::chrono::steady_clock::time_point now_{};
    std::multimap<std::chrono::steady_clock::time_point, Event> events_;
    uint64_t history_ = 0;
};

} // namespace strata::wire
