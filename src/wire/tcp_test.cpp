#include "wire/limits.h"
#include "wire/tcp.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <future>
#include <random>

namespace strata::wire {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

constexpr auto kPatience = 30s;

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

class TcpTest : public testing::Test {
protected:
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

std::vector<uint8_t> random_bytes(size_t size) {
    std::mt19937_64 random(size);
    std::vector<uint8_t> bytes(size);
    for (uint8_t & byte : bytes) byte = static_cast<uint8_t>(random());
    return bytes;
}

TEST_F(TcpTest, FramesOfAllSizesArriveBothWaysInOrder) {
    connect();
    std::vector<std::vector<uint8_t>> bodies;
    for (const size_t size : {0, 1, 35, 36, 37, 4096, 65500, 65536, 1 << 20, 40 << 20, 3})
        bodies.push_back(random_bytes(size));
    for (size_t i = 0; i < bodies.size(); ++i) {
        send(*ours_, FrameType::kCommands, bodies[i], i);
        send(*theirs_, FrameType::kResult, bodies[i], i);
    }
    for (const auto & inbox : {inbox_, door_->inbox}) {
        const auto frames = inbox->wait_for(bodies.size());
        ASSERT_EQ(frames.size(), bodies.size());
        for (size_t i = 0; i < bodies.size(); ++i) {
            EXPECT_EQ(frames[i].header.sequence, i);
            EXPECT_TRUE(std::ranges::equal(frames[i].body(), bodies[i])) << bodies[i].size();
        }
    }
    const auto counters = ours_->counters();
    EXPECT_EQ(counters.frames_out, bodies.size());
    EXPECT_EQ(counters.bytes_out, counters.bytes_in);
}

TEST_F(TcpTest, BodiesAreGatheredFromPieces) {
    connect();
    const auto bytes = random_bytes(100000);
    std::vector<std::span<const uint8_t>> pieces;
    for (size_t at = 0; at < bytes.size(); at += 333)
        pieces.push_back(std::span(bytes).subspan(at, std::min<size_t>(333, bytes.size() - at)));
    FrameHeader header;
    header.type = FrameType::kPush;
    ours_->send(header, pieces);
    EXPECT_TRUE(std::ranges::equal(door_->inbox->wait_for(1)[0].body(), bytes));
}

TEST_F(TcpTest, FramesOfSeveralThreadsStayWhole) {
    connect();
    std::vector<std::thread> threads;
    for (uint8_t t = 0; t < 4; ++t) {
        threads.emplace_back([&, t] {
            for (int i = 0; i < 500; ++i)
                send(*ours_, FrameType::kPush, std::vector<uint8_t>(1 + static_cast<size_t>(i) * 37, t));
        });
    }
    for (auto & thread : threads) thread.join();
    for (const Frame & frame : door_->inbox->wait_for(2000)) {
        const auto body = frame.body();
        EXPECT_TRUE(std::ranges::all_of(body, [&](uint8_t byte) { return byte == body[0]; }));
    }
}

TEST_F(TcpTest, ASenderDoesNotWaitForAReaderThatStalls) {
    std::promise<void> go_on;
    door_->inbox->hold_ = go_on.get_future().share();
    connect();
    const auto body = random_bytes(1 << 20);
    for (uint64_t i = 0; i < 64; ++i) send(*ours_, FrameType::kPush, body, i);
    EXPECT_GT(ours_->queued_bytes(), size_t{16} << 20);
    // The other direction goes on.
    send(*theirs_, FrameType::kResult, body);
    EXPECT_TRUE(std::ranges::equal(inbox_->wait_for(1)[0].body(), body));
    go_on.set_value();
    const auto frames = door_->inbox->wait_for(64);
    for (uint64_t i = 0; i < 64; ++i) {
        EXPECT_EQ(frames[i].header.sequence, i);
        EXPECT_TRUE(std::ranges::equal(frames[i].body(), body));
    }
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (ours_->queued_bytes() > 0 && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(ours_->queued_bytes(), 0);
}

TEST_F(TcpTest, FramesSentAtOnceWaitForTheConnection) {
    auto channel = client_.connect(address_, inbox_);
    ASSERT_TRUE(channel.ok());
    send(**channel, FrameType::kHello, random_bytes(10));
    EXPECT_EQ(door_->inbox->wait_for(1)[0].header.body_bytes, 10);
}

TEST_F(TcpTest, ClosingEndsBothSides) {
    connect();
    ours_->close(absl::OkStatus());
    EXPECT_EQ(door_->inbox->wait_for_end().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(inbox_->wait_for_end().code(), absl::StatusCode::kCancelled);
    send(*ours_, FrameType::kPush, random_bytes(10)); // is dropped
    send(*theirs_, FrameType::kPush, random_bytes(10));
}

TEST_F(TcpTest, ARefusalSaysWhy) {
    door_->inbox->answer_ = [](const Frame &) { return absl::InvalidArgumentError("there is no such thing as 17"); };
    connect();
    send(*ours_, FrameType::kCommands, random_bytes(10));
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr("there is no such thing as 17"));
    EXPECT_THAT(door_->inbox->wait_for_end().message(), HasSubstr("there is no such thing as 17"));
}

TEST_F(TcpTest, ARefusalArrivesWhileThePeerSends) {
    door_->inbox->answer_ = [](const Frame & frame) {
        return frame.header.sequence == 3 ? absl::InvalidArgumentError("not the third") : absl::OkStatus();
    };
    connect();
    for (uint64_t i = 0; i < 40; ++i) send(*ours_, FrameType::kPush, random_bytes(1 << 20), i);
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr("not the third"));
}

TEST_F(TcpTest, ControlBytesOfARefusalAreNotPrinted) {
    connect();
    theirs_->close(absl::InvalidArgumentError("\x1b[2J\n"));
    EXPECT_THAT(inbox_->wait_for_end().message(), testing::Not(HasSubstr("\x1b")));
}

TEST_F(TcpTest, ALargeFrameIsRefusedFromItsHead) {
    door_->inbox->max_body_bytes_ = 100;
    connect();
    send(*ours_, FrameType::kPush, random_bytes(100));
    send(*ours_, FrameType::kPush, random_bytes(101));
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr("a frame of 101 bytes, at most 100"));
    EXPECT_EQ(door_->inbox->wait_for(1).size(), 1);
}

TEST_F(TcpTest, APeerThatVanishesIsNoticed) {
    {
        const UniqueFd fd = raw_socket();
        FrameHeader header;
        header.type = FrameType::kPush;
        header.body_bytes = 1000;
        const auto head = header.encode();
        ASSERT_EQ(write(fd.get(), head.data(), head.size()), static_cast<ssize_t>(head.size()));
    }
    EXPECT_THAT(door_->inbox->wait_for_end().message(), HasSubstr("ended the connection"));
    EXPECT_TRUE(door_->inbox->wait_for(0).empty());
}

TEST_F(TcpTest, WhoSaysNothingIsCutOff) {
    const UniqueFd fd = raw_socket();
    EXPECT_THAT(door_->inbox->wait_for_end().message(), HasSubstr("sent no frame in time"));
}

TEST_F(TcpTest, NobodyThere) {
    TcpNetwork other;
    const auto gone = other.listen("127.0.0.1:0", door_);
    ASSERT_TRUE(gone.ok());
    ASSERT_TRUE(client_.connect("127.0.0.1:1", inbox_).ok());
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr("127.0.0.1:1"));
    const auto another = std::make_shared<Inbox>();
    ASSERT_TRUE(client_.connect("no-such-host.invalid:5", another).ok());
    EXPECT_THAT(another->wait_for_end().message(), HasSubstr("no-such-host.invalid"));
}

TEST_F(TcpTest, ListensOnLoopbackOnly) {
    for (const auto * text : {"0.0.0.0:0", "[::]:0", "192.0.2.1:7430", "example.org:7430"}) {
        EXPECT_EQ(server_.listen(text, door_).status().code(), absl::StatusCode::kPermissionDenied) << text;
    }
    EXPECT_EQ(server_.listen("nonsense:port", door_).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(server_.listen(address_, door_).status().message(), HasSubstr(address_)); // is taken
}

TEST_F(TcpTest, TheEndOfANetworkEndsItsConnections) {
    auto network = std::make_unique<TcpNetwork>();
    const auto inbox = std::make_shared<Inbox>();
    const auto channel = network->connect(address_, inbox);
    ASSERT_TRUE(channel.ok());
    door_->channels.get_future().wait();
    network.reset();
    EXPECT_FALSE(inbox->wait_for_end().ok());
    EXPECT_FALSE(door_->inbox->wait_for_end().ok());
}

} // namespace
} // namespace strata::wire
