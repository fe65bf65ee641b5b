#include "base/clock.h"

namespace strata {

namespace {

class RealClock final : public Clock {
public:
    std::chrono::steady_clock::time_point now() const override { return std::chrono::steady_clock::now(); }
    std::chrono::system_clock::time_point wall() const override { return std::chrono::system_clock::now(); }
};

} // namespace

const Clock & Clock::real() {
    static const RealClock clock;
    return clock;
}

} // namespace strata
