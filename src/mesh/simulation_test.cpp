// Lanes over executors in a simulation: each seed is one course of events, with its own machines, delays, moves and
// crashes. Whatever happens, all results are those of one machine, or the lane says why not.
// STRATA_SIMULATION_SEEDS=FROM-TO runs others; STRATA_SIMULATION_TRACE=1 shows what happens.
#include "executor/blob_store_testing.h"
#include "executor/executor.h"
#include "mesh/backend.h"
#include "mesh/lane.h"
#include "mesh/recurrent_model_testing.h"
#include "wire/simulated_network.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <optional>

namespace strata::mesh {
namespace {

using std::chrono::milliseconds;
using wire::SimulatedNetwork;
using wire::Simulation;

constexpr int kSteps = 25;
constexpr int kLayers = RecurrentModel::kLayers;

// A disk that outlives its executor, and has faults.
class Disk : public executor::MemoryBlobStore {
public:
    explicit Disk(Simulation & simulation)
        : simulation_(simulation) {}

    absl::StatusOr<MappedBytes> open(const Digest & digest, uint64_t bytes) override {
        auto found = MemoryBlobStore::open(digest, bytes);
        if (found.ok() && simulation_.chance(5)) return absl::DataLossError("this disk has other bytes");
        return found;
    }
    absl::StatusOr<std::unique_ptr<Writer>> create(const std::optional<Digest> & digest, uint64_t bytes) override {
        if (simulation_.chance(5)) return absl::ResourceExhaustedError("this disk is full");
        return MemoryBlobStore::create(digest, bytes);
    }

private:
    Simulation & simulation_;
};

class Machine {
public:
    Machine(Simulation & simulation, SimulatedNetwork & network, const std::string & name)
        : name(name)
        , simulation_(simulation)
        , machine_(network.add(name))
        , disk_(std::make_shared<Disk>(simulation)) {
        start();
    }

    void start() {
        std::vector<std::unique_ptr<executor::Device>> devices;
        devices.push_back(
            std::make_unique<executor::Device>(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), 1, simulation_));
        devices.back()->start();
        executor::ExecutorOptions options;
        options.name = name;
        options.build = "test";
        options.folder = testing::TempDir();
        options.store = disk_;
        options.runtime = &simulation_;
        if (simulation_.chance(50)) options.first_turn_operations = 100; // graphs run in pieces
        options.log = [this](const std::string & line) { simulation_.note(fmt::format("{}: {}", name, line)); };
        executor_ = std::make_shared<executor::Executor>(machine_, options, std::move(devices));
        machine_.restart();
        EXPECT_TRUE(machine_.listen("", executor_).ok());
    }
    void crash() {
        machine_.crash();
        executor_.reset();
    }
    bool up() const { return machine_.up(); }
    executor::Executor::Status status() const { return executor_->status(); }

    const std::string name;

private:
    Simulation & simulation_;
    SimulatedNetwork::Machine & machine_;
    const std::shared_ptr<Disk> disk_;
    std::shared_ptr<executor::Executor> executor_;
};

class Course {
public:
    explicit Course(uint64_t seed)
        : simulation_(seed)
        , network_(simulation_)
        , driver_(network_.add("driver")) {}

    void run() {
        for (uint64_t left = 1 + simulation_.random(4); left > 0; --left) add_machine();
        for (uint64_t left = 1 + simulation_.random(2); left > 0; --left) open_lane();
        for (uint64_t left = simulation_.random(4); left > 0; --left) plan_crash();
        for (Driven & driven : lanes_) load(driven);
        while (std::ranges::any_of(lanes_, [](const Driven & driven) { return driven.next < kSteps; })) {
            for (Driven & driven : lanes_) start_steps(driven);
            for (Driven & driven : lanes_) finish_steps(driven);
        }
        end();
    }

    uint64_t history() const { return simulation_.history(); }
    struct Totals {
        int steps = 0, crashes = 0, moves = 0, failed_lanes = 0;
    };
    const Totals & totals() const { return totals_; }

private:
    struct Driven {
        Lane * lane = nullptr;
        ggml_backend_dev_t device = nullptr;
        LaneOptions::OnLoss on_loss{};
        std::unique_ptr<RecurrentModel> model;
        int executors = 0;
        int next = 0;
        std::vector<std::pair<int, std::vector<float>>> started;
    };

    void add_machine() {
        machines_.push_back(std::make_unique<Machine>(simulation_, network_, fmt::format("m{}", machines_.size())));
    }

    void open_lane() {
        LaneOptions options;
        for (const auto & machine : machines_) options.executors.push_back(machine->name);
        options.build = "test";
        options.folder = testing::TempDir();
        options.runtime = &simulation_;
        options.cuts = simulation_.random(4);
        if (simulation_.chance(20)) options.scatter_seed = simulation_.random(1000);
        options.on_loss = std::array{LaneOptions::OnLoss::kFail, LaneOptions::OnLoss::kRebind,
                                     LaneOptions::OnLoss::kWait}[simulation_.random(3)];
        if (simulation_.chance(50)) options.model = RecurrentModel::layers();
        Driven & driven = lanes_.emplace_back();
        driven.on_loss = options.on_loss;
        driven.executors = static_cast<int>(machines_.size());
        options.log = [this, &driven](const std::string & line) {
            simulation_.note(line);
            if (line.find("wait to be bound") != std::string::npos) {
                simulation_.after(simulation_.up_to(milliseconds(100)), "operator", [&] { house_layers(driven); });
            }
        };
        auto lane = Lane::open(driver_, std::move(options));
        ASSERT_TRUE(lane.ok()) << lane.status();
        driven.lane = lane->get();
        driven.device = add_device(*std::move(lane));
    }

    void plan_crash() {
        simulation_.after(simulation_.up_to(milliseconds(1500)), "crash", [this] {
            Machine * const machine = machines_[simulation_.random(machines_.size())].get();
            if (!machine->up()) return;
            simulation_.note(fmt::format("{} crashes", machine->name));
            machine->crash();
            ++totals_.crashes;
            if (simulation_.chance(50)) {
                simulation_.after(simulation_.up_to(milliseconds(500)), "start", [machine] {
                    if (!machine->up()) machine->start();
                });
            }
        });
    }

    // What a person does when a lane waits.
    void house_layers(Driven & driven) {
        for (int tries = 0; tries < 50; ++tries) {
            const auto parts = driven.lane->parts();
            const auto lost = std::ranges::find_if(parts, &Lane::PartStatus::lost);
            if (lost == parts.end()) return;
            std::vector<const Machine *> up;
            for (const auto & machine : machines_) {
                if (machine->up()) up.push_back(machine.get());
            }
            if (up.empty()) {
                add_machine();
                continue;
            }
            const std::string to = up[simulation_.random(up.size())]->name;
            if (driven.lane->move(lost->first_layer, lost->last_layer, to).ok()) ++totals_.moves;
        }
    }

    void rearrange(Driven & driven) {
        const auto first = static_cast<int32_t>(simulation_.random(kLayers));
        const auto last = first + static_cast<int32_t>(simulation_.random(3));
        const std::string to = machines_[simulation_.random(machines_.size())]->name;
        switch (simulation_.random(8)) {
        case 0:
        case 1: // a number that may not be one
            if (driven.lane->bind(first, last, simulation_.random(machines_.size() + 1)).ok()) ++totals_.moves;
            break;
        case 2:
        case 3:
            if (driven.lane->move(first, last, to).ok()) ++totals_.moves;
            break;
        case 4:
            if (machines_.size() < 6) add_machine();
            break;
        default:
            break;
        }
    }

    void load(Driven & driven) {
        driven.lane->begin_loading();
        driven.model = std::make_unique<RecurrentModel>(driven.device);
        if (simulation_.chance(50)) driven.model->step(0); // as llama.cpp warms up
        driven.lane->end_loading();
        (void)ended(driven); // whose graphs ggml can't allocate any more
    }

    // Whether its lane failed, as it may.
    bool ended(Driven & driven) {
        if (!driven.lane->failed()) return false;
        const absl::Status status = driven.lane->status();
        const bool lost = totals_.crashes > 0 &&
                          (driven.on_loss == LaneOptions::OnLoss::kFail || totals_.crashes >= driven.executors);
        const bool disk = status.message().find("this disk") != std::string_view::npos;
        EXPECT_TRUE(lost || disk) << status;
        ++totals_.failed_lanes;
        driven.next = kSteps;
        driven.started.clear();
        return true;
    }

    void start_steps(Driven & driven) {
        for (uint64_t left = 1 + simulation_.random(3); left > 0 && driven.next < kSteps; --left) {
            rearrange(driven);
            auto & [number, result] = driven.started.emplace_back(driven.next++, std::vector<float>());
            if (driven.model->start(number, result)) continue;
            EXPECT_TRUE(driven.lane->failed()) << "step " << number;
            driven.next = kSteps;
        }
    }

    void finish_steps(Driven & driven) {
        if (driven.started.empty()) return;
        driven.model->finish();
        if (ended(driven)) return;
        for (const auto & [number, result] : driven.started) {
            EXPECT_EQ(result, expected_steps()[static_cast<size_t>(number)]) << "step " << number;
            ++totals_.steps;
        }
        driven.started.clear();
    }

    void end() {
        for (Driven & driven : lanes_) {
            driven.model.reset();
            driven.lane->close();
        }
        int left = 100000;
        while (simulation_.run_one() && --left > 0) {
        }
        EXPECT_GT(left, 0) << "events without end";
        for (const auto & machine : machines_) {
            if (machine->up()) {
                EXPECT_TRUE(machine->status().sessions.empty()) << machine->name;
            }
        }
        EXPECT_THAT(network_.refusals(), testing::IsEmpty());
    }

    Simulation simulation_;
    SimulatedNetwork network_;
    SimulatedNetwork::Machine & driver_;
    std::vector<std::unique_ptr<Machine>> machines_;
    std::list<Driven> lanes_;
    Totals totals_;
};

std::pair<uint64_t, uint64_t> seeds() {
    std::pair<uint64_t, uint64_t> range{1, 300};
    if (const char * text = std::getenv("STRATA_SIMULATION_SEEDS"))
        std::sscanf(text, "%lu-%lu", &range.first, &range.second); // NOLINT(cert-err34-c): a person's own
    return range;
}

TEST(Simulation, whatever_happens_the_results_are_those_of_one_machine) {
    Course::Totals all;
    const auto [first, last] = seeds();
    for (uint64_t seed = first; seed <= last && !HasFailure(); ++seed) {
        SCOPED_TRACE(fmt::format("seed {}", seed));
        Course course(seed);
        course.run();
        all.steps += course.totals().steps;
        all.crashes += course.totals().crashes;
        all.moves += course.totals().moves;
        all.failed_lanes += course.totals().failed_lanes;
    }
    fmt::print("{} steps, {} crashes, {} moves, {} lanes that failed\n", all.steps, all.crashes, all.moves,
               all.failed_lanes);
}

TEST(Simulation, a_seed_is_one_course_of_events) {
    for (const uint64_t seed : {3, 5, 8}) {
        Course first(seed), second(seed);
        first.run();
        second.run();
        EXPECT_EQ(first.history(), second.history()) << "seed " << seed;
    }
}

} // namespace
} // namespace strata::mesh
