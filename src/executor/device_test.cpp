#include "executor/device.h"
#include "wire/simulation.h"

#include <gmock/gmock.h>

namespace strata::executor {
namespace {

using std::chrono::milliseconds;

class DeviceTest : public testing::Test {
protected:
    class Client : public Work {
    public:
        Client(DeviceTest & test, char name, milliseconds takes)
            : test_(test)
            , name_(name)
            , takes_(takes) {}
        Outcome work() override {
            std::mutex mutex;
            std::condition_variable never;
            std::unique_lock lock(mutex);
            test_.order += name_;
            test_.simulation.wait_for(lock, never, takes_, [] { return false; });
            if (const auto event = std::exchange(on_work, nullptr)) event();
            return Outcome::kMore;
        }
        std::function<void()> on_work;

    private:
        DeviceTest & test_;
        const char name_;
        const milliseconds takes_;
    };

    std::shared_ptr<Client> add(char name, milliseconds takes) {
        auto client = std::make_shared<Client>(*this, name, takes);
        device.add(client);
        device.ready(client.get());
        return client;
    }
    void work(int times) {
        for (int i = 0; i < times; ++i) device.work_once();
    }

    wire::Simulation simulation{1};
    Device device{ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), 1, simulation};
    std::string order;
};

TEST_F(DeviceTest, who_uses_less_has_more_turns) {
    add('a', milliseconds(30));
    add('b', milliseconds(10));
    work(9);
    EXPECT_EQ(std::ranges::count(order, 'b'), 6) << order;
}

TEST_F(DeviceTest, who_comes_later_is_not_served_before_all_others_until_it_has_caught_up) {
    const auto a = add('a', milliseconds(10));
    work(100);
    order.clear();
    std::shared_ptr<Client> b;
    a->on_work = [&] { // while nobody else waits
        b = add('b', milliseconds(10));
    };
    work(10);
    EXPECT_LE(std::ranges::count(order, 'b'), 6) << order;
    EXPECT_GE(std::ranges::count(order, 'b'), 4) << order;
}

TEST_F(DeviceTest, who_was_idle_has_not_saved_up_time) {
    const auto a = add('a', milliseconds(10));
    const auto b = std::make_shared<Client>(*this, 'b', milliseconds(10));
    device.add(b);
    work(100);
    order.clear();
    a->on_work = [&] { device.ready(b.get()); };
    work(10);
    EXPECT_LE(std::ranges::count(order, 'b'), 6) << order;
    EXPECT_GE(std::ranges::count(order, 'b'), 4) << order;
}

} // namespace
} // namespace strata::executor
