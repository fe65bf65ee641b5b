// A lane over executors in this process, on real sockets and threads. simulation_test.cpp has what depends on the order
// of events.
#include "executor/executor.h"
#include "executor/opaque_device_testing.h"
#include "mesh/backend.h"
#include "mesh/lane.h"
#include "mesh/recurrent_model_testing.h"
#include "wire/tcp.h"

#include <fmt/format.h>
#include <ggml-cpp.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

namespace strata::mesh {
namespace {

struct Machine {
    std::unique_ptr<wire::TcpNetwork> network = std::make_unique<wire::TcpNetwork>();
    std::shared_ptr<executor::Executor> executor;
    std::string address;

    explicit Machine(ggml_backend_dev_t device) {
        std::vector<std::unique_ptr<executor::Device>> devices;
        devices.push_back(std::make_unique<executor::Device>(device, 1));
        devices.back()->start();
        executor::ExecutorOptions options;
        options.build = "test";
        options.folder = testing::TempDir();
        executor = std::make_shared<executor::Executor>(*network, options, std::move(devices));
        address = *network->listen("127.0.0.1:0", executor);
    }
    uint64_t graphs() const {
        uint64_t graphs = 0;
        for (const auto & session : executor->status().sessions) graphs += session.graphs;
        return graphs;
    }
    void die() { network.reset(); }
};

using Model = RecurrentModel;
constexpr int kLayers = Model::kLayers;
using Results = std::vector<std::vector<float>>;

Results run(Model & model, int from, int to) {
    Results results;
    for (int i = from; i < to; ++i) results.push_back(model.step(i));
    return results;
}

const Results & expected() {
    return expected_steps();
}

void expect_steps(Model & model, int from, int to) {
    for (int i = from; i < to; ++i) {
        EXPECT_EQ(model.step(i), expected()[static_cast<size_t>(i)]) << "step " << i;
    }
}

// On executors' CPUs, and on devices with memory of their own.
class LaneTest : public testing::TestWithParam<const char *> {
protected:
    void add_machine() {
        ggml_backend_dev_t device = GetParam() == std::string_view("cpu")
                                        ? ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)
                                        : executor::opaque_device();
        machines_.push_back(std::make_unique<Machine>(device));
    }
    Lane & open(size_t machines, LaneOptions options = {}) {
        for (size_t i = 0; i < machines; ++i) add_machine();
        for (const auto & machine : machines_) options.executors.push_back(machine->address);
        options.build = "test";
        options.folder = testing::TempDir();
        auto lane = Lane::open(*network_, std::move(options));
        EXPECT_TRUE(lane.ok()) << lane.status();
        Lane & kept = **lane;
        device_ = add_device(*std::move(lane));
        return kept;
    }
    void expect_all_worked() {
        for (const auto & machine : machines_) EXPECT_GT(machine->graphs(), 0U) << machine->address;
    }

    // Devices, and so lanes, live as long as the process.
    wire::TcpNetwork * network_ = new wire::TcpNetwork;
    std::vector<std::unique_ptr<Machine>> machines_;
    ggml_backend_dev_t device_ = nullptr;
};

TEST_P(LaneTest, gives_the_results_of_one_machine) {
    for (const size_t machines : {1, 1, 2}) { // 1, 2 and 4 in all
        Lane & lane = open(machines);
        Model model(device_);
        EXPECT_EQ(run(model, 0, 20), Results(expected().begin(), expected().begin() + 20)) << machines_.size();
        expect_all_worked();
        lane.close();
    }
}

TEST_P(LaneTest, gives_them_with_each_node_anywhere) {
    for (const uint64_t seed : {1, 2, 3}) {
        LaneOptions options;
        options.scatter_seed = seed;
        Lane & lane = open(seed == 1 ? 3 : 0, options);
        Model model(device_);
        EXPECT_EQ(run(model, 0, 10), Results(expected().begin(), expected().begin() + 10)) << "seed " << seed;
        lane.close();
    }
    SUCCEED();
}

TEST_P(LaneTest, layers_move_between_steps) {
    Lane & lane = open(3);
    Model model(device_);
    std::mt19937 random(5);
    for (int i = 0; i < 40; ++i) {
        EXPECT_EQ(model.step(i), expected()[static_cast<size_t>(i)]) << "step " << i;
        const auto layer = static_cast<int32_t>(random() % kLayers);
        ASSERT_TRUE(lane.bind(layer, layer + static_cast<int32_t>(random() % 2), random() % 3).ok());
    }
    expect_all_worked();
    EXPECT_FALSE(lane.bind(0, 1, 3).ok());
    lane.close();
}

TEST_P(LaneTest, a_new_executor_takes_layers) {
    Lane & lane = open(1);
    Model model(device_);
    const Results first = run(model, 0, 5);
    add_machine();
    const auto number = lane.add_executor(machines_.back()->address);
    ASSERT_TRUE(number.ok()) << number.status();
    ASSERT_TRUE(lane.bind(2, 4, *number).ok());
    const Results second = run(model, 5, 10);
    EXPECT_EQ(first, Results(expected().begin(), expected().begin() + 5));
    EXPECT_EQ(second, Results(expected().begin() + 5, expected().begin() + 10));
    expect_all_worked();
    lane.close();
}

// From another thread, while steps go on.
TEST_P(LaneTest, layers_move_while_the_lane_works) {
    Lane & lane = open(2);
    Model model(device_);
    EXPECT_EQ(model.step(0), expected()[0]);
    add_machine();
    std::thread mover([&] {
        for (int i = 0; i < 12; ++i) {
            const int32_t first = i % kLayers;
            EXPECT_TRUE(lane.move(first, first + 1, machines_[static_cast<size_t>(i) % 3]->address).ok()) << i;
        }
    });
    expect_steps(model, 1, 40);
    mover.join();
    EXPECT_TRUE(lane.move(0, 0, machines_[1]->address).ok());
    EXPECT_EQ(lane.parts().front().executor, machines_[1]->address);
    EXPECT_FALSE(lane.move(kLayers, kLayers + 3, machines_[1]->address).ok()) << "it has no tail";
    EXPECT_FALSE(lane.move(0, 1, "127.0.0.1:1").ok());
    lane.close();
}

TEST_P(LaneTest, former_owners_give_their_memory_back) {
    Lane & lane = open(2);
    Model model(device_);
    expect_steps(model, 0, 5);
    const auto weights = [&](size_t i) { return machines_[i]->executor->status().sessions.at(0).weights_bytes; };
    const uint64_t all = weights(0) + weights(1);
    EXPECT_GT(weights(1), 0);
    ASSERT_TRUE(lane.move(0, kLayers - 1, machines_[0]->address).ok());
    expect_steps(model, 5, 10);
    EXPECT_EQ(weights(0), all);
    EXPECT_EQ(weights(1), 0);
    lane.close();
}

TEST_P(LaneTest, lost_layers_wait_for_their_new_place) {
    LaneOptions options;
    options.on_loss = LaneOptions::OnLoss::kWait;
    Lane & lane = open(2, options);
    Model model(device_);
    expect_steps(model, 0, 5);
    machines_[0]->die();
    machines_[1]->die(); // nobody is left
    add_machine();
    std::thread mover([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        EXPECT_TRUE(lane.move(0, 2, machines_[2]->address).ok());
        EXPECT_TRUE(lane.move(3, kLayers - 1, machines_[2]->address).ok());
    });
    expect_steps(model, 5, 20);
    mover.join();
    lane.close();
}

TEST_P(LaneTest, what_is_loaded_is_made_ready_and_not_run) {
    Lane & lane = open(2);
    lane.begin_loading();
    Model model(device_);
    model.step(0);
    for (const auto & machine : machines_) {
        EXPECT_EQ(machine->graphs(), 0U);
        EXPECT_GT(machine->executor->status().sessions.at(0).weights_bytes, 0U);
    }
    lane.end_loading();
    expect_steps(model, 0, 10);
    expect_all_worked();
    lane.close();
}

TEST_P(LaneTest, an_executor_may_be_lost_while_a_model_is_loaded) {
    LaneOptions options;
    options.on_loss = LaneOptions::OnLoss::kRebind;
    Lane & lane = open(3, options);
    lane.begin_loading();
    Model model(device_);
    machines_[1]->die();
    model.step(0);
    machines_[2]->die();
    model.step(0);
    lane.end_loading();
    expect_steps(model, 0, 10);
    EXPECT_EQ(lane.parts().size(), 1U);
    lane.close();
}

TEST_P(LaneTest, a_lost_executor_is_a_failed_graph) {
    Lane & lane = open(2);
    Model model(device_);
    EXPECT_EQ(model.step(0), expected()[0]);
    machines_.back()->die();
    model.step(1); // may not know yet
    EXPECT_TRUE(model.step(2).empty());
    EXPECT_FALSE(lane.status().ok());
    EXPECT_NE(lane.status().message().find(machines_.back()->address), std::string::npos) << lane.status();
    lane.close();
}

TEST_P(LaneTest, lost_executors_are_made_up_for) {
    LaneOptions options;
    options.on_loss = LaneOptions::OnLoss::kRebind;
    Lane & lane = open(4, options);
    Model model(device_);
    for (int i = 0; i < 40; ++i) {
        if (i == 7) machines_[2]->die();
        if (i == 20) machines_[0]->die();
        if (i == 21) machines_[3]->die();
        ASSERT_EQ(model.step(i), expected()[static_cast<size_t>(i)]) << "step " << i;
    }
    EXPECT_EQ(lane.parts().size(), 1U);
    EXPECT_EQ(lane.parts()[0].executor, machines_[1]->address);
    machines_[1]->die();
    model.step(0);
    EXPECT_TRUE(model.step(0).empty());
    lane.close();
}

TEST_P(LaneTest, what_is_done_outside_of_graphs_is_done_again_too) {
    LaneOptions options;
    options.on_loss = LaneOptions::OnLoss::kRebind;
    Lane & lane = open(2, options);
    Model local(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    Model model(device_);
    const auto disturb = [](Model & which) {
        which.step(0);
        ggml_backend_tensor_copy(which.cache(4), which.cache(1)); // from one executor's layer to the other's
        const std::vector<uint8_t> bytes(Model::kWidth, 0x21);
        ggml_backend_tensor_set(which.cache(5), bytes.data(), 8, bytes.size());
        ggml_backend_tensor_memset(which.cache(0), 0, 0, Model::kWidth);
    };
    disturb(local);
    disturb(model);
    EXPECT_EQ(model.step(1), local.step(1));
    machines_[1]->die();
    EXPECT_EQ(model.step(2), local.step(2));
    std::vector<float> state(Model::kWidth), local_state(Model::kWidth);
    ggml_backend_tensor_get(model.state(3), state.data(), 0, Model::kWidth * sizeof(float));
    ggml_backend_tensor_get(local.state(3), local_state.data(), 0, Model::kWidth * sizeof(float));
    EXPECT_EQ(state, local_state);
    lane.close();
}

using MakeNode = ggml_tensor *(ggml_context * weights, ggml_context * rest);

// What one node gives on a device, from random weights and inputs.
std::vector<float> result_on(ggml_backend_dev_t device, MakeNode * make) {
    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    const auto new_context = [] {
        return ggml_context_ptr(ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true}));
    };
    const ggml_context_ptr weights = new_context();
    const ggml_context_ptr rest = new_context();
    ggml_tensor * node = make(weights.get(), rest.get());
    std::mt19937 random(1);
    std::uniform_real_distribution<float> values(-1, 1);
    std::vector<ggml_backend_buffer_ptr> buffers;
    for (ggml_context * context : {weights.get(), rest.get()}) {
        buffers.emplace_back(ggml_backend_alloc_ctx_tensors(context, backend.get()));
        if (buffers.back() == nullptr) return {};
        if (context == weights.get())
            ggml_backend_buffer_set_usage(buffers.back().get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        for (auto * each = ggml_get_first_tensor(context); each; each = ggml_get_next_tensor(context, each)) {
            if (each->op != GGML_OP_NONE) continue;
            std::vector<float> numbers(static_cast<size_t>(ggml_nelements(each)));
            for (float & number : numbers) number = values(random);
            std::vector<uint8_t> bytes(ggml_nbytes(each));
            ggml_quantize_chunk(each->type, numbers.data(), bytes.data(), 0, ggml_nrows(each), each->ne[0], nullptr);
            ggml_backend_tensor_set(each, bytes.data(), 0, bytes.size());
        }
    }
    ggml_cgraph * graph = ggml_new_graph(rest.get());
    ggml_build_forward_expand(graph, node);
    EXPECT_TRUE(ggml_backend_supports_op(backend.get(), node));
    EXPECT_EQ(ggml_backend_graph_compute(backend.get(), graph), GGML_STATUS_SUCCESS);
    std::vector<float> result(static_cast<size_t>(ggml_nelements(node)));
    ggml_backend_tensor_get(node, result.data(), 0, ggml_nbytes(node));
    return result;
}

TEST_P(LaneTest, nodes_whose_kernels_ask_for_more) {
    Lane & lane = open(1);
    ggml_backend_dev_t local = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    MakeNode * const nodes[] = {
        // Its kernel looks at the second source, which does not travel.
        [](ggml_context * weights, ggml_context * rest) {
            return ggml_cast(rest, ggml_new_tensor_2d(weights, GGML_TYPE_Q8_0, 64, 3), GGML_TYPE_F32);
        },
        // The kernel for repacked weights takes three dimensions only.
        [](ggml_context * weights, ggml_context * rest) {
            return ggml_mul_mat(rest, ggml_new_tensor_2d(weights, GGML_TYPE_Q4_0, 64, 32),
                                ggml_new_tensor_4d(rest, GGML_TYPE_F32, 64, 5, 2, 3));
        },
    };
    for (MakeNode * make : nodes) EXPECT_EQ(result_on(device_, make), result_on(local, make));
    expect_all_worked();
    lane.close();
}

// Executors say no to it; libllama runs it elsewhere.
TEST_P(LaneTest, what_executors_refuse_is_not_promised) {
    Lane & lane = open(1);
    const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 16, nullptr, true}));
    ggml_context * c = context.get();
    ggml_tensor * image = ggml_new_tensor_4d(c, GGML_TYPE_F32, 8, 8, 2, 1);
    ggml_tensor * kernel = ggml_new_tensor_4d(c, GGML_TYPE_F32, 3, 3, 2, 4);
    ggml_tensor * refused = ggml_conv_2d_direct(c, kernel, image, 1, 1, 1, 1, 1, 1);
    ggml_backend_dev_t local = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    EXPECT_TRUE(ggml_backend_dev_supports_op(local, refused));
    EXPECT_FALSE(ggml_backend_dev_supports_op(device_, refused));
    ggml_tensor * positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, 2);
    ggml_tensor * turned = ggml_rope_ext(c, image, positions, nullptr, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    EXPECT_TRUE(ggml_backend_dev_supports_op(device_, turned)) << "as libllama asks where frequency factors lie";
    EXPECT_TRUE(
        ggml_backend_dev_supports_op(device_, ggml_get_rows(c, ggml_new_tensor_2d(c, GGML_TYPE_F32, 8, 8), positions)));
    EXPECT_TRUE(ggml_backend_dev_supports_op(device_, ggml_view_1d(c, image, 4, 0)));
    lane.close();
}

TEST_P(LaneTest, an_executor_of_another_build_is_refused) {
    add_machine();
    LaneOptions options;
    options.executors = {machines_.back()->address};
    options.build = "another";
    const auto lane = Lane::open(*network_, options);
    ASSERT_FALSE(lane.ok());
    EXPECT_NE(lane.status().message().find("one build"), std::string::npos) << lane.status();
}

TEST_P(LaneTest, nobody_at_the_address_is_said) {
    LaneOptions options;
    options.executors = {"127.0.0.1:1"};
    const auto lane = Lane::open(*network_, options);
    ASSERT_FALSE(lane.ok());
    EXPECT_NE(lane.status().message().find("127.0.0.1:1"), std::string::npos) << lane.status();
}

INSTANTIATE_TEST_SUITE_P(Devices, LaneTest, testing::Values("cpu", "opaque"),
                         [](const auto & info) { return std::string(info.param); });

} // namespace
} // namespace strata::mesh
