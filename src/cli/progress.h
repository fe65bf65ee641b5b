#pragma once

#include "base/clock.h"
#include "cli/output.h"

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>

namespace strata::cli {

// How fast an operation goes: over the last seconds, so that the estimate follows a change of speed but doesn't jump.
class RateMeter {
public:
    using Time = std::chrono::steady_clock::time_point;

    void add(Time now, uint64_t done);
    // Units per second; none before there is something to measure.
    std::optional<double> per_second() const;

private:
    static constexpr std::chrono::seconds kWindow{5};
    std::deque<std::pair<Time, uint64_t>> samples_;
};

// What a bar shows at one moment.
struct ProgressView {
    std::string label; // "importing smollm2"
    uint64_t done = 0;
    uint64_t total = 0;         // 0: not known
    bool bytes = true;          // else only the fraction is shown, no sizes and no rate
    std::optional<double> rate; // units per second
    size_t frame = 0;           // of the animation while the total is not known
};

// One line of at most `columns` columns: label, bar, percent, sizes, rate, time left; what has no room is left out.
std::string render_progress(const ProgressView & view, size_t columns, const Output & output);

// Shows how a long operation goes, on stderr: on a terminal as a bar, drawn at most ten times a second and only once
// the operation takes longer than a moment; elsewhere as a plain line every few seconds. Shows nothing in JSON mode.
// The bar is gone when the object is. Used by one thread.
class Progress {
public:
    explicit Progress(const Output & output, const Clock & clock = Clock::real());
    ~Progress();
    Progress(const Progress &) = delete;
    Progress & operator=(const Progress &) = delete;

    // A label other than the last one begins a new measurement.
    void update(std::string_view label, uint64_t done, uint64_t total, bool bytes = true);
    // Removes the bar, so that other text can be written; the next update draws it again.
    void clear();

private:
    void draw(RateMeter::Time now);
    void print_plain(RateMeter::Time now);

    const Output & output_;
    const Clock & clock_;
    const RateMeter::Time started_;
    ProgressView view_;
    RateMeter rate_;
    std::optional<RateMeter::Time> last_shown_;
    bool drawn_ = false;
};

} // namespace strata::cli
