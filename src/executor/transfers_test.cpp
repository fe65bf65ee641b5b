#include "executor/transfers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <numeric>

namespace strata::executor {
namespace {

using testing::HasSubstr;

const std::vector<uint8_t> kBytes = [] {
    std::vector<uint8_t> bytes(100);
    std::iota(bytes.begin(), bytes.end(), uint8_t{0});
    return bytes;
}();
const Digest kDigest = Digest::of(std::as_bytes(std::span(kBytes)));

wire::OfferBlob offer(bool from_driver, std::vector<std::string> sources = {}) {
    return {1, kDigest, kBytes.size(), from_driver, false, {}, std::move(sources)};
}

// A store with what is put into it.
class FakeStore : public BlobStore {
public:
    std::map<Digest, absl::StatusOr<std::vector<uint8_t>>> blobs;

    absl::StatusOr<MappedBytes> open(const Digest & digest, uint64_t bytes) override {
        const auto found = blobs.find(digest);
        if (found == blobs.end()) return absl::NotFoundError("not in the store");
        if (!found->second.ok()) return found->second.status();
        if (bytes != 0 && bytes != found->second->size()) return absl::NotFoundError("another size");
        auto owner = std::make_shared<std::vector<uint8_t>>(*found->second);
        return MappedBytes{*owner, owner};
    }
    absl::StatusOr<std::unique_ptr<Writer>> create(const std::optional<Digest> & digest, uint64_t bytes) override {
        if (full) return absl::ResourceExhaustedError("the disk is full");
        return unnamed_.create(digest, bytes);
    }
    bool full = false;

private:
    UnnamedBlobs unnamed_{testing::TempDir()};
};

// A session: what it is asked and told, in order.
class Session : public Transfers::Waiter {
public:
    void ask_driver(const wire::OfferBlob &) override { add("ask"); }
    void arrived(const wire::OfferBlob & offer, const absl::StatusOr<std::shared_ptr<Blob>> & blob) override {
        EXPECT_EQ(offer.digest, kDigest);
        if (blob.ok()) {
            EXPECT_THAT((*blob)->bytes(), testing::ElementsAreArray(kBytes));
            add("here");
        } else {
            add(std::string(blob.status().message()));
        }
    }
    // The next thing that happens; empty when nothing does.
    std::string next() {
        std::unique_lock lock(mutex_);
        if (!changed_.wait_for(lock, std::chrono::seconds(10), [&] { return !events_.empty(); })) return "";
        std::string event = std::move(events_.front());
        events_.pop_front();
        return event;
    }

private:
    void add(std::string event) {
        {
            const std::lock_guard lock(mutex_);
            events_.push_back(std::move(event));
        }
        changed_.notify_all();
    }
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::string> events_;
};

class TransfersTest : public testing::Test {
protected:
    std::string next_request() {
        std::unique_lock lock(mutex_);
        if (!changed_.wait_for(lock, std::chrono::seconds(10), [&] { return !requests_.empty(); })) return "";
        std::string request = std::move(requests_.front());
        requests_.pop_front();
        return request;
    }
    void send(const Session & session, size_t from, size_t bytes, const std::vector<uint8_t> & data = kBytes) {
        transfers_.add_from_driver(session, {kDigest, from, kBytes.size()}, std::span(data).subspan(from, bytes));
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::string> requests_; // "address offset"
    FakeStore kept_, unnamed_;
    BlobCache cache_{UINT64_MAX};
    Transfers transfers_{Runtime::real(),
                         cache_,
                         kept_,
                         unnamed_,
                         [this](const std::string & address, const Digest &, uint64_t offset) {
                             if (address == "unreachable") return absl::UnavailableError("no way there");
                             {
                                 const std::lock_guard lock(mutex_);
                                 requests_.push_back(address + " " + std::to_string(offset));
                             }
                             changed_.notify_all();
                             return absl::OkStatus();
                         },
                         [](const std::string &) {}};
    const std::shared_ptr<Session> session_ = std::make_shared<Session>();
};

TEST_F(TransfersTest, TheStoreIsLookedIntoFirst) {
    kept_.blobs[kDigest] = kBytes;
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "here");
}

TEST_F(TransfersTest, ADamagedBlobInTheStoreIsFetchedAgain) {
    kept_.blobs[kDigest] = absl::DataLossError("damaged");
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    send(*session_, 0, 100);
    EXPECT_EQ(session_->next(), "here");
}

TEST_F(TransfersTest, TheDriverSendsPieces) {
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    send(*session_, 0, 60);
    send(*session_, 60, 40);
    EXPECT_EQ(session_->next(), "here");
    transfers_.want(offer(false), session_); // it is in memory now
    EXPECT_EQ(session_->next(), "here");
}

TEST_F(TransfersTest, NobodyHasIt) {
    transfers_.want(offer(false), session_);
    EXPECT_THAT(session_->next(), HasSubstr("nobody has blob sha256:"));
    transfers_.want(offer(false, {"unreachable"}), session_);
    EXPECT_THAT(session_->next(), HasSubstr("no way there"));
}

TEST_F(TransfersTest, WrongBytesAreNamedAndFetchedElsewhere) {
    transfers_.want(offer(true, {"a", "b"}), session_);
    EXPECT_EQ(session_->next(), "ask");
    auto wrong = kBytes;
    wrong[3] ^= 1;
    send(*session_, 0, 100, wrong);
    EXPECT_EQ(next_request(), "a 0");
    transfers_.add_from_peer("a", {kDigest, 0, 0}, {}); // it does not have it
    EXPECT_EQ(next_request(), "b 0");
    transfers_.add_from_peer("b", {kDigest, 0, 100}, std::span(kBytes).first(70));
    EXPECT_EQ(next_request(), "b 70");
    transfers_.add_from_peer("b", {kDigest, 70, 100}, std::span(kBytes).subspan(70));
    EXPECT_EQ(session_->next(), "here");
}

TEST_F(TransfersTest, AllSourcesFail) {
    transfers_.want(offer(false, {"a", "b", "c"}), session_);
    EXPECT_EQ(next_request(), "a 0");
    transfers_.peer_lost("a", absl::UnavailableError("gone"));
    EXPECT_EQ(next_request(), "b 0");
    transfers_.add_from_peer("a", {kDigest, 0, 100}, kBytes); // too late
    transfers_.add_from_peer("b", {kDigest, 0, 99}, std::span(kBytes).first(99));
    EXPECT_EQ(next_request(), "c 0");
    transfers_.add_from_peer("c", {kDigest, 7, 100}, std::span(kBytes).subspan(7));
    EXPECT_THAT(session_->next(), HasSubstr("out of order"));
    transfers_.want(offer(true), session_); // and may be tried again
    EXPECT_EQ(session_->next(), "ask");
}

TEST_F(TransfersTest, OneTransferForAllWhoWait) {
    const auto other = std::make_shared<Session>();
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    transfers_.want(offer(true), other);
    send(*other, 0, 100); // it was not asked
    send(*session_, 0, 100);
    EXPECT_EQ(session_->next(), "here");
    EXPECT_EQ(other->next(), "here");
}

TEST_F(TransfersTest, WhenTheSenderLeavesTheNextIsAsked) {
    const auto other = std::make_shared<Session>();
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    transfers_.want(offer(true), other);
    send(*session_, 0, 50);
    transfers_.leave(*session_);
    EXPECT_EQ(other->next(), "ask");
    send(*session_, 50, 50);
    send(*other, 0, 100);
    EXPECT_EQ(other->next(), "here");
}

TEST_F(TransfersTest, AnOfferThatIsRepeatedBeginsAnew) {
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    send(*session_, 0, 50);
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    send(*session_, 0, 100);
    EXPECT_EQ(session_->next(), "here");
}

TEST_F(TransfersTest, AFullDiskIsSaid) {
    unnamed_.full = true;
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    send(*session_, 0, 100);
    EXPECT_THAT(session_->next(), HasSubstr("the disk is full"));
}

TEST_F(TransfersTest, AnOfferWithAnotherSizeDisturbsNobody) {
    const auto liar = std::make_shared<Session>();
    auto wrong = offer(true);
    wrong.bytes = 50;
    transfers_.want(wrong, liar);
    EXPECT_EQ(liar->next(), "ask");
    transfers_.want(offer(true), session_);
    EXPECT_EQ(session_->next(), "ask");
    send(*session_, 0, 100);
    EXPECT_EQ(session_->next(), "here");
}

TEST_F(TransfersTest, PeersGetWhatIsHere) {
    const auto find = [&](const Digest & digest) {
        std::promise<std::shared_ptr<Blob>> found;
        transfers_.find(digest, [&](std::shared_ptr<Blob> blob) { found.set_value(std::move(blob)); });
        return found.get_future().get();
    };
    EXPECT_EQ(find(kDigest), nullptr);
    kept_.blobs[kDigest] = kBytes;
    ASSERT_NE(find(kDigest), nullptr);
    EXPECT_EQ(find(kDigest), cache_.find(kDigest));
}

} // namespace
} // namespace strata::executor
