#include "executor/executor_testing.h"
#include "executor/session.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

namespace strata::executor {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using wire::Command;

constexpr uint64_t kBase = 0x10000;
constexpr uint32_t kCount = 64;

// A clock on which each look takes `step` more.
class SteppingRuntime : public Runtime, private Clock {
public:
    explicit SteppingRuntime(Runtime & runtime)
        : runtime_(runtime) {}

    std::chrono::nanoseconds step{};

    const Clock & clock() const override { return *this; }
    void random_bytes(std::span<uint8_t> out) override { runtime_.random_bytes(out); }
    std::unique_ptr<Worker> start(Work work) override { return runtime_.start(std::move(work)); }
    bool wait_for(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
                  std::chrono::nanoseconds timeout, absl::FunctionRef<bool()> done) override {
        return runtime_.wait_for(lock, changed, timeout, done);
    }
    void wait(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
              absl::FunctionRef<bool()> done) override {
        runtime_.wait(lock, changed, done);
    }

private:
    std::chrono::steady_clock::time_point now() const override { return now_ += step; }
    std::chrono::system_clock::time_point wall() const override { return runtime_.clock().wall(); }

    Runtime & runtime_;
    mutable std::chrono::steady_clock::time_point now_{};
};

// A driver, and what it was answered.
class Driver : public TestWire {
public:
    absl::Status on_frame(const wire::Frame & frame) override {
        if (frame.header.type != wire::FrameType::kResult) return absl::OkStatus();
        auto body = frame.body();
        EXPECT_TRUE(wire::decode_result(body).ok());
        float value = 0;
        std::memcpy(&value, body.data(), sizeof value);
        results.push_back(value);
        return absl::OkStatus();
    }
    std::vector<float> results;
};

class SessionTest : public testing::Test {
protected:
    void SetUp() override {
        auto device =
            std::make_unique<Device>(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), 1, device_runtime_);
        device_ = device.get();
        ExecutorOptions options = test_options(simulation_);
        options.first_turn_operations = 1; // each node is a piece
        executor_ = start_executor(machine_, std::move(device), options);
    }

    std::shared_ptr<Driver> connect(uint8_t token) {
        auto driver = std::make_shared<Driver>();
        driver->open(network_.add(fmt::format("driver {}", token)), driver);
        driver->greet(wire::Role::kDriver, token);
        driver->send(std::vector<Command>{wire::NewBuffer{1, {kBase, 1 << 20}}});
        return driver;
    }
    // What is on its way arrives.
    void settle() {
        while (simulation_.run_one()) {
        }
    }
    bool work_once() {
        const bool worked = device_->work_once();
        settle();
        return worked;
    }

    // Doubles what is at kBase so many times.
    static std::vector<uint8_t> doubling(int times) {
        wire::Graph graph;
        graph.tensors.push_back(floats());
        for (int i = 0; i < times; ++i) {
            graph.tensors.push_back(floats());
            graph.tensors.back().op = GGML_OP_ADD;
            const auto before = static_cast<uint32_t>(i);
            graph.tensors.back().sources = {before, before};
        }
        return graph.encode();
    }
    static wire::GraphTensor floats() {
        return {GGML_TYPE_F32, 0, 0, {kCount, 1, 1, 1}, {4, 4 * kCount, 4 * kCount, 4 * kCount}, kBase, {}, {}};
    }
    static void send_doubling(Driver & driver, int times) {
        std::array<float, kCount> ones;
        ones.fill(1);
        const auto encoded = doubling(times);
        const auto hash = wire::Graph::hash(encoded);
        driver.send(std::vector<Command>{
            wire::SetBytes{kBase, std::span(reinterpret_cast<const uint8_t *>(ones.data()), sizeof ones)},
            wire::DefineGraph{hash, encoded}, wire::Compute{hash}, wire::Read{1, {{kBase, sizeof ones}}}});
    }

    wire::Simulation simulation_{1};
    SteppingRuntime device_runtime_{simulation_};
    wire::SimulatedNetwork network_{simulation_};
    wire::SimulatedNetwork::Machine & machine_ = network_.add("executor");
    Device * device_ = nullptr;
    std::shared_ptr<Executor> executor_;
};

TEST_F(SessionTest, a_long_graph_runs_in_pieces_and_lets_others_go_first) {
    const auto patient = connect(1), quick = connect(2);
    settle();
    while (work_once()) {
    }
    device_runtime_.step = kTurn * 3 / 4; // neither short nor long
    send_doubling(*patient, 20);
    settle();
    for (int i = 0; i < 5; ++i) EXPECT_TRUE(work_once());
    send_doubling(*quick, 1);
    settle();
    while (quick->results.empty() && work_once()) {
    }
    EXPECT_THAT(quick->results, ElementsAre(2));
    EXPECT_THAT(patient->results, ElementsAre());
    while (work_once()) {
    }
    EXPECT_THAT(patient->results, ElementsAre(1 << 20));
}

TEST_F(SessionTest, pieces_grow_when_they_are_short) {
    const auto driver = connect(1);
    send_doubling(*driver, 20);
    settle();
    int pieces = 0;
    while (work_once()) ++pieces;
    EXPECT_THAT(driver->results, ElementsAre(1 << 20));
    EXPECT_LT(pieces, 18);
}

TEST_F(SessionTest, a_graph_that_takes_too_long_ends_its_session_alone) {
    const auto endless = connect(1), other = connect(2);
    send_doubling(*endless, 20);
    device_runtime_.step = std::chrono::minutes(2);
    settle();
    while (work_once()) {
    }
    EXPECT_THAT(endless->closed().message(), HasSubstr("a graph that is not done after 30 minutes"));
    device_runtime_.step = {};
    send_doubling(*other, 3);
    settle();
    while (work_once()) {
    }
    EXPECT_THAT(other->results, ElementsAre(8));
}

TEST_F(SessionTest, a_node_that_would_take_for_ever_is_refused) {
    const auto driver = connect(1);
    constexpr uint64_t kBegin = 1ULL << 42, kSide = 1 << 17, kDepth = 1 << 16;
    driver->send(std::vector<Command>{wire::NewBuffer{2, {kBegin, 1ULL << 40}}});
    const auto matrix = [](uint32_t op, uint32_t columns, std::vector<uint32_t> sources) {
        const uint64_t row = uint64_t{4} * columns;
        return wire::GraphTensor{
            GGML_TYPE_F32, static_cast<uint16_t>(op), 0, {columns, kSide, 1, 1}, {4, row, row * kSide, row * kSide},
            kBegin,        std::move(sources),        {}};
    };
    const wire::Graph graph{{matrix(0, kDepth, {}), matrix(GGML_OP_MUL_MAT, kSide, {0, 0})}};
    const auto encoded = graph.encode();
    const auto hash = wire::Graph::hash(encoded);
    driver->send(std::vector<Command>{wire::DefineGraph{hash, encoded}, wire::Compute{hash}});
    settle();
    while (work_once()) {
    }
    EXPECT_THAT(driver->closed().message(), HasSubstr("MUL_MAT: 1.1e+15 operations, more than the limit of 1e+14"));
}

TEST_F(SessionTest, a_driver_that_sends_on_while_it_waits_is_refused) {
    const auto driver = connect(1), other = connect(2);
    driver->send(std::vector<Command>{wire::Expect{1, {{kBase, 1}}}}); // that nobody pushes
    const std::vector<Command> nothing(size_t{1} << 16, wire::ForgetGraphs());
    for (size_t sent = 0; sent <= kMaxInboxCommands; sent += nothing.size()) driver->send(nothing);
    settle();
    EXPECT_THAT(driver->closed().message(), HasSubstr("the driver is too far ahead of this executor"));
    EXPECT_EQ(executor_->status().sessions.size(), 1U);
}

// What comes after it, from peers for example, wakes a session up that has failed in the middle of a frame.
TEST_F(SessionTest, nothing_is_done_after_an_error) {
    const auto driver = connect(1);
    driver->send(std::vector<Command>{wire::ForgetGraphs(), wire::FreeBuffer{7}, wire::Read{1, {{kBase, 4}}}});
    driver->send(wire::FrameType::kSkip, wire::encode(wire::Skip{1}));
    while (simulation_.run_one()) device_->work_once();
    EXPECT_THAT(driver->closed().message(), HasSubstr("there is no buffer 7"));
    EXPECT_THAT(driver->results, ElementsAre());
    EXPECT_TRUE(executor_->status().sessions.empty());
}

} // namespace
} // namespace strata::executor
