#include "wire/message.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace strata::wire {
namespace {

const std::vector<uint8_t> kData = {1, 2, 3, 4, 5};
const Token kToken = {9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 4, 5, 6};

// One of each, in the order of Command.
std::vector<Command> all_commands() {
    return {NewBuffer{7, {4096, 100}},
            FreeBuffer{7},
            SetBytes{4096, kData},
            FillBytes{{4096, 3}, 0xAB},
            CopyBytes{4100, {4096, 4}},
            DropBytes{{UINT64_MAX - 5, 5}},
            BindWeight{8192, Digest::of("blob"), 64, 2, {32, 4, 1, 1}},
            UnbindWeight{8192, true},
            DefineGraph{kToken, kData},
            ForgetGraphs{},
            Compute{kToken},
            Push{3, 44, {{4096, 8}, {5000, 1}}},
            Expect{44, {{4096, 8}, {5000, 1}}},
            Read{1, {{4096, 100}}},
            SetPeer{2, "127.0.0.1:7430", kToken},
            OfferBlob{3,
                      Digest::of("blob"),
                      1000,
                      true,
                      true,
                      {{64, 100, Digest::of("a")}, {164, 836, Digest::of("b")}},
                      {"127.0.0.1:7430", "127.0.0.1:7431"}},
            Prepare{kToken, true}};
}

std::vector<uint8_t> encoded(const std::vector<Command> & commands) {
    Writer writer;
    for (const Command & command : commands) encode(writer, command);
    return writer.take();
}

TEST(Commands, AreAllHere) {
    const auto commands = all_commands();
    ASSERT_EQ(commands.size(), std::variant_size_v<Command>);
    for (size_t i = 0; i < commands.size(); ++i) EXPECT_EQ(commands[i].index(), i);
}

TEST(Commands, RoundTrip) {
    for (const Command & command : all_commands()) {
        const auto bytes = encoded({command});
        const auto decoded = decode_commands(bytes);
        ASSERT_TRUE(decoded.ok()) << "kind " << command.index() + 1 << ": " << decoded.status();
        ASSERT_EQ(decoded->size(), 1);
        EXPECT_EQ(decoded->front().index(), command.index());
        EXPECT_EQ(encoded(*decoded), bytes);
    }
    const auto bytes = encoded(all_commands());
    const auto decoded = decode_commands(bytes);
    ASSERT_TRUE(decoded.ok());
    EXPECT_EQ(encoded(*decoded), bytes);
    const auto & bind = std::get<BindWeight>((*decoded)[6]);
    EXPECT_EQ(bind.blob, Digest::of("blob"));
    EXPECT_EQ(bind.offset, 64);
    const auto & offer = std::get<OfferBlob>((*decoded)[15]);
    EXPECT_THAT(offer.parts,
                testing::ElementsAre(BlobPart{64, 100, Digest::of("a")}, BlobPart{164, 836, Digest::of("b")}));
    EXPECT_THAT(offer.sources, testing::ElementsAre("127.0.0.1:7430", "127.0.0.1:7431"));
    EXPECT_TRUE(offer.from_driver && offer.keep);
    EXPECT_THAT(std::get<Push>((*decoded)[11]).from, testing::ElementsAre(Segment{4096, 8}, Segment{5000, 1}));
    EXPECT_THAT(std::get<SetBytes>((*decoded)[2]).data, testing::ElementsAreArray(kData));
}

TEST(Commands, AreRefusedWhenTheyEndEarly) {
    for (const Command & command : all_commands()) {
        const auto bytes = encoded({command});
        for (size_t size = 1; size < bytes.size(); ++size) {
            EXPECT_FALSE(decode_commands(std::span(bytes).first(size)).ok())
                << "kind " << command.index() + 1 << " of " << size;
        }
    }
}

TEST(Commands, HostileNumbersAreRefused) {
    const std::vector<Command> hostile = {
        NewBuffer{1, {UINT64_MAX - 15, 16}}, // wraps
        NewBuffer{1, {4096, 0}},             // empty
        NewBuffer{1, {1, UINT64_MAX}},
        FillBytes{{UINT64_MAX, 1}, 0},
        CopyBytes{UINT64_MAX - 3, {4096, 4}}, // the target wraps
        DropBytes{{0, 0}},
        Push{0, 1, {}},                           // nothing
        Read{1, {{0, UINT64_MAX}, {4096, 4096}}}, // the sum wraps
        Expect{1, {{4096, 8}, {UINT64_MAX, 2}}},
        SetPeer{1, std::string(256, 'a'), kToken},
        OfferBlob{3, Digest(), 0, true, false, {}, {}},
        OfferBlob{3, Digest(), 10, true, false, {{4, 7, Digest()}}, {}}, // a part beyond the end
        OfferBlob{3, Digest(), 10, true, false, {{11, UINT64_MAX, Digest()}}, {}},
        OfferBlob{3, Digest(), 10, true, false, {{0, 0, Digest()}}, {}},
        OfferBlob{3, Digest(), 10, true, false, {{0, 6, Digest()}, {5, 5, Digest()}}, {}}, // an overlap
        OfferBlob{3, Digest(), 10, true, false, {}, std::vector<std::string>(257)},
    };
    for (const Command & command : hostile) {
        EXPECT_FALSE(decode_commands(encoded({command})).ok()) << "kind " << command.index() + 1;
    }
    for (const uint8_t number : {0, 17, 255}) EXPECT_FALSE(decode_commands(std::vector<uint8_t>{number}).ok());
    // Counts that the frame can't hold, before anything is allocated for them.
    for (const Command & command : {all_commands()[11], all_commands()[12], all_commands()[13]}) {
        auto bytes = encoded({command});
        const size_t count_at = 1 + (command.index() == 11 ? 10 : 8);
        std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(count_at), 4, 0xFF);
        EXPECT_FALSE(decode_commands(bytes).ok());
    }
    auto keep = encoded({UnbindWeight{1, true}});
    keep.back() = 2;
    EXPECT_FALSE(decode_commands(keep).ok());
    EXPECT_TRUE(decode_commands({})->empty());
}

// Whatever is accepted means what its bytes say: written again, it is the same.
TEST(Commands, MutationsAreRefusedOrUnderstood) {
    std::mt19937_64 random(1);
    const auto original = encoded(all_commands());
    size_t accepted = 0;
    for (int round = 0; round < 50000; ++round) {
        auto bytes = original;
        for (uint64_t n = random() % 4; n < 4; ++n) bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
        if (random() % 4 == 0) bytes.resize(random() % bytes.size());
        const auto decoded = decode_commands(bytes);
        if (!decoded.ok()) continue;
        ++accepted;
        ASSERT_EQ(encoded(*decoded), bytes) << "round " << round;
    }
    EXPECT_GT(accepted, 1000);
}

// -------------------- documents

// Encodes again what is decoded, and refuses every shorter form, and a longer one.
template <typename Decode>
void check_whole(const std::vector<uint8_t> & bytes, Decode decode) {
    const auto again = decode(bytes);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, bytes);
    for (size_t size = 0; size < bytes.size(); ++size) EXPECT_FALSE(decode(std::span(bytes).first(size)).ok()) << size;
    auto longer = bytes;
    longer.push_back(0);
    EXPECT_FALSE(decode(longer).ok());
}

template <typename Message>
absl::StatusOr<std::vector<uint8_t>> again(absl::StatusOr<Message> message) {
    if (!message.ok()) return message.status();
    if constexpr (requires { message->encode(); })
        return message->encode();
    else
        return encode(*message);
}

TEST(Messages, RoundTrip) {
    using Bytes = std::span<const uint8_t>;
    check_whole(Hello{"strata-0.1", Role::kPeer, kToken, 3, "a name"}.encode(),
                [](Bytes b) { return again(Hello::decode(b)); });
    check_whole(Hello{}.encode(), [](Bytes b) { return again(Hello::decode(b)); });
    const DeviceInfo device{"CPU", "a processor", 1 << 30, 1 << 20, 64, 2};
    check_whole(Welcome{"strata-0.1", "node", {device, device}}.encode(),
                [](Bytes b) { return again(Welcome::decode(b)); });
    check_whole(encode(Progress{1, 2, 3}), [](Bytes b) { return again(decode_progress(b)); });
    check_whole(encode(Skip{5}), [](Bytes b) { return again(decode_skip(b)); });
    check_whole(encode(BlobAnswer{5, Digest::of("w"), BlobState::kMissing, "no"}),
                [](Bytes b) { return again(decode_blob_answer(b)); });
    check_whole(encode(LayerJob{7, JobKind::kQuantize, Digest::of("l"), 2}),
                [](Bytes b) { return again(decode_layer_job(b)); });
    for (const JobState & state :
         {JobState{7, JobPhase::kRuns, 1, 9, {}, absl::StatusCode::kOk, ""},
          JobState{7, JobPhase::kDone, 9, 9, Digest::of("new"), absl::StatusCode::kOk, ""},
          JobState{7, JobPhase::kFailed, 0, 0, {}, absl::StatusCode::kUnauthenticated, "why"}}) {
        check_whole(encode(state), [](Bytes b) { return again(decode_job_state(b)); });
    }
    check_whole(encode(BlobHead{Digest::of("w"), 8, 0}), [](Bytes b) { return again(decode_blob_request(b)); });
}

TEST(Messages, HostileHellosAreRefused) {
    auto hello = Hello{"b", Role::kDriver, kToken, 0, "n"}.encode();
    for (const uint8_t role : {0, 4, 255}) {
        hello[3] = role;
        EXPECT_FALSE(Hello::decode(hello).ok());
    }
    EXPECT_FALSE(Hello::decode(Hello{std::string(256, 'b'), Role::kDriver, kToken, 0, "n"}.encode()).ok());
    EXPECT_FALSE(Hello::decode(Hello{"b", Role::kDriver, kToken, 0, std::string(256, 'n')}.encode()).ok());
    EXPECT_FALSE(Welcome::decode(Welcome{"b", "n", std::vector<DeviceInfo>(65)}.encode()).ok());
    auto answer = encode(BlobAnswer{5, Digest::of("w"), BlobState::kHave, ""});
    for (const uint8_t state : {0, 4}) {
        answer[4 + Digest::kBytes] = state;
        EXPECT_FALSE(decode_blob_answer(answer).ok());
    }
}

TEST(Messages, HostileLayerJobsAreRefused) {
    for (const uint8_t kind : {0, 2, 255}) {
        EXPECT_FALSE(decode_layer_job(encode(LayerJob{1, static_cast<JobKind>(kind), Digest::of("l"), 2})).ok());
    }
    using absl::StatusCode;
    for (const JobState & wrong :
         {JobState{1, static_cast<JobPhase>(0), 1, 9, {}, StatusCode::kOk, ""},
          JobState{1, static_cast<JobPhase>(4), 1, 9, {}, StatusCode::kOk, ""},
          JobState{1, JobPhase::kRuns, 10, 9, {}, StatusCode::kOk, ""},
          JobState{1, JobPhase::kRuns, 1, 9, {}, StatusCode::kInternal, ""},
          JobState{1, JobPhase::kFailed, 1, 9, {}, StatusCode::kOk, "without a code"},
          JobState{1, JobPhase::kFailed, 1, 9, {}, static_cast<StatusCode>(17), "of an unknown code"}}) {
        EXPECT_FALSE(decode_job_state(encode(wrong)).ok()) << wrong.reason;
    }
    // A long reason is cut, not refused.
    const auto state = decode_job_state(
        encode(JobState{1, JobPhase::kFailed, 0, 0, {}, StatusCode::kNotFound, std::string(300, 'x')}));
    ASSERT_TRUE(state.ok());
    EXPECT_EQ(state->reason.size(), 255);
}

TEST(Messages, HeadsLeaveThePayload) {
    const auto with_payload = [](std::vector<uint8_t> head) {
        head.insert(head.end(), kData.begin(), kData.end());
        return head;
    };
    const auto result = with_payload(encode(ResultHead{12}));
    std::span<const uint8_t> rest = result;
    EXPECT_EQ(decode_result(rest)->id, 12);
    EXPECT_THAT(rest, testing::ElementsAreArray(kData));

    const auto push = with_payload(encode(PushHead{kToken, 99}));
    rest = push;
    const auto head = decode_push(rest);
    EXPECT_EQ(head->token, kToken);
    EXPECT_EQ(head->tag, 99);
    EXPECT_THAT(rest, testing::ElementsAreArray(kData));

    const auto blob = with_payload(encode(BlobHead{Digest::of("w"), 10, 15}));
    rest = blob;
    EXPECT_EQ(decode_blob(rest)->offset, 10);
    EXPECT_THAT(rest, testing::ElementsAreArray(kData));

    for (size_t size = 0; size < ResultHead::kBytes; ++size) {
        rest = std::span(result).first(size);
        EXPECT_FALSE(decode_result(rest).ok());
    }
    for (size_t size = 0; size <= PushHead::kBytes; ++size) { // a push of nothing is none
        rest = std::span(push).first(size);
        EXPECT_FALSE(decode_push(rest).ok());
    }
    for (size_t size = 0; size < BlobHead::kBytes; ++size) {
        rest = std::span(blob).first(size);
        EXPECT_FALSE(decode_blob(rest).ok());
    }
    // More than the blob has, by a little and by a wrap.
    for (const BlobHead & wrong : {BlobHead{Digest::of("w"), 11, 15}, BlobHead{Digest::of("w"), UINT64_MAX - 1, 2},
                                   BlobHead{Digest::of("w"), UINT64_MAX - 1, UINT64_MAX}}) {
        const auto bytes = with_payload(encode(wrong));
        rest = bytes;
        EXPECT_FALSE(decode_blob(rest).ok()) << wrong.offset;
    }
}

} // namespace
} // namespace strata::wire
