#include "engine/request_queue.h"

#include <gtest/gtest.h>

#include <future>

namespace strata::engine {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Outcome {
    int status = 0; // 0: no head
    std::string data;
    double queue_ms = 0;
};

class PromiseSink : public AnswerSink {
public:
    explicit PromiseSink(std::promise<Outcome> promise)
        : promise_(std::move(promise)) {}
    void on_head(int status, std::string_view) override { outcome_.status = status; }
    void on_data(std::string_view data) override { outcome_.data += data; }
    void on_end(int32_t, int32_t, double queue_ms) override {
        outcome_.queue_ms = queue_ms;
        promise_.set_value(outcome_);
    }

private:
    std::promise<Outcome> promise_;
    Outcome outcome_;
};

// A queue whose work waits until the test lets it go on.
class RequestQueueTest : public testing::Test {
protected:
    std::unique_ptr<RequestQueue> make(int32_t slots, size_t max_waiting = 100, size_t max_bytes = 1 << 20) {
        QueueOptions options;
        options.slots = slots;
        options.short_workers = 1;
        options.max_waiting = max_waiting;
        options.max_waiting_bytes = max_bytes;
        return std::make_unique<RequestQueue>(
            options,
            [this](Request & request, RequestQueue::Admission & admission) {
                const int32_t width = request.path.empty() ? 1 : std::stoi(request.path);
                if (!admission.enter(width)) return RequestQueue::Tokens{};
                std::unique_lock lock(mutex_);
                started_.push_back(request.body);
                running_width_ += width;
                widest_ = std::max(widest_, running_width_);
                changed_.notify_all();
                while (!changed_.wait_for(lock, milliseconds(1), [&] { return open_ || request.stopped(); })) {
                }
                running_width_ -= width;
                request.sink->on_head(200, "text/plain");
                return RequestQueue::Tokens{};
            },
            [](Request & request, int status, std::string_view message) {
                request.sink->on_head(status, "text/plain");
                request.sink->on_data(message);
            });
    }

    struct Started {
        std::shared_ptr<Request> request;
        std::future<Outcome> outcome;
        Outcome get() {
            if (outcome.wait_for(seconds(20)) != std::future_status::ready) return {-1, "no answer in time", 0};
            return outcome.get();
        }
    };
    static Started start(RequestQueue & queue, std::string body, int32_t width = 1, int64_t deadline_ms = 0,
                         Need need = Need::kSlot) {
        std::promise<Outcome> promise;
        Started started;
        started.outcome = promise.get_future();
        started.request = std::make_shared<Request>();
        started.request->path = std::to_string(width);
        started.request->body = std::move(body);
        started.request->need = need;
        started.request->sink = std::make_unique<PromiseSink>(std::move(promise));
        queue.submit(started.request, deadline_ms);
        return started;
    }

    void wait_started(size_t count) {
        std::unique_lock lock(mutex_);
        ASSERT_TRUE(changed_.wait_for(lock, seconds(20), [&] { return started_.size() >= count; }));
    }
    void open() {
        const std::lock_guard lock(mutex_);
        open_ = true;
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<std::string> started_;
    int32_t running_width_ = 0;
    int32_t widest_ = 0;
    bool open_ = false;
};

TEST_F(RequestQueueTest, runs_in_order_and_one_more_than_slots) {
    const auto queue = make(2);
    std::vector<Started> all;
    for (int i = 0; i < 10; ++i) all.push_back(start(*queue, std::to_string(i)));
    wait_started(3);
    EXPECT_EQ(queue->counts().active, 3);
    EXPECT_EQ(queue->counts().waiting, 7);
    open();
    for (Started & one : all) EXPECT_EQ(one.get().status, 200);
    EXPECT_EQ(std::set<std::string>(started_.begin(), started_.begin() + 3), (std::set<std::string>{"0", "1", "2"}));
    EXPECT_EQ(widest_, 3);
    EXPECT_EQ(queue->counts().total, 10);
}

TEST_F(RequestQueueTest, refuses_beyond_the_count_and_the_bytes) {
    const auto queue = make(1, 2, 10000);
    std::vector<Started> running;
    for (int i = 0; i < 2; ++i) running.push_back(start(*queue, "running"));
    wait_started(2);
    auto large = start(*queue, std::string(20000, 'x'));
    EXPECT_EQ(large.get().status, 429);
    auto first = start(*queue, "waits");
    auto second = start(*queue, "waits");
    auto third = start(*queue, "too many");
    const Outcome refused = third.get();
    EXPECT_EQ(refused.status, 429);
    EXPECT_NE(refused.data.find("2 requests are waiting"), std::string::npos) << refused.data;
    open();
    EXPECT_EQ(first.get().status, 200);
    EXPECT_EQ(second.get().status, 200);
    for (Started & one : running) EXPECT_EQ(one.get().status, 200);
}

TEST_F(RequestQueueTest, a_deadline_ends_the_waiting) {
    const auto queue = make(1);
    std::vector<Started> running;
    for (int i = 0; i < 2; ++i) running.push_back(start(*queue, "running"));
    wait_started(2);
    auto patient = start(*queue, "patient", 1, 60000);
    auto absurd = start(*queue, "absurd", 1, INT64_MAX);
    auto late = start(*queue, "late", 1, 30);
    const Outcome outcome = late.get();
    EXPECT_EQ(outcome.status, 503);
    EXPECT_GE(outcome.queue_ms, 30);
    open();
    EXPECT_EQ(patient.get().status, 200);
    EXPECT_EQ(absurd.get().status, 200);
}

TEST_F(RequestQueueTest, cancels_waiting_and_running_ones) {
    const auto queue = make(1);
    auto running = start(*queue, "running");
    auto prepared = start(*queue, "prepared");
    wait_started(2);
    auto waiting = start(*queue, "waiting");
    queue->cancel(waiting.request);
    queue->cancel(waiting.request);
    EXPECT_EQ(waiting.get().status, 0); // no head, only the end
    EXPECT_EQ(queue->counts().waiting, 0);
    queue->cancel(running.request);
    EXPECT_EQ(running.get().status, 200);
    open();
    EXPECT_EQ(prepared.get().status, 200);
    queue->cancel(prepared.request); // after the end
    EXPECT_TRUE(queue->wait_idle(seconds(10)));
}

TEST_F(RequestQueueTest, a_wide_request_keeps_its_turn) {
    const auto queue = make(2);
    auto narrow = start(*queue, "narrow");
    wait_started(1);
    auto wide = start(*queue, "wide", 2);
    auto behind = start(*queue, "behind");
    while (queue->counts().active < 2) std::this_thread::sleep_for(milliseconds(1)); // the wide one is at the gate
    std::this_thread::sleep_for(milliseconds(50));
    EXPECT_EQ(queue->counts().waiting, 1) << "the one behind would fit, and has its worker, but it is not its turn";
    {
        const std::lock_guard lock(mutex_);
        EXPECT_EQ(started_.size(), 1u) << "the wide one needs both slots";
    }
    queue->cancel(narrow.request);
    wait_started(3); // in which order they say so is the scheduler's: one may be prepared while both slots are busy
    open();
    EXPECT_EQ(narrow.get().status, 200);
    EXPECT_EQ(wide.get().status, 200);
    EXPECT_EQ(behind.get().status, 200);
}

TEST_F(RequestQueueTest, a_wide_request_can_be_cancelled_at_the_gate) {
    const auto queue = make(2);
    auto narrow = start(*queue, "narrow");
    wait_started(1);
    auto wide = start(*queue, "wide", 2);
    auto behind = start(*queue, "behind");
    while (queue->counts().active < 2) std::this_thread::sleep_for(milliseconds(1));
    queue->cancel(wide.request);
    EXPECT_EQ(wide.get().status, 0);
    wait_started(2);
    EXPECT_EQ(started_[1], "behind");
    open();
    EXPECT_EQ(narrow.get().status, 200);
    EXPECT_EQ(behind.get().status, 200);
}

TEST_F(RequestQueueTest, short_ones_pass_busy_slots) {
    const auto queue = make(1);
    std::vector<Started> running;
    for (int i = 0; i < 3; ++i) running.push_back(start(*queue, "running"));
    wait_started(2);
    auto quick = start(*queue, "quick", 1, 0, Need::kShort);
    wait_started(3);
    EXPECT_EQ(started_[2], "quick");
    open();
    EXPECT_EQ(quick.get().status, 200);
    for (Started & one : running) EXPECT_EQ(one.get().status, 200);
}

TEST_F(RequestQueueTest, closing_refuses_and_drains) {
    const auto queue = make(1);
    auto running = start(*queue, "running");
    auto prepared = start(*queue, "prepared");
    auto waiting = start(*queue, "waiting");
    wait_started(2);
    queue->close();
    EXPECT_EQ(start(*queue, "late").get().status, 503);
    EXPECT_FALSE(queue->wait_idle(milliseconds(20)));
    open();
    EXPECT_TRUE(queue->wait_idle(seconds(20)));
    EXPECT_EQ(waiting.get().status, 200) << "what was taken before is answered";
    EXPECT_EQ(running.get().status, 200);
    EXPECT_EQ(prepared.get().status, 200);
}

TEST_F(RequestQueueTest, stopping_answers_everything) {
    auto queue = make(2);
    std::vector<Started> all;
    for (int i = 0; i < 50; ++i) all.push_back(start(*queue, std::to_string(i), 1 + i % 2, i % 3 == 0 ? 100000 : 0));
    wait_started(1);
    queue.reset();
    for (Started & one : all) {
        const int status = one.get().status;
        EXPECT_TRUE(status == 200 || status == 503 || status == 0) << status;
    }
}

TEST_F(RequestQueueTest, many_threads_submit_and_cancel) {
    open();
    auto queue = make(3, 10000);
    std::vector<std::thread> threads;
    std::atomic<int> answered = 0;
    for (int t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 300; ++i) {
                auto one = start(*queue, "x", 1 + (i + t) % 4, i % 5 == 0 ? 1 : 0);
                if (i % 3 == 0) queue->cancel(one.request);
                if (one.get().status >= 0) ++answered;
            }
        });
    }
    for (std::thread & thread : threads) thread.join();
    EXPECT_EQ(answered, 1200);
    EXPECT_TRUE(queue->wait_idle(seconds(10)));
    EXPECT_EQ(queue->counts().active, 0);
    EXPECT_EQ(queue->counts().waiting, 0);
}

} // namespace
} // namespace strata::engine
