// Many streams at once: none is lost, and no thread belongs to one.

#include "gateway/test_support.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace strata::gateway::testing {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr int kStreams = 1000;
constexpr int kEvents = 30;
constexpr auto kInterval = 50ms;

size_t threads() {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

int64_t now_us() {
    return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch()).count();
}

TEST(Streams, AThousandAtOnceCostNoThreads) {
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < 2 * kStreams + 100) GTEST_SKIP() << "too few open files are allowed";

    Fixture fixture;
    fixture.start();
    const size_t threads_before = threads();
    std::vector<Client> clients;
    std::vector<Served> served;
    for (int i = 0; i < kStreams; ++i) {
        clients.push_back(fixture.client());
        ASSERT_TRUE(clients.back().send(post("/v1/completions", R"({"model":"m","stream":true})")));
    }
    for (int i = 0; i < kStreams; ++i) {
        auto one = fixture.backend.next();
        ASSERT_TRUE(one);
        one->sink->on_head(200, "text/event-stream");
        served.push_back(*std::move(one));
    }
    EXPECT_EQ(threads(), threads_before);

    // Each event carries the time at which it was handed to the gateway.
    std::thread engine([&] {
        auto next = Clock::now();
        for (int event = 0; event < kEvents; ++event) {
            for (auto & one : served) one.sink->on_data(fmt::format("data: {}\n\n", now_us()));
            next += kInterval;
            std::this_thread::sleep_until(next);
        }
        for (auto & one : served) one.sink->on_end(1, kEvents);
    });

    const int poller = ::epoll_create1(EPOLL_CLOEXEC);
    for (size_t i = 0; i < clients.size(); ++i) {
        epoll_event event{EPOLLIN, {.u64 = i}};
        ::epoll_ctl(poller, EPOLL_CTL_ADD, clients[i].fd(), &event);
    }
    std::vector<std::string> received(clients.size());
    std::vector<int64_t> late_us;
    size_t ended = 0;
    const auto deadline = Clock::now() + 200s;
    while (ended < clients.size() && Clock::now() < deadline) {
        epoll_event events[64];
        const int count = ::epoll_wait(poller, events, 64, 1000);
        for (int e = 0; e < count; ++e) {
            const size_t i = events[e].data.u64;
            char bytes[4096];
            const ssize_t got = ::recv(clients[i].fd(), bytes, sizeof(bytes), MSG_DONTWAIT);
            if (got <= 0) {
                ADD_FAILURE() << "stream " << i << " broke off";
                ended = clients.size();
                break;
            }
            const int64_t now = now_us();
            std::string & text = received[i];
            const size_t from = text.size();
            text.append(bytes, static_cast<size_t>(got));
            for (size_t at = text.find("data: ", from); at != std::string::npos; at = text.find("data: ", at + 1)) {
                late_us.push_back(now - std::stoll(text.substr(at + 6, 20)));
            }
            if (text.ends_with("\r\n0\r\n\r\n") || text.ends_with("\n0\r\n\r\n")) {
                ++ended;
                ::epoll_ctl(poller, EPOLL_CTL_DEL, clients[i].fd(), nullptr);
            }
        }
    }
    engine.join();
    ::close(poller);
    EXPECT_EQ(late_us.size(), size_t{kStreams} * kEvents);
    // A thread that was joined may be listed for a moment more.
    EXPECT_TRUE(eventually([&] { return threads() == threads_before; })) << threads();
    std::sort(late_us.begin(), late_us.end());
    if (!late_us.empty()) {
        fmt::print("{} events: late by {} us in the median, {} us at p99, {} us at most\n", late_us.size(),
                   late_us[late_us.size() / 2], late_us[late_us.size() * 99 / 100], late_us.back());
    }
    EXPECT_TRUE(eventually([&] { return fixture.metric("strata_http_open_streams") == 0; }));
}

} // namespace
} // namespace strata::gateway::testing
