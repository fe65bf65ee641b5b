#include "wire/simulation.h"

#include "base/check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace strata::wire {

using std::chrono::nanoseconds;
using TimePoint = std::chrono::steady_clock::time_point;

namespace {

constexpr nanoseconds kMostToWakeUp = std::chrono::microseconds(200);
constexpr nanoseconds kMostPerPiece = std::chrono::microseconds(500); // of work
// What happens while a thread is interrupted.
constexpr uint64_t kMostAtOnce = 20;
constexpr nanoseconds kMostTaken = std::chrono::milliseconds(10);

// FNV-1a.
uint64_t mix(uint64_t hash, std::string_view bytes) {
    for (const char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
    return hash;
}

} // namespace

class Simulation::SimulatedWorker : public Runtime::Worker {
public:
    SimulatedWorker(Simulation & simulation, Work work)
        : state_(std::make_shared<State>(simulation, std::move(work))) {}
    ~SimulatedWorker() override { state_->ended = true; }
    void wake() override {
        if (state_->working)
            state_->awake = true;
        else if (!std::exchange(state_->soon, true))
            State::plan(state_, state_->simulation.up_to(kMostToWakeUp));
    }

private:
    struct State {
        State(Simulation & its_simulation, Work its_work)
            : simulation(its_simulation)
            , work(std::move(its_work)) {}

        static void plan(const std::shared_ptr<State> & state, nanoseconds delay) {
            state->simulation.after(delay, "work", [state, number = ++state->plans] {
                if (number == state->plans && !state->ended) run(state); // or it was planned anew
            });
        }
        static void run(const std::shared_ptr<State> & state) {
            state->working = true;
            state->awake = false;
            const nanoseconds next = state->work();
            state->working = false;
            state->soon = next == kMore || state->awake;
            if (state->soon)
                plan(state, state->simulation.up_to(kMostPerPiece));
            else if (next != kUntilWoken)
                plan(state, next);
        }

        Simulation & simulation;
        const Work work;
        uint64_t plans = 0;
        bool soon = false; // what is planned
        bool working = false;
        bool awake = false; // while working
        bool ended = false;
    };

    const std::shared_ptr<State> state_;
};

nanoseconds Simulation::up_to(nanoseconds most) {
    return nanoseconds(random(static_cast<uint64_t>(most.count()) + 1));
}

void Simulation::after(nanoseconds delay, std::string_view what, std::function<void()> event) {
    events_.emplace(now_ + delay, Event{std::string(what), std::move(event)});
}

bool Simulation::run_one_until(TimePoint end) {
    if (events_.empty() || events_.begin()->first > end) return false;
    auto node = events_.extract(events_.begin());
    now_ = std::max(now_, node.key());
    note(node.mapped().what);
    node.mapped().run();
    return true;
}

void Simulation::note(std::string_view what) {
    const std::string line =
        fmt::format("{:12.6f} ms  {}\n", std::chrono::duration<double, std::milli>(now_.time_since_epoch()).count(),
                    std::string(what));
    history_ = mix(history_, line);
    static const bool shown = std::getenv("STRATA_SIMULATION_TRACE") != nullptr;
    if (shown) std::fputs(line.c_str(), stderr);
}

// Looking at a clock takes time, so that what is measured is not nothing.
TimePoint Simulation::now() const {
    now_ += nanoseconds(random_() % 20000);
    return now_;
}

std::chrono::system_clock::time_point Simulation::wall() const {
    return std::chrono::system_clock::time_point(
        std::chrono::duration_cast<std::chrono::system_clock::duration>(now_.time_since_epoch()));
}

void Simulation::random_bytes(std::span<uint8_t> out) {
    for (uint8_t & byte : out) byte = static_cast<uint8_t>(random_());
}

std::unique_ptr<Runtime::Worker> Simulation::start(Work work) {
    return std::make_unique<SimulatedWorker>(*this, std::move(work));
}

// Where a thread could have been interrupted, it sometimes is.
void Simulation::others_run(std::unique_lock<std::mutex> & lock) {
    if (!chance(30)) return;
    lock.unlock();
    const TimePoint end = now_ + up_to(kMostTaken);
    uint64_t left = random(kMostAtOnce);
    while (left > 0 && run_one_until(end)) --left;
    lock.lock();
}

bool Simulation::wait_until(std::unique_lock<std::mutex> & lock, TimePoint end, absl::FunctionRef<bool()> done) {
    others_run(lock);
    while (!done()) {
        lock.unlock();
        const bool ran = run_one_until(end);
        lock.lock();
        if (ran) continue;
        if (end == TimePoint::max()) {
            std::fprintf(stderr, "seed %lu: a thread waits for what never happens\n", seed_);
            std::abort();
        }
        now_ = std::max(now_, end);
        return done();
    }
    return true;
}

bool Simulation::wait_for(std::unique_lock<std::mutex> & lock, std::condition_variable &, nanoseconds timeout,
                          absl::FunctionRef<bool()> done) {
    return wait_until(lock, now_ + timeout, done);
}

void Simulation::wait(std::unique_lock<std::mutex> & lock, std::condition_variable &, absl::FunctionRef<bool()> done) {
    wait_until(lock, TimePoint::max(), done);
}

} // namespace strata::wire
