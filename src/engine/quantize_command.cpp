#include "engine/quantize_command.h"

#include "base/runtime.h"
#include "base/text.h"
#include "engine/stop_signals.h"
#include "layers/quantize.h"
#include "wire/address.h"
#include "wire/limits.h"
#include "wire/message.h"
#include "wire/tcp.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <cstdio>
#include <optional>
#include <utility>

namespace strata::engine {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kWrongUse = 2;
constexpr int kInterrupted = 130;
constexpr std::chrono::milliseconds kBetweenLooks{50}; // at signals
constexpr size_t kBarColumns = 30;

// What comes from the executor.
class Answers : public wire::ChannelHandler {
public:
    size_t max_body_bytes() const override { return wire::kMaxHelloBytes; }

    absl::Status on_frame(const wire::Frame & frame) override {
        const std::lock_guard lock(mutex_);
        welcomed_ = true;
        if (frame.header.type == wire::FrameType::kWelcome) return absl::OkStatus();
        if (frame.header.type != wire::FrameType::kJobState)
            return absl::InvalidArgumentError("an executor that does not keep to the protocol");
        STRATA_ASSIGN_OR_RETURN(state_, wire::decode_job_state(frame.body()));
        changed_.notify_all();
        return absl::OkStatus();
    }
    void on_closed(const absl::Status & reason) override {
        const std::lock_guard lock(mutex_);
        const std::string why = reason.ok() ? "the executor ended" : std::string(reason.message());
        closed_ = absl::UnavailableError(
            welcomed_ ? why : fmt::format("{}: is a strata-engine executor of this build there?", why));
        changed_.notify_all();
    }

    // The newest state that was not asked for before, when there is one in time; an error when none will come.
    absl::StatusOr<std::optional<wire::JobState>> next() {
        std::unique_lock lock(mutex_);
        Runtime::real().wait_for(lock, changed_, kBetweenLooks, [&] { return state_ || !closed_.ok(); });
        if (!state_ && !closed_.ok()) return closed_;
        return std::exchange(state_, std::nullopt);
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool welcomed_ = false;
    std::optional<wire::JobState> state_;
    absl::Status closed_;
};

// How the job goes, for a person at a terminal or a program.
class Report {
public:
    explicit Report(bool json)
        : json_(json)
        , bar_(!json && isatty(STDERR_FILENO) == 1) {}

    void progress(uint64_t done, uint64_t total) const {
        if (json_) print({{"phase", "quantize"}, {"done", done}, {"total", total}});
        if (!bar_ || total == 0) return;
        const std::string filled(kBarColumns * done / total, '#');
        fmt::print(stderr, "\r\x1b[Kquantizing [{:.<{}}] {}% of {}", filled, kBarColumns, 100 * done / total,
                   human_bytes(total));
        std::fflush(stderr);
    }
    int finished(const Digest & layer, uint64_t bytes) const {
        clear();
        if (json_)
            print({{"finished", true}, {"digest", layer.to_string()}, {"size", bytes}});
        else
            fmt::print("{}  {}\n", layer.to_string(), human_bytes(bytes));
        return 0;
    }
    int failed(const absl::Status & status, int exit_code = 1) const {
        clear();
        const std::string message(status.message());
        if (json_) {
            print({{"error", {{"code", absl::StatusCodeToString(status.code())}, {"message", message}}}});
        } else {
            fmt::print(stderr, "{}\n", message);
        }
        return exit_code;
    }

private:
    static void print(const Json & line) {
        fmt::print("{}\n", line.dump(-1, ' ', false, Json::error_handler_t::replace));
        std::fflush(stdout);
    }
    void clear() const {
        if (bar_) fmt::print(stderr, "\r\x1b[K");
    }

    const bool json_;
    const bool bar_;
};

absl::StatusOr<wire::LayerJob> order_of(const QuantizeCommand & command) {
    wire::LayerJob order;
    STRATA_ASSIGN_OR_RETURN(order.layer, Digest::parse(command.layer));
    const auto type = layers::type_named(command.type);
    if (!type) {
        return absl::InvalidArgumentError(
            fmt::format("there is no type '{}'; a layer's matrices can be made into one of {}", printable(command.type),
                        layers::quantized_types()));
    }
    order.type = *type;
    return order;
}

absl::StatusOr<std::shared_ptr<wire::Channel>> ask(wire::Network & network, const std::string & address,
                                                   const std::string & build, const wire::LayerJob & order,
                                                   const std::shared_ptr<Answers> & answers) {
    STRATA_ASSIGN_OR_RETURN(auto channel, network.connect(address, answers));
    wire::Hello hello;
    hello.build = build;
    hello.role = wire::Role::kOperator;
    hello.name = fmt::format("quantize-layer, pid {}", getpid());
    wire::FrameHeader header;
    header.type = wire::FrameType::kHello;
    channel->send(header, hello.encode());
    header.type = wire::FrameType::kLayerJob;
    channel->send(header, wire::encode(order));
    return channel;
}

} // namespace

int run_quantize(const QuantizeCommand & command) {
    const StopSignals signals;
    const Report report(command.json);
    const auto order = order_of(command);
    if (!order.ok()) return report.failed(order.status(), kWrongUse);
    const auto address = Address::parse(command.executor, wire::kDefaultExecutorPort);
    if (!address.ok()) return report.failed(address.status(), kWrongUse);

    wire::TcpNetwork network;
    const auto answers = std::make_shared<Answers>();
    const auto channel = ask(network, address->to_string(), command.build, *order, answers);
    if (!channel.ok()) return report.failed(channel.status());
    while (true) {
        const auto state = answers->next();
        if (!state.ok()) return report.failed(state.status());
        if (signals.wait(std::chrono::milliseconds(0)) != 0) {
            (*channel)->close(absl::OkStatus());
            return report.failed(absl::CancelledError("cancelled; nothing of the new layer stays"), kInterrupted);
        }
        if (!*state) continue;
        const wire::JobState & now = **state;
        if (now.phase == wire::JobPhase::kDone) return report.finished(now.layer, now.total_bytes);
        if (now.phase == wire::JobPhase::kFailed)
            return report.failed(absl::Status(now.code, printable(now.reason, now.reason.size())));
        report.progress(now.done_bytes, now.total_bytes);
    }
}

} // namespace strata::engine
