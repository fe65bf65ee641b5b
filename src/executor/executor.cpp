#include "executor/executor.h"

#include "base/text.h"
#include "wire/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace strata::executor {
namespace {

absl::Status unexpected(const wire::Frame & frame) {
    return absl::InvalidArgumentError(
        fmt::format("an unexpected frame of type {}", static_cast<int>(frame.header.type)));
}

} // namespace

// Somebody who connected: a driver, another executor, or an operator.
class Executor::Connection : public wire::ChannelHandler {
public:
    Connection(std::shared_ptr<Executor> executor, std::shared_ptr<wire::Channel> channel)
        : executor_(std::move(executor))
        , channel_(std::move(channel)) {}

    size_t max_body_bytes() const override {
        return welcome_ && role_ != wire::Role::kOperator ? wire::kMaxFrameBytes : wire::kMaxHelloBytes;
    }

    absl::Status on_frame(const wire::Frame & frame) override {
        if (!welcome_) return on_hello(frame);
        if (session_ != nullptr) return session_->on_frame(frame);
        auto body = frame.body();
        if (role_ == wire::Role::kPeer && frame.header.type == wire::FrameType::kPush) {
            STRATA_ASSIGN_OR_RETURN(const wire::PushHead head, wire::decode_push(body));
            // Pushes for a lane that ended here are nothing unusual.
            if (const auto session = executor_->session(head.token)) return session->on_push(head.tag, frame, body);
            return absl::OkStatus();
        }
        if (role_ == wire::Role::kPeer && frame.header.type == wire::FrameType::kBlobRequest) return send_blob(body);
        if (role_ == wire::Role::kOperator && frame.header.type == wire::FrameType::kLayerJob) {
            STRATA_ASSIGN_OR_RETURN(const wire::LayerJob job, wire::decode_layer_job(body));
            return executor_->layer_jobs_.start(job, channel_);
        }
        return unexpected(frame);
    }

    void on_closed(const absl::Status & reason) override {
        if (role_ == wire::Role::kOperator) executor_->layer_jobs_.leave(*channel_);
        if (session_ == nullptr) {
            if (absl::IsUnauthenticated(reason)) executor_->log(std::string(reason.message()));
            return;
        }
        executor_->log(fmt::format("{} left after {} graphs: {}", channel_->peer(), session_->status().graphs,
                                   std::string(reason.message())));
        executor_->close_session(session_);
    }

private:
    absl::Status on_hello(const wire::Frame & frame) {
        if (frame.header.type != wire::FrameType::kHello) return unexpected(frame);
        STRATA_ASSIGN_OR_RETURN(const wire::Hello hello, wire::Hello::decode(frame.body()));
        if (hello.build != executor_->options_.build) {
            return absl::FailedPreconditionError(
                fmt::format("this executor is {}, not {}: all engines of a lane are of one build",
                            executor_->options_.build, printable(hello.build)));
        }
        role_ = hello.role;
        if (role_ == wire::Role::kDriver) {
            STRATA_ASSIGN_OR_RETURN(session_, executor_->open_session(hello, channel_));
        }
        welcome_ = true;
        wire::FrameHeader header;
        header.type = wire::FrameType::kWelcome;
        channel_->send(header, executor_->welcome());
        return absl::OkStatus();
    }

    absl::Status send_blob(std::span<const uint8_t> body) {
        STRATA_ASSIGN_OR_RETURN(const wire::BlobHead asked, wire::decode_blob_request(body));
        executor_->transfers().find(asked.digest, [channel = channel_, asked](const std::shared_ptr<Blob> & blob) {
            const auto bytes = blob == nullptr ? std::span<const uint8_t>() : blob->bytes();
            wire::BlobHead head = asked;
            head.offset = std::min<uint64_t>(asked.offset, bytes.size()); // of what it does not have, the end
            head.total_bytes = bytes.size();
            const auto encoded = wire::encode(head);
            const auto piece =
                bytes.subspan(head.offset, std::min<uint64_t>(kBlobPieceBytes, bytes.size() - head.offset));
            wire::FrameHeader header;
            header.type = wire::FrameType::kBlob;
            channel->send(header, std::array{std::span<const uint8_t>(encoded)}, {piece, blob});
        });
        return absl::OkStatus();
    }

    const std::shared_ptr<Executor> executor_;
    const std::shared_ptr<wire::Channel> channel_;
    bool welcome_ = false;
    wire::Role role_{}; // of the hello
    std::shared_ptr<Session> session_;
};

// Our connection to another executor that may have blobs.
class Executor::BlobLink : public wire::ChannelHandler {
public:
    BlobLink(std::weak_ptr<Executor> executor, std::string address)
        : executor_(std::move(executor))
        , address_(std::move(address)) {}

    size_t max_body_bytes() const override { return wire::kMaxFrameBytes; }
    absl::Status on_frame(const wire::Frame & frame) override {
        if (frame.header.type == wire::FrameType::kWelcome) return absl::OkStatus();
        const auto executor = executor_.lock();
        if (executor == nullptr) return absl::CancelledError("ended");
        if (frame.header.type != wire::FrameType::kBlob) return unexpected(frame);
        auto data = frame.body();
        STRATA_ASSIGN_OR_RETURN(const wire::BlobHead head, wire::decode_blob(data));
        executor->transfers().add_from_peer(address_, head, data);
        return absl::OkStatus();
    }
    void on_closed(const absl::Status & reason) override {
        if (const auto executor = executor_.lock()) executor->forget_blob_link(address_, this, reason);
    }

private:
    const std::weak_ptr<Executor> executor_;
    const std::string address_;
};

Executor::Executor(wire::Network & network, ExecutorOptions options, std::vector<std::unique_ptr<Device>> devices)
    : network_(network)
    , options_(std::move(options))
    , unnamed_blobs_(options_.folder)
    , blobs_(options_.kept_blobs_bytes)
    , devices_(std::move(devices))
    , transfers_(
          *options_.runtime, blobs_,
          options_.store != nullptr ? *options_.store : static_cast<BlobStore &>(unnamed_blobs_), unnamed_blobs_,
          [this](const std::string & address, const Digest & digest, uint64_t offset) {
              return ask_peer(address, digest, offset);
          },
          [this](const std::string & line) { log(line); })
    , layer_jobs_(*options_.runtime, options_.store.get(), cpu(), [this](const std::string & line) { log(line); }) {}

// Nothing works for a session or a job any more when what it uses here ends.
Executor::~Executor() {
    for (const auto & device : devices_) device->stop();
}

Device & Executor::cpu() const {
    const auto found = std::ranges::find_if(devices_, [](const auto & device) {
        return ggml_backend_dev_type(device->traits().device) == GGML_BACKEND_DEVICE_TYPE_CPU;
    });
    return found == devices_.end() ? *devices_.front() : **found;
}

std::shared_ptr<wire::ChannelHandler> Executor::on_connection(std::shared_ptr<wire::Channel> channel) {
    return std::make_shared<Connection>(shared_from_this(), std::move(channel));
}

absl::StatusOr<std::shared_ptr<Session>> Executor::open_session(const wire::Hello & hello,
                                                                const std::shared_ptr<wire::Channel> & channel) {
    if (hello.device >= devices_.size()) {
        return absl::NotFoundError(fmt::format("there is no device {} here, only {}", hello.device, devices_.size()));
    }
    Device & device = *devices_[hello.device];
    auto session = std::make_shared<Session>(*this, device, channel, hello, options_);
    const std::lock_guard lock(mutex_);
    if (!sessions_.emplace(hello.token, session).second) return absl::AlreadyExistsError("this lane is here already");
    device.add(session);
    log(fmt::format("{} ({}) came", channel->peer(), printable(hello.name)));
    return session;
}

void Executor::close_session(const std::shared_ptr<Session> & session) {
    session->end();
    transfers_.leave(*session);
    const std::lock_guard lock(mutex_);
    sessions_.erase(session->token());
}

std::shared_ptr<Blob> Executor::blob_here(const Digest & digest, uint64_t bytes) {
    auto blob = blobs_.find(digest);
    return blob != nullptr && blob->bytes().size() == bytes ? std::move(blob) : nullptr;
}

uint64_t Executor::memory_limit(const Device & device) const {
    if (device.traits().memory == nullptr) return options_.memory_limit_bytes;
    return std::min(device.memory_bytes(), options_.device_memory_limit_bytes);
}

std::shared_ptr<Session> Executor::session(const wire::Token & token) const {
    const std::lock_guard lock(mutex_);
    const auto found = sessions_.find(token);
    return found == sessions_.end() ? nullptr : found->second;
}

std::vector<uint8_t> Executor::welcome() const {
    wire::Welcome welcome;
    welcome.build = options_.build;
    welcome.name = options_.name;
    for (const auto & device : devices_) {
        ggml_backend_dev_t dev = device->traits().device;
        wire::DeviceInfo info;
        info.name = ggml_backend_dev_name(dev);
        info.description = std::string_view(ggml_backend_dev_description(dev)).substr(0, 200);
        info.memory_bytes = device->memory_bytes();
        info.free_bytes = std::min(device->free_bytes(), memory_limit(*device));
        info.alignment = static_cast<uint32_t>(ggml_backend_buft_get_alignment(ggml_backend_dev_buffer_type(dev)));
        info.threads = static_cast<uint16_t>(device->threads());
        welcome.devices.push_back(std::move(info));
    }
    return welcome.encode();
}

// -------------------- peers

absl::StatusOr<std::shared_ptr<wire::Channel>> Executor::connect_peer(const std::string & address,
                                                                      std::shared_ptr<wire::ChannelHandler> handler) {
    STRATA_ASSIGN_OR_RETURN(auto channel, network_.connect(address, std::move(handler)));
    wire::Hello hello;
    hello.build = options_.build;
    hello.role = wire::Role::kPeer;
    hello.name = options_.name;
    wire::FrameHeader header;
    header.type = wire::FrameType::kHello;
    channel->send(header, hello.encode());
    return channel;
}

absl::StatusOr<std::shared_ptr<wire::Channel>> Executor::blob_link(const std::string & address) {
    const std::lock_guard lock(mutex_);
    auto & [link, channel] = blob_links_[address];
    if (channel != nullptr) return channel;
    auto made = std::make_shared<BlobLink>(weak_from_this(), address);
    auto connected = connect_peer(address, made);
    if (!connected.ok()) {
        blob_links_.erase(address);
        return connected.status();
    }
    link = made.get();
    channel = *connected;
    return channel;
}

void Executor::forget_blob_link(const std::string & address, const BlobLink * link, const absl::Status & reason) {
    log(fmt::format("peer {}: {}", address, std::string(reason.message())));
    {
        const std::lock_guard lock(mutex_);
        const auto found = blob_links_.find(address);
        if (found != blob_links_.end() && found->second.first == link) blob_links_.erase(found);
    }
    transfers_.peer_lost(address, reason);
}

absl::Status Executor::ask_peer(const std::string & address, const Digest & digest, uint64_t offset) {
    STRATA_ASSIGN_OR_RETURN(const auto channel, blob_link(address));
    wire::FrameHeader header;
    header.type = wire::FrameType::kBlobRequest;
    channel->send(header, wire::encode(wire::BlobHead{digest, offset, 0}));
    return absl::OkStatus();
}

Executor::Status Executor::status() const {
    Status status;
    status.name = options_.name;
    status.blobs = blobs_.totals();
    const std::lock_guard lock(mutex_);
    for (const auto & [token, session] : sessions_) status.sessions.push_back(session->status());
    return status;
}

} // namespace strata::executor
