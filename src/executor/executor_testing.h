#pragma once

#include "base/check.h"
#include "executor/blob_store_testing.h"
#include "executor/executor.h"
#include "wire/limits.h"
#include "wire/simulated_network.h"

#include <filesystem>

// An executor in a simulation, and connections to it.
namespace strata::executor {

inline ExecutorOptions test_options(Runtime & runtime) {
    ExecutorOptions options;
    options.name = "executor";
    options.build = "test";
    options.folder = std::filesystem::temp_directory_path();
    options.store = std::make_shared<MemoryBlobStore>();
    options.runtime = &runtime;
    return options;
}

inline std::shared_ptr<Executor> start_executor(wire::SimulatedNetwork::Machine & machine,
                                                std::unique_ptr<Device> device, ExecutorOptions options) {
    std::vector<std::unique_ptr<Device>> devices;
    devices.push_back(std::move(device));
    auto executor = std::make_shared<Executor>(machine, std::move(options), std::move(devices));
    STRATA_CHECK(machine.listen("", executor).ok());
    return executor;
}

inline std::vector<uint8_t> join(std::span<const uint8_t> head, std::span<const uint8_t> payload) {
    std::vector<uint8_t> out(head.begin(), head.end());
    out.insert(out.end(), payload.begin(), payload.end());
    return out;
}

// One connection to the executor, or of it.
class TestWire : public wire::ChannelHandler {
public:
    size_t max_body_bytes() const override { return wire::kMaxFrameBytes; }
    absl::Status on_frame(const wire::Frame &) override { return absl::OkStatus(); }
    void on_closed(const absl::Status & reason) override { closed_ = reason; }

    void open(wire::SimulatedNetwork::Machine & machine, std::shared_ptr<TestWire> self) {
        channel_ = *machine.connect("executor", std::move(self));
    }
    void accept(std::shared_ptr<wire::Channel> channel) { channel_ = std::move(channel); }
    void send(wire::FrameType type, std::span<const uint8_t> body, uint64_t sequence = 0) {
        wire::FrameHeader header;
        header.type = type;
        header.sequence = sequence;
        send(header, body);
    }
    void send(const wire::FrameHeader & header, std::span<const uint8_t> body) { channel_->send(header, body); }
    void send(std::span<const wire::Command> commands) {
        wire::Writer writer;
        for (const wire::Command & command : commands) wire::encode(writer, command);
        send(wire::FrameType::kCommands, writer.bytes(), ++sequence_);
    }
    void greet(wire::Role role, uint8_t token) {
        send(wire::FrameType::kHello, wire::Hello{"test", role, {token}, 0, "a driver"}.encode());
    }
    void send_blob(const Digest & digest, std::span<const uint8_t> bytes) {
        send(wire::FrameType::kBlob, join(wire::encode(wire::BlobHead{digest, 0, bytes.size()}), bytes));
    }
    void close() { channel_->close(absl::OkStatus()); }
    const absl::Status & closed() const { return closed_; } // not OK: it is
    uint64_t next_sequence() { return ++sequence_; }

private:
    std::shared_ptr<wire::Channel> channel_;
    absl::Status closed_;
    uint64_t sequence_ = 0;
};

} // namespace strata::executor
