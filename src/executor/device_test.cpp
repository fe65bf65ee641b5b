#include "executor/device.h"
#include "executor/limits.h"
#include "wire/simulation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace strata::executor {
namespace {

using std::chrono::milliseconds;

class DeviceTest : public testing::Test {
protected:
    // Has `left` pieces of work, each of which takes a time; writes its name for each.
    class Pieces : public Work {
    public:
        Pieces(DeviceTest & test, char name, int left, milliseconds each, bool background = false)
            : test_(test)
            , name_(name)
            , left_(left)
            , each_(each)
            , background_(background) {}
        Outcome work() override {
            test_.order_ += name_;
            test_.simulation_.after(each_, "a piece", [] {});
            test_.simulation_.run_one();
            if (const auto event = std::exchange(on_work, nullptr)) event();
            return --left_ > 0 ? Outcome::kMore : Outcome::kWaits;
        }
        bool background() const override { return background_; }
        std::function<void()> on_work;

    private:
        DeviceTest & test_;
        const char name_;
        int left_;
        const milliseconds each_;
        const bool background_;
    };

    std::shared_ptr<Pieces> add(char name, int left, milliseconds each, bool background = false) {
        auto work = std::make_shared<Pieces>(*this, name, left, each, background);
        device_.add(work);
        device_.ready(work.get());
        return work;
    }
    // So many pieces, from now on.
    std::string work(int times) {
        order_.clear();
        for (int i = 0; i < times; ++i) device_.work_once();
        return std::exchange(order_, "");
    }
    std::string run() {
        while (device_.work_once()) {
        }
        return std::exchange(order_, "");
    }

    wire::Simulation simulation_{1};
    Device device_{ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), 1, simulation_};
    std::string order_;
};

TEST_F(DeviceTest, WhoUsedLeastGoesFirst) {
    add('a', 2, milliseconds(30));
    add('b', 6, milliseconds(10));
    EXPECT_EQ(run(), "abbbabbb");
}

TEST_F(DeviceTest, WhoComesLaterIsNotServedBeforeAllOthersUntilItHasCaughtUp) {
    const auto a = add('a', 1000, milliseconds(10));
    work(100);
    a->on_work = [&] { add('b', 1000, milliseconds(10)); }; // while nobody else waits
    const std::string order = work(10);
    EXPECT_LE(std::ranges::count(order, 'b'), 6) << order;
    EXPECT_GE(std::ranges::count(order, 'b'), 4) << order;
}

TEST_F(DeviceTest, WhoWasIdleHasNotSavedUpTime) {
    const auto a = add('a', 1000, milliseconds(10));
    const auto b = std::make_shared<Pieces>(*this, 'b', 1000, milliseconds(10));
    device_.add(b);
    work(100);
    a->on_work = [&] { device_.ready(b.get()); };
    const std::string order = work(10);
    EXPECT_LE(std::ranges::count(order, 'b'), 6) << order;
    EXPECT_GE(std::ranges::count(order, 'b'), 4) << order;
}

TEST_F(DeviceTest, BackgroundWorkUsesWhatDriversLeave) {
    add('j', 3, milliseconds(2), true);
    EXPECT_EQ(run(), "jjj");
    add('j', 3, milliseconds(2), true);
    add('k', 3, milliseconds(2), true);
    add('d', 4, milliseconds(10));
    const std::string order = run();
    EXPECT_EQ(order.substr(0, 4), "dddd");
    EXPECT_EQ(order.size(), 10);
}

TEST_F(DeviceTest, BackgroundWorkIsNotForgotten) {
    add('j', 3, milliseconds(2), true);
    run();
    add('j', 3, milliseconds(2), true);
    add('d', 50, milliseconds(20));
    const std::string order = run();
    // A piece for each kMaxBackgroundWait, which five pieces of the driver take.
    EXPECT_EQ(order.substr(0, 18), "dddddjdddddjdddddj");
    EXPECT_EQ(std::ranges::count(order, 'j'), 3);
}

// Who comes back does not wait for a job to make up for what it used meanwhile, and takes nothing from other drivers.
TEST_F(DeviceTest, TimeOfBackgroundWorkIsNoDrivers) {
    const auto driver = add('d', 3, milliseconds(10));
    run();
    add('j', 100, milliseconds(2), true);
    for (int i = 0; i < 50; ++i) device_.work_once();
    add('e', 2, milliseconds(10));
    device_.ready(driver.get());
    EXPECT_EQ(run().substr(50, 3), "ede");
}

} // namespace
} // namespace strata::executor
