#include "executor/layer_job.h"
#include "executor/limits.h"
#include "layers/gguf_testing.h"
#include "layers/quantize.h"
#include "wire/simulation.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>

namespace strata::executor {
namespace {

using layers::testing::GgufBuilder;
using testing::HasSubstr;
using testing::StartsWith;
using Bytes = std::vector<uint8_t>;

// A store in memory.
class MemoryStore : public BlobStore {
public:
    std::map<Digest, absl::StatusOr<std::shared_ptr<Bytes>>> blobs;
    size_t room = SIZE_MAX; // bytes of a file
    int files = 0;          // that are being written

    Digest put(std::string_view text) {
        const auto bytes = std::make_shared<Bytes>(text.begin(), text.end());
        const Digest digest = Digest::of(text);
        blobs.insert_or_assign(digest, bytes);
        return digest;
    }
    absl::StatusOr<MappedBytes> open(const Digest & digest, uint64_t) override {
        const auto found = blobs.find(digest);
        if (found == blobs.end()) return absl::NotFoundError("not in the store");
        if (!found->second.ok()) return found->second.status();
        return MappedBytes{**found->second, *found->second};
    }
    absl::StatusOr<std::unique_ptr<Writer>> create(const std::optional<Digest> & digest, uint64_t) override {
        EXPECT_FALSE(digest);
        if (room == 0) return absl::ResourceExhaustedError("no room for a file");
        return std::make_unique<File>(*this);
    }

private:
    class File : public Writer {
    public:
        explicit File(MemoryStore & store)
            : store_(store) {
            ++store_.files;
        }
        ~File() override { --store_.files; }
        absl::Status append(std::span<const uint8_t> data) override {
            if (bytes_.size() + data.size() > store_.room) return absl::ResourceExhaustedError("no room for bytes");
            bytes_.append(data.begin(), data.end());
            return absl::OkStatus();
        }
        absl::StatusOr<MappedBytes> written() override { return MappedBytes{}; }
        absl::StatusOr<MappedBytes> finish() override {
            store_.put(bytes_);
            return MappedBytes{};
        }
        Digest digest() const override { return Digest::of(bytes_); }

    private:
        MemoryStore & store_;
        std::string bytes_;
    };
};

// An operator's connection: what it is told.
class Operator : public wire::Channel {
public:
    std::vector<wire::JobState> states;

    void send(wire::FrameHeader header, std::span<const std::span<const uint8_t>> body, const MappedBytes &) override {
        EXPECT_EQ(header.type, wire::FrameType::kJobState);
        const auto state = wire::decode_job_state(body.front());
        ASSERT_TRUE(state.ok()) << state.status();
        states.push_back(*state);
    }
    void close(const absl::Status &) override {}
    size_t queued_bytes() const override { return 0; }
    std::string peer() const override { return "operator"; }
    Counters counters() const override { return {}; }

    // The last state as text.
    std::string end() const {
        if (states.empty()) return "nothing";
        const wire::JobState & last = states.back();
        if (last.phase == wire::JobPhase::kRuns) return "runs";
        if (last.phase == wire::JobPhase::kDone) return "done";
        return fmt::format("{}: {}", absl::StatusCodeToString(last.code), last.reason);
    }
};

std::string layer(int64_t rows, float value = 1.5F) {
    GgufBuilder builder;
    builder.u16("split.no", 3).tensor("blk.2.ffn_up.weight", {1024, rows});
    std::string & data = builder.tensors.back().data;
    for (size_t at = 0; at < data.size(); at += sizeof(value)) std::memcpy(data.data() + at, &value, sizeof(value));
    return builder.build();
}

class LayerJobTest : public testing::Test {
protected:
    void start(uint32_t number, const Digest & digest, uint32_t type = GGML_TYPE_F16) {
        EXPECT_EQ(jobs_.start({number, wire::JobKind::kQuantize, digest, type}, operator_), absl::OkStatus());
    }
    void run_disk() {
        while (simulation_.run_one()) {
        }
    }
    // How it ends.
    std::string run() {
        run_disk();
        while (device_.work_once()) run_disk();
        EXPECT_EQ(store_.files, 0);
        return operator_->end();
    }
    std::string end_of(const Digest & digest, uint32_t type = GGML_TYPE_F16) {
        start(1, digest, type);
        return run();
    }

    wire::Simulation simulation_{1};
    Device device_{ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), 1, simulation_};
    MemoryStore store_;
    LayerJobs jobs_{simulation_, &store_, device_, [](const std::string &) {}};
    std::shared_ptr<Operator> operator_ = std::make_shared<Operator>();
};

TEST_F(LayerJobTest, ALayerIsMade) {
    const Digest source = store_.put(layer(3000));
    EXPECT_EQ(end_of(source), "done");
    const auto & states = operator_->states;
    ASSERT_GT(states.size(), 1);
    uint64_t done = 0;
    for (const wire::JobState & state : states) {
        EXPECT_EQ(state.number, 1);
        EXPECT_GE(state.done_bytes, done);
        EXPECT_EQ(state.total_bytes, states.back().total_bytes);
        done = state.done_bytes;
    }
    EXPECT_EQ(done, states.back().total_bytes);
    const auto made = store_.open(states.back().layer, 0);
    ASSERT_TRUE(made.ok());
    EXPECT_EQ(made->bytes.size(), done);
    // 1.5 is the same in both types.
    EXPECT_EQ(end_of(states.back().layer, GGML_TYPE_F32), "done");
    EXPECT_EQ(states.back().layer, source);
}

TEST_F(LayerJobTest, EqualJobsGiveEqualLayers) {
    const Digest source = store_.put(layer(100));
    start(1, source, GGML_TYPE_Q4_0);
    start(2, source, GGML_TYPE_Q4_0);
    EXPECT_EQ(run(), "done");
    EXPECT_EQ(store_.blobs.size(), 2);
}

TEST_F(LayerJobTest, ErrorsAreNamed) {
    const Digest source = store_.put(layer(100));
    EXPECT_THAT(end_of(Digest::of("nothing")), StartsWith("NOT_FOUND: not in the store"));
    EXPECT_THAT(end_of(store_.put("{}")), HasSubstr("is no layer of a model"));
    EXPECT_THAT(end_of(source, GGML_TYPE_IQ2_XS), HasSubstr("FAILED_PRECONDITION: IQ2_XS needs an importance matrix"));
    EXPECT_THAT(end_of(source, 4000), HasSubstr("unknown type 4000"));
    EXPECT_THAT(end_of(source, GGML_TYPE_Q8_K), HasSubstr("can't be made Q8_K"));
    EXPECT_THAT(end_of(store_.put(layer(3000, NAN))), HasSubstr("not finite"));
    store_.blobs.insert_or_assign(Digest::of("damaged"), absl::DataLossError("is damaged"));
    EXPECT_THAT(end_of(Digest::of("damaged")), HasSubstr("DATA_LOSS: is damaged"));
    store_.room = 100000;
    EXPECT_THAT(end_of(source), HasSubstr("RESOURCE_EXHAUSTED: no room for bytes"));
    store_.room = 0;
    EXPECT_THAT(end_of(source), HasSubstr("RESOURCE_EXHAUSTED: no room for a file"));
    LayerJobs without(simulation_, nullptr, device_, [](const std::string &) {});
    EXPECT_TRUE(without.start({1, wire::JobKind::kQuantize, source, GGML_TYPE_F16}, operator_).ok());
    EXPECT_THAT(operator_->end(), HasSubstr("has no store"));
    store_.room = SIZE_MAX;
    EXPECT_EQ(end_of(source), "done");
}

// Whenever an operator leaves, nothing is left, and others' jobs go on.
TEST_F(LayerJobTest, WhoLeavesCancels) {
    const Digest source = store_.put(layer(3000));
    size_t cancelled = 0;
    for (int steps = 0;; ++steps) {
        store_.blobs.erase(store_.blobs.begin(), store_.blobs.end());
        store_.put(layer(3000));
        const auto leaver = std::make_shared<Operator>();
        ASSERT_TRUE(jobs_.start({9, wire::JobKind::kQuantize, source, GGML_TYPE_Q8_0}, leaver).ok());
        for (int i = 0; i < steps; ++i) {
            if (!simulation_.run_one()) device_.work_once();
        }
        const std::string end = leaver->end();
        jobs_.leave(*leaver);
        if (end == "done") break;
        ++cancelled;
        operator_->states.clear();
        EXPECT_EQ(end_of(source), "done");
        EXPECT_EQ(leaver->end(), end);
        EXPECT_EQ(store_.blobs.size(), 2);
    }
    EXPECT_GT(cancelled, 10);
}

// A disk that is slower than the device bounds the memory, and a turn is short.
TEST_F(LayerJobTest, TheDeviceWaitsForTheDisk) {
    start(1, store_.put(layer(8000)));
    run_disk();
    size_t turns = 0;
    while (device_.work_once()) ++turns;
    EXPECT_GE(turns, kMaxUnwrittenBytes / kJobTurnBytes);
    run_disk();
    const uint64_t written = operator_->states.back().done_bytes;
    EXPECT_EQ(operator_->end(), "runs");
    EXPECT_LE(written, kMaxUnwrittenBytes + kJobTurnBytes + 65536);
    EXPECT_EQ(run(), "done");
}

TEST_F(LayerJobTest, DriversGoFirst) {
    struct Driver : Work {
        int pieces = 0;
        Outcome work() override { return ++pieces < 20 ? Outcome::kMore : Outcome::kWaits; }
    };
    start(1, store_.put(layer(3000)));
    run_disk();
    const auto driver = std::make_shared<Driver>();
    device_.add(driver);
    device_.ready(driver.get());
    for (int i = 0; i < 20; ++i) device_.work_once();
    EXPECT_EQ(driver->pieces, 20);
    EXPECT_EQ(run(), "done");
}

TEST_F(LayerJobTest, JobsAreLimited) {
    const Digest source = store_.put(layer(10));
    for (uint32_t number = 0; number < kMaxJobsOfOperator; ++number) start(number, source);
    start(100, source);
    EXPECT_THAT(operator_->end(), HasSubstr("RESOURCE_EXHAUSTED: an executor runs 64 layer jobs at once, 16 of one"));
    EXPECT_EQ(operator_->states.back().number, 100);
    EXPECT_THAT(std::string(jobs_.start({5, wire::JobKind::kQuantize, source, 1}, operator_).message()),
                HasSubstr("layer job 5 runs already"));
    std::vector<std::shared_ptr<Operator>> others;
    for (size_t job = kMaxJobsOfOperator; job < kMaxJobs; ++job) {
        others.push_back(std::make_shared<Operator>());
        EXPECT_TRUE(jobs_.start({1, wire::JobKind::kQuantize, source, GGML_TYPE_F16}, others.back()).ok());
        EXPECT_EQ(others.back()->end(), "nothing");
    }
    const auto late = std::make_shared<Operator>();
    EXPECT_TRUE(jobs_.start({1, wire::JobKind::kQuantize, source, GGML_TYPE_F16}, late).ok());
    EXPECT_THAT(late->end(), HasSubstr("RESOURCE_EXHAUSTED"));
    EXPECT_EQ(run(), "done");
    EXPECT_EQ(std::ranges::count_if(others, [](const auto & other) { return other->end() == "done"; }), others.size());
    EXPECT_EQ(end_of(source), "done"); // there is room again
}

} // namespace
} // namespace strata::executor
