#pragma once

#include "wire/limits.h"
#include "wire/tcp.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <functional>
#include <future>
#include <optional>
#include <random>

// What the tests of connections share.
namespace strata::wire {

inline constexpr std::chrono::seconds kPatience{30};

// Keeps what arrives.
class Inbox : public ChannelHandler {
public:
    absl::Status on_frame(const Frame & frame) override {
        if (hold_.valid()) hold_.wait();
        {
            const std::lock_guard lock(mutex_);
            frames_.push_back(frame);
        }
        changed_.notify_all();
        return answer_ ? answer_(frame) : absl::OkStatus();
    }
    void on_closed(const absl::Status & reason) override {
        const std::lock_guard lock(mutex_);
        closed_ = reason;
        changed_.notify_all();
    }
    size_t max_body_bytes() const override { return max_body_bytes_; }

    std::vector<Frame> wait_for(size_t count) {
        std::unique_lock lock(mutex_);
        EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return frames_.size() >= count; })) << frames_.size();
        return frames_;
    }
    absl::Status wait_for_end() {
        std::unique_lock lock(mutex_);
        EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return closed_.has_value(); }));
        return closed_.value_or(absl::OkStatus());
    }

    std::function<absl::Status(const Frame &)> answer_;
    std::shared_future<void> hold_;
    size_t max_body_bytes_ = kMaxFrameBytes;

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<Frame> frames_;
    std::optional<absl::Status> closed_;
};

class Door : public Acceptor {
public:
    std::shared_ptr<ChannelHandler> on_connection(std::shared_ptr<Channel> channel) override {
        channels.set_value(std::move(channel));
        return inbox;
    }
    std::shared_ptr<Inbox> inbox = std::make_shared<Inbox>();
    std::promise<std::shared_ptr<Channel>> channels;
};

// A network that listens and one that connects to it.
class TcpTest : public testing::Test {
protected:
    explicit TcpTest(const std::shared_ptr<const TlsContext> & tls = nullptr)
        : server_(tls)
        , client_(tls) {}

    void SetUp() override {
        const auto address = server_.listen("127.0.0.1:0", door_);
        ASSERT_TRUE(address.ok()) << address.status();
        address_ = *address;
    }
    void connect() {
        auto channel = client_.connect(address_, inbox_);
        ASSERT_TRUE(channel.ok()) << channel.status();
        ours_ = *channel;
        theirs_ = door_->channels.get_future().get();
    }
    static void send(Channel & channel, FrameType type, std::span<const uint8_t> body, uint64_t sequence = 0) {
        FrameHeader header;
        header.type = type;
        header.sequence = sequence;
        channel.send(header, body);
    }
    // A socket as a program that is not ours would have it.
    UniqueFd raw_socket() const {
        UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        sockaddr_in to{};
        to.sin_family = AF_INET;
        to.sin_port = htons(Address::parse(address_, 0)->port);
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr *>(&to), sizeof(to)), 0);
        return fd;
    }

    std::shared_ptr<Door> door_ = std::make_shared<Door>();
    std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
    TcpNetwork server_, client_;
    std::string address_;
    std::shared_ptr<Channel> ours_, theirs_;
};

inline std::vector<uint8_t> random_bytes(size_t size) {
    std::mt19937_64 random(size);
    std::vector<uint8_t> bytes(size);
    for (uint8_t & byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
}

} // namespace strata::wire
