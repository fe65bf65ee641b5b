#include "wire/tcp_testing.h"
#include "wire/tls_testing.h"

#include <gmock/gmock.h>

namespace strata::wire {
namespace {

using testing::HasSubstr;
using namespace std::chrono_literals;

class TlsOrNotTest : public TcpTest, public testing::WithParamInterface<bool> {
protected:
    TlsOrNotTest()
        : TcpTest(tls()) {}

    static std::shared_ptr<const TlsContext> tls() {
        static const TestCa ca("mesh");
        return GetParam() ? ca.context("engine") : nullptr;
    }
};

INSTANTIATE_TEST_SUITE_P(Wire, TlsOrNotTest, testing::Bool(),
                         [](const auto & info) { return info.param ? "Tls" : "Plain"; });

TEST_P(TlsOrNotTest, FramesOfAllSizesArriveBothWaysInOrder) {
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
    ours_->close(absl::OkStatus());
    EXPECT_FALSE(door_->inbox->wait_for_end().ok());
    const auto sent = ours_->counters(), received = theirs_->counters();
    EXPECT_GE(sent.frames_out, bodies.size()); // there may be pings
    EXPECT_EQ(sent.frames_out, received.frames_in);
    EXPECT_EQ(sent.bytes_out, received.bytes_in);
}

TEST_P(TlsOrNotTest, BodiesAreGatheredFromPieces) {
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

TEST_P(TlsOrNotTest, FramesOfSeveralThreadsStayWhole) {
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

TEST_P(TlsOrNotTest, ASenderDoesNotWaitForAReaderThatStalls) {
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

TEST_P(TlsOrNotTest, FramesSentAtOnceWaitForTheConnection) {
    auto channel = client_.connect(address_, inbox_);
    ASSERT_TRUE(channel.ok());
    send(**channel, FrameType::kHello, random_bytes(10));
    EXPECT_EQ(door_->inbox->wait_for(1)[0].header.body_bytes, 10);
}

TEST_P(TlsOrNotTest, ClosingEndsBothSides) {
    connect();
    ours_->close(absl::OkStatus());
    EXPECT_EQ(door_->inbox->wait_for_end().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(inbox_->wait_for_end().code(), absl::StatusCode::kCancelled);
    send(*ours_, FrameType::kPush, random_bytes(10)); // is dropped
    send(*theirs_, FrameType::kPush, random_bytes(10));
}

TEST_P(TlsOrNotTest, ARefusalSaysWhy) {
    door_->inbox->answer_ = [](const Frame &) { return absl::InvalidArgumentError("there is no such thing as 17"); };
    connect();
    send(*ours_, FrameType::kCommands, random_bytes(10));
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr("there is no such thing as 17"));
    EXPECT_THAT(door_->inbox->wait_for_end().message(), HasSubstr("there is no such thing as 17"));
}

TEST_P(TlsOrNotTest, ARefusalArrivesWhileThePeerSends) {
    door_->inbox->answer_ = [](const Frame & frame) {
        return frame.header.sequence == 3 ? absl::InvalidArgumentError("not the third") : absl::OkStatus();
    };
    connect();
    for (uint64_t i = 0; i < 40; ++i) send(*ours_, FrameType::kPush, random_bytes(1 << 20), i);
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr("not the third"));
}

TEST_P(TlsOrNotTest, ControlBytesOfARefusalAreNotPrinted) {
    connect();
    theirs_->close(absl::InvalidArgumentError("\x1b[2J\n"));
    EXPECT_THAT(inbox_->wait_for_end().message(), testing::Not(HasSubstr("\x1b")));
}

TEST_P(TlsOrNotTest, ALargeFrameIsRefusedFromItsHead) {
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

TEST_P(TlsOrNotTest, TheEndOfANetworkEndsItsConnections) {
    auto network = std::make_unique<TcpNetwork>(tls());
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
