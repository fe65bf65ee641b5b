// A whole executor in a simulation. One driver behaves; somebody else sends frames as the input says, as a driver, as a
// peer, and as an executor that is asked for blobs. Whatever comes, the one who behaves gets right answers, and nothing
// remains of either.
#include "base/check.h"
#include "executor/executor_testing.h"
#include "executor/op_check_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <list>
#include <map>
#include <numeric>

namespace strata::executor {
namespace {

using wire::FrameType;
using wire::Segment;
using wire::SimulatedNetwork;
using wire::Simulation;

constexpr uint64_t kMemoryLimitBytes = 8 << 20;
constexpr uint64_t kKeptBlobsBytes = 1 << 20;
constexpr double kFirstTurn = 500;   // so that graphs run in pieces
constexpr int kMostEvents = 1 << 20; // more is a loop
constexpr uint64_t kBase = 0x10000;  // of the address space
constexpr uint64_t kSlotBytes = 64 << 10;
constexpr uint64_t kBufferBytes = 16 * kSlotBytes;

// Blobs that everybody offers. The first is what the driver who behaves needs.
struct KnownBlob {
    std::vector<uint8_t> bytes;
    Digest digest;
};

const std::array<KnownBlob, 4> & known_blobs() {
    static const auto blobs = [] {
        std::array<KnownBlob, 4> made;
        for (size_t i = 0; i < made.size(); ++i) {
            std::vector<float> values(size_t{64} << (4 * i));
            std::iota(values.begin(), values.end(), static_cast<float>(i));
            const auto bytes = std::as_bytes(std::span(values));
            made[i].bytes.resize(bytes.size());
            std::ranges::copy(bytes, reinterpret_cast<std::byte *>(made[i].bytes.data()));
            made[i].digest = Digest::of(bytes);
        }
        return made;
    }();
    return blobs;
}

// Computes a + b * w, where w lies in a blob.
class Behaving : public TestWire {
public:
    static constexpr uint8_t kToken = 99;

    void begin() {
        greet(wire::Role::kDriver, kToken);
        const KnownBlob & blob = known_blobs()[0];
        const auto floats = [](uint64_t address, uint16_t op, std::vector<uint32_t> sources) {
            return wire::GraphTensor{
                GGML_TYPE_F32,      op, 0, {kCount, 1, 1, 1}, {4, 4 * kCount, 4 * kCount, 4 * kCount}, address,
                std::move(sources), {}};
        };
        const wire::Graph graph{{floats(kA, 0, {}), floats(kB, 0, {}), floats(kW, 0, {}),
                                 floats(kProduct, GGML_OP_MUL, {1, 2}), floats(kSum, GGML_OP_ADD, {0, 3})}};
        encoded_ = graph.encode();
        wire::OfferBlob offer;
        offer.digest = blob.digest;
        offer.bytes = blob.bytes.size();
        offer.from_driver = true;
        send(std::vector<wire::Command>{wire::NewBuffer{1, {kBase, kBufferBytes}}, offer,
                                        wire::BindWeight{kW, blob.digest, 0, GGML_TYPE_F32, {kCount, 1, 1, 1}},
                                        wire::DefineGraph{wire::Graph::hash(encoded_), encoded_}});
    }
    void ask() {
        std::array<float, kCount> a{}, b{};
        a.fill(static_cast<float>(asked_));
        b.fill(2);
        const auto bytes = [](const auto & values) {
            return std::span(reinterpret_cast<const uint8_t *>(values.data()), sizeof values);
        };
        send(std::vector<wire::Command>{wire::SetBytes{kA, bytes(a)}, wire::SetBytes{kB, bytes(b)},
                                        wire::Compute{wire::Graph::hash(encoded_)},
                                        wire::Read{asked_++, {{kSum, sizeof a}}}});
    }
    bool answered() const { return answered_ == asked_; }

    absl::Status on_frame(const wire::Frame & frame) override {
        auto body = frame.body();
        if (frame.header.type == FrameType::kBlobState) {
            const auto answer = wire::decode_blob_answer(body);
            STRATA_CHECK(answer.ok() && answer->state != wire::BlobState::kMissing);
            if (answer->state == wire::BlobState::kNeed) send_blob(known_blobs()[0].digest, known_blobs()[0].bytes);
        }
        if (frame.header.type == FrameType::kResult) {
            const auto head = wire::decode_result(body);
            STRATA_CHECK(head.ok() && head->id == answered_ && body.size() == kCount * sizeof(float));
            for (size_t i = 0; i < kCount; ++i) {
                float value = 0;
                std::memcpy(&value, body.data() + i * sizeof value, sizeof value);
                STRATA_CHECK(value == static_cast<float>(answered_) + 2 * static_cast<float>(i));
            }
            ++answered_;
        }
        return absl::OkStatus();
    }

private:
    static constexpr uint32_t kCount = 64;
    static constexpr uint64_t kA = kBase, kB = kBase + 4096, kW = kBase + 8192, kProduct = kBase + 12288,
                              kSum = kBase + 16384;
    std::vector<uint8_t> encoded_;
    uint64_t asked_ = 0, answered_ = 0;
};

// Sends what the input says.
class Stranger : public wire::Acceptor {
public:
    Stranger(FuzzInput & input, SimulatedNetwork::Machine & machine)
        : input_(input)
        , machine_(machine) {}

    std::shared_ptr<wire::ChannelHandler> on_connection(std::shared_ptr<wire::Channel> channel) override {
        auto & taken = wires_.emplace_back(std::make_shared<TestWire>());
        taken->accept(std::move(channel));
        return taken;
    }

    void begin() { connect(wire::Role::kDriver, kToken); }
    void act() {
        if (wires_.empty()) return connect(static_cast<wire::Role>(1 + input_.below(3)), kToken);
        if (wires_.size() > kMostWires) {
            wires_[1]->close();
            wires_.erase(wires_.begin() + 1);
        }
        TestWire & wire = *wires_[input_.below(4) % wires_.size()];
        switch (input_.below(16)) {
        case 0: // any bytes
            return wire.send(frame_type(), input_.bytes(input_.below(200)), wire.next_sequence());
        case 1: // some bytes of a good frame are others
            return wire.send(FrameType::kCommands, damaged(commands_body()), wire.next_sequence());
        case 2: {
            wire::FrameHeader header;
            header.type = FrameType::kCommands;
            header.generation = number();
            header.epoch = number();
            header.sequence = input_.below(2) == 0 ? number() : wire.next_sequence();
            return wire.send(header, commands_body());
        }
        case 3:
            return connect(static_cast<wire::Role>(1 + input_.below(3)), static_cast<uint8_t>(1 + input_.below(4)));
        case 4:
            return hello(wire);
        case 5: {
            const KnownBlob & blob = any_blob();
            return wire.send_blob(blob.digest, blob.bytes);
        }
        case 6:
            return wire.send(FrameType::kBlob, join(wire::encode(blob_head()), input_.bytes(input_.below(300))));
        case 7:
            return wire.send(FrameType::kBlobRequest, wire::encode(blob_head()));
        case 8:
            return wire.send(FrameType::kPush,
                             join(wire::encode(wire::PushHead{{token()}, number()}), input_.bytes(input_.below(100))));
        case 9:
            return wire.send(FrameType::kSkip, wire::encode(wire::Skip{number()}));
        case 10:
            return wire.close();
        default:
            return wire.send(FrameType::kCommands, commands_body(), wire.next_sequence());
        }
    }
    void end() {
        for (const auto & wire : wires_) wire->close();
        wires_.clear();
    }

private:
    static constexpr uint8_t kToken = 1;
    static constexpr size_t kMostWires = 8;

    void connect(wire::Role role, uint8_t token) {
        auto & made = wires_.emplace_back(std::make_shared<TestWire>());
        made->open(machine_, made);
        made->greet(role, token);
    }
    void hello(TestWire & wire) {
        wire::Hello hello{"test", static_cast<wire::Role>(input_.below(5)), {token()}, 0, "x"};
        if (input_.below(4) == 0) hello.build = "other";
        if (input_.below(4) == 0) hello.device = static_cast<uint16_t>(number());
        wire.send(FrameType::kHello, damaged(hello.encode()));
    }
    std::vector<uint8_t> damaged(std::vector<uint8_t> body) {
        for (size_t left = input_.below(4); left > 0 && !body.empty(); --left) {
            const size_t at = input_.take<uint16_t>() % body.size();
            switch (input_.below(4)) {
            case 0:
                body.resize(at);
                break;
            case 1:
                body[at] = static_cast<uint8_t>(input_.take<uint8_t>());
                break;
            case 2: {
                const uint64_t value = number();
                std::memcpy(&body[at], &value, std::min(sizeof value, body.size() - at));
                break;
            }
            default:
                body.insert(body.begin() + static_cast<ptrdiff_t>(at), input_.take<uint8_t>());
                break;
            }
        }
        return body;
    }

    std::vector<uint8_t> commands_body() {
        wire::Writer writer;
        for (size_t left = 1 + input_.below(8); left > 0; --left) wire::encode(writer, command());
        return writer.take();
    }
    wire::Command command() {
        switch (input_.below(20)) {
        case 0:
            return wire::NewBuffer{small(), input_.below(4) == 0 ? segment() : Segment{kBase, kBufferBytes}};
        case 1:
            return wire::FreeBuffer{small()};
        case 2:
        case 3:
            return wire::SetBytes{address(), input_.bytes(1 + input_.below(100))};
        case 4:
            return wire::FillBytes{segment(), input_.take<uint8_t>()};
        case 5:
            return wire::CopyBytes{address(), segment()};
        case 6:
            return wire::DropBytes{segment()};
        case 7:
        case 8:
            return bind_weight();
        case 9:
            return wire::UnbindWeight{address(), input_.below(2) != 0};
        case 10:
        case 11:
            return define_graph();
        case 12:
            if (input_.below(2) == 0) return wire::Prepare{any_graph().hash, input_.below(2) == 0};
            return input_.below(8) == 0 ? wire::Command(wire::ForgetGraphs{}) : wire::Command(any_graph());
        case 13:
        case 14:
            return any_graph();
        case 15:
            return wire::Push{static_cast<uint16_t>(small()), number(), segments()};
        case 16:
            return wire::Expect{number(), segments()};
        case 17:
            return wire::Read{number(), segments()};
        case 18: {
            constexpr std::array<const char *, 4> kAddresses{"stranger", "executor", "nobody", ""};
            return wire::SetPeer{static_cast<uint16_t>(small()), kAddresses[input_.below(4)], {token()}};
        }
        default:
            return offer();
        }
    }

    // A node and its sources, or several, in slots of the address space where they may overlap.
    wire::Command define_graph() {
        wire::Graph graph;
        for (size_t left = 1 + input_.below(3); left > 0; --left) {
            const OwnedNode node = changed_node(input_, chosen_recipe(input_));
            const auto slot = static_cast<uint64_t>(input_.below(4)) * 3;
            std::map<const void *, uint64_t> places;
            std::map<const ggml_tensor *, uint32_t> numbers;
            for (size_t i = node.tensors.size(); i-- > 0;) { // the node comes first there
                const ggml_tensor & tensor = node.tensors[i];
                const auto [place, added] = places.try_emplace(node.storages[i], 0);
                if (added) place->second = kBase + (slot + places.size() - 1) % 16 * kSlotBytes;
                wire::GraphTensor & made = graph.tensors.emplace_back();
                made.type = static_cast<uint16_t>(tensor.type);
                made.address = place->second;
                for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) {
                    made.ne[dim] = static_cast<uint32_t>(tensor.ne[dim]);
                    made.nb[dim] = tensor.nb[dim];
                }
                numbers[&tensor] = static_cast<uint32_t>(graph.tensors.size() - 1);
                if (i > 0) continue;
                made.op = static_cast<uint16_t>(tensor.op);
                for (const ggml_tensor * source : tensor.src)
                    made.sources.push_back(source == nullptr ? wire::GraphTensor::kNone : numbers[source]);
                made.op_params.assign(tensor.op_params, tensor.op_params + wire::kMaxOpParams);
            }
        }
        return define(input_.below(4) == 0 ? damaged(graph.encode()) : graph.encode());
    }
    wire::Command define(std::vector<uint8_t> encoded) {
        const wire::GraphHash hash = wire::Graph::hash(encoded);
        hashes_.push_back(hash);
        graphs_.push_back(std::move(encoded));
        return wire::DefineGraph{hash, graphs_.back()};
    }
    wire::Compute any_graph() { return {hashes_.empty() ? wire::GraphHash{} : hashes_[small() % hashes_.size()]}; }
    // Such as a recipe's first source is.
    wire::BindWeight bind_weight() {
        const OwnedNode node = make_node(chosen_recipe(input_));
        const ggml_tensor & weight = node.node().src[0] != nullptr ? *node.node().src[0] : node.node();
        wire::BindWeight bind{
            address(), any_blob().digest, 32 * input_.below(3), static_cast<uint32_t>(weight.type), {}};
        std::copy_n(weight.ne, GGML_MAX_DIMS, bind.ne.begin());
        if (input_.below(4) == 0) bind.ne[input_.below(4)] = static_cast<int64_t>(number());
        if (input_.below(8) == 0) bind.type = static_cast<uint32_t>(number());
        if (input_.below(8) == 0) bind.offset = number();
        return bind;
    }
    wire::OfferBlob offer() {
        const KnownBlob & blob = any_blob();
        wire::OfferBlob offer;
        offer.number = small();
        offer.digest = blob.digest;
        offer.bytes = input_.below(6) == 0 ? std::max<uint64_t>(number(), 1) : blob.bytes.size();
        offer.from_driver = input_.below(2) == 0;
        offer.keep = input_.below(2) == 0;
        if (input_.below(2) == 0) {
            const uint64_t half = std::max<uint64_t>(offer.bytes / 2, 1);
            const auto first = std::as_bytes(std::span(blob.bytes)).first(std::min<size_t>(half, blob.bytes.size()));
            offer.parts = {{0, half, Digest::of(first)}};
        }
        if (input_.below(2) == 0) offer.sources = {input_.below(2) == 0 ? "stranger" : "executor", "nobody"};
        return offer;
    }
    wire::BlobHead blob_head() {
        const KnownBlob & blob = any_blob();
        wire::BlobHead head{blob.digest, 0, blob.bytes.size()};
        if (input_.below(2) == 0) head.offset = number();
        if (input_.below(4) == 0) head.total_bytes = number();
        return head;
    }
    const KnownBlob & any_blob() { return known_blobs()[input_.below(known_blobs().size())]; }

    FrameType frame_type() { return static_cast<FrameType>(input_.below(16)); }
    uint8_t token() { return static_cast<uint8_t>(1 + input_.below(3)); }
    uint32_t small() { return static_cast<uint32_t>(input_.below(6)); }
    uint64_t number() {
        switch (input_.below(8)) {
        case 0:
            return input_.take<uint64_t>();
        case 1:
            return UINT64_MAX - input_.below(256);
        case 2:
            return uint64_t{1} << input_.below(64);
        default:
            return input_.below(8);
        }
    }
    uint64_t address() {
        switch (input_.below(8)) {
        case 0:
            return number();
        case 1:
            return kBase + input_.take<uint32_t>() % (kBufferBytes + 64);
        default:
            return kBase + input_.below(16) * kSlotBytes;
        }
    }
    Segment segment() {
        const uint64_t begin = address();
        switch (input_.below(8)) {
        case 0:
            return {begin, number()};
        case 1:
            return {begin, kSlotBytes * (1 + input_.below(16))};
        default:
            return {begin, 1 + input_.below(256)};
        }
    }
    std::vector<Segment> segments() {
        std::vector<Segment> made(1 + input_.below(3));
        for (Segment & each : made) each = segment();
        return made;
    }

    FuzzInput & input_;
    SimulatedNetwork::Machine & machine_;
    std::vector<std::shared_ptr<TestWire>> wires_;
    std::list<std::vector<uint8_t>> graphs_; // frames point into them until they are encoded
    std::vector<wire::GraphHash> hashes_;
};

class Course {
public:
    explicit Course(FuzzInput & input)
        : input_(input)
        , simulation_(input.take<uint16_t>())
        , network_(simulation_)
        , machine_(network_.add("executor"))
        , stranger_machine_(network_.add("stranger"))
        , stranger_(std::make_shared<Stranger>(input, stranger_machine_)) {
        auto device = std::make_unique<Device>(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), 1, simulation_);
        device->start();
        ExecutorOptions options = test_options(simulation_);
        options.memory_limit_bytes = kMemoryLimitBytes;
        options.kept_blobs_bytes = kKeptBlobsBytes;
        options.first_turn_operations = kFirstTurn;
        executor_ = start_executor(machine_, std::move(device), options);
    }

    void run() {
        const auto behaving = std::make_shared<Behaving>();
        behaving->open(network_.add("behaving"), behaving);
        STRATA_CHECK(stranger_machine_.listen("", stranger_).ok());
        if (input_.below(8) != 0) stranger_->begin();
        behaving->begin();
        behaving->ask();
        for (int actions = 0; !input_.empty(); ++actions) {
            stranger_->act();
            if (actions % 4 == 3) behaving->ask();
            for (size_t left = input_.below(20); left > 0 && simulation_.run_one(); --left) {
            }
        }
        behaving->ask();
        run_until([&] { return behaving->answered(); });
        STRATA_CHECK(behaving->answered());
        for (const auto & session : executor_->status().sessions)
            STRATA_CHECK(session.memory_bytes <= kMemoryLimitBytes);
        behaving->close();
        stranger_->end();
        run_until([] { return false; });
        STRATA_CHECK(executor_->status().sessions.empty());
        machine_.crash();
        run_until([] { return false; });          // whom it has asked for blobs learns of it
        STRATA_CHECK(executor_.use_count() == 1); // nobody's connection is left
    }

private:
    void run_until(const std::function<bool()> & done) {
        int left = kMostEvents;
        while (!done() && --left > 0 && simulation_.run_one()) {
        }
        STRATA_CHECK(left > 0);
    }

    FuzzInput & input_;
    Simulation simulation_;
    SimulatedNetwork network_;
    SimulatedNetwork::Machine & machine_;
    SimulatedNetwork::Machine & stranger_machine_;
    std::shared_ptr<Stranger> stranger_;
    std::shared_ptr<Executor> executor_;
};

} // namespace
} // namespace strata::executor

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    strata::executor::FuzzInput input(std::span(data, size));
    strata::executor::Course(input).run();
    return 0;
}
