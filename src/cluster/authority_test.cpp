#include "base/temp_folder_testing.h"
#include "cluster/authority.h"
#include "cluster/sqlite_store.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace strata::cluster {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using strata::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// The real one, but its wall clock can be moved.
class MovedRuntime final : public Runtime, private Clock {
public:
    hours later{0};

    const Clock & clock() const override { return *this; }
    void random_bytes(std::span<uint8_t> out) override { real().random_bytes(out); }
    std::unique_ptr<Worker> start(Work work) override { return real().start(std::move(work)); }
    bool wait_for(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
                  std::chrono::nanoseconds timeout, absl::FunctionRef<bool()> done) override {
        return real().wait_for(lock, changed, timeout, done);
    }
    void wait(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
              absl::FunctionRef<bool()> done) override {
        real().wait(lock, changed, done);
    }

private:
    static Runtime & real() { return Runtime::real(); }
    std::chrono::steady_clock::time_point now() const override { return Clock::real().now(); }
    std::chrono::system_clock::time_point wall() const override { return Clock::real().wall() + later; }
};

class AuthorityTest : public ::testing::Test {
protected:
    std::unique_ptr<Authority> open(Store & store) {
        auto opened = Authority::open(store, Seal::open(folder_.path() / "seal.key").value(), runtime_);
        EXPECT_TRUE(opened.ok()) << opened.status();
        return *std::move(opened);
    }
    std::unique_ptr<Store> open_store(const char * name) {
        return SqliteStore::open(folder_.path() / name, runtime_).value();
    }

    std::string token(const TokenOptions & options = {}) {
        return authority_->create_token(options).value().to_string();
    }
    // Why a token lets nobody in; "let in" when it does.
    std::string refusal(const std::string & token) {
        const auto admission = authority_->admit(token, request_, "x");
        if (admission.ok()) return "let in";
        EXPECT_TRUE(absl::IsUnauthenticated(admission.status())) << admission.status();
        return std::string(admission.status().message());
    }
    Subject subject_of(const std::string & certificate) { return read_certificate(certificate).value().subject; }

    TempFolder folder_;
    MovedRuntime runtime_;
    const std::unique_ptr<Store> store_ = open_store("cluster.db");
    const std::unique_ptr<Authority> authority_ = open(*store_);
    const std::string request_ = make_request(make_key().value()).value();
};

TEST_F(AuthorityTest, is_one_for_all_that_open_the_store) {
    const auto second = open(*store_);
    EXPECT_EQ(second->cluster(), authority_->cluster());
    EXPECT_EQ(second->pin(), authority_->pin());
    EXPECT_EQ(pin_of(authority_->ca_certificate()).value(), authority_->pin());
    // The key is nowhere to be read.
    const Listing all = store_->list("").value();
    for (const Entry & entry : all.entries) EXPECT_THAT(entry.value, Not(HasSubstr("PRIVATE KEY")));
    const auto other_seal = Authority::open(*store_, Seal::open(folder_.path() / "other.key").value(), runtime_);
    EXPECT_TRUE(absl::IsDataLoss(other_seal.status())) << other_seal.status();
    const auto other_store = open_store("other.db");
    EXPECT_NE(open(*other_store)->cluster(), authority_->cluster());
}

TEST_F(AuthorityTest, a_token_lets_machines_in) {
    const std::string text = token();
    const auto first = authority_->admit(text, request_, "node");
    const auto second = authority_->admit(text, request_, "node");
    ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
    EXPECT_EQ(first->name, "node");
    EXPECT_EQ(second->name, "node-2");
    EXPECT_EQ(authority_->nodes()->size(), 2);
    const Subject subject = subject_of(first->certificate);
    EXPECT_EQ(subject.name, "node");
    EXPECT_EQ(subject.cluster, authority_->cluster());
    EXPECT_TRUE(authority_->check_member(subject).ok());
    EXPECT_THAT(first->certificate, HasSubstr(authority_->ca_certificate()));
    const std::string longest(63, 'a');
    EXPECT_EQ(authority_->admit(text, request_, longest)->name, longest);
    EXPECT_EQ(authority_->admit(text, request_, longest)->name, std::string(61, 'a') + "-2");
    EXPECT_TRUE(absl::IsInvalidArgument(authority_->admit(text, request_, "../x").status()));
    EXPECT_TRUE(absl::IsInvalidArgument(authority_->admit(text, "no request", "x").status()));
}

TEST_F(AuthorityTest, other_tokens_let_nobody_in) {
    const std::string good = token();
    for (const std::string & bad :
         {std::string(), std::string("x"), fmt::format("{}0", good), good.substr(1), fmt::format("../../ca{}", good)}) {
        EXPECT_THAT(refusal(bad), HasSubstr("no join token")) << bad;
    }
    std::string other_secret = good;
    other_secret[12] = other_secret[12] == '0' ? '1' : '0';
    EXPECT_THAT(refusal(other_secret), HasSubstr("not known here"));
    std::string other_id = good;
    other_id[0] = other_id[0] == '0' ? '1' : '0';
    EXPECT_THAT(refusal(other_id), HasSubstr("not known here"));
    const auto other_store = open_store("other.db");
    EXPECT_THAT(refusal(open(*other_store)->create_token({})->to_string()), HasSubstr("not known here"));
    EXPECT_EQ(authority_->nodes()->size(), 0);
    EXPECT_EQ(refusal(good), "let in");
}

TEST_F(AuthorityTest, tokens_expire) {
    const std::string text = token({.ttl = hours(2)});
    EXPECT_EQ(refusal(text), "let in");
    EXPECT_EQ(authority_->tokens()->size(), 1);
    runtime_.later = hours(3);
    EXPECT_THAT(refusal(text), HasSubstr("has expired"));
    EXPECT_EQ(authority_->tokens()->size(), 0);
    token(); // clears away the other one
    EXPECT_THAT(refusal(text), HasSubstr("not known here"));
    EXPECT_TRUE(absl::IsInvalidArgument(authority_->create_token({.ttl = milliseconds(0)}).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(authority_->create_token({.uses = 0}).status()));
}

TEST_F(AuthorityTest, tokens_are_revoked) {
    const std::string text = token();
    const std::string id = authority_->tokens().value().at(0).id();
    EXPECT_EQ(id, JoinToken::parse(text)->id);
    ASSERT_TRUE(authority_->revoke_token(id).ok());
    EXPECT_THAT(refusal(text), HasSubstr("not known here"));
    EXPECT_TRUE(absl::IsNotFound(authority_->revoke_token(id)));
    EXPECT_TRUE(absl::IsNotFound(authority_->revoke_token("../ca")));
}

// However many show it at once.
TEST_F(AuthorityTest, a_token_is_used_as_often_as_it_may_be) {
    const std::string text = token({.uses = 3});
    std::atomic<int> let_in{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 6; ++i) {
        threads.emplace_back([&] { let_in += authority_->admit(text, request_, "node").ok() ? 1 : 0; });
    }
    for (std::thread & thread : threads) thread.join();
    EXPECT_EQ(let_in, 3);
    EXPECT_EQ(authority_->nodes()->size(), 3);
    EXPECT_THAT(refusal(text), HasSubstr("as often as it may be"));
}

TEST_F(AuthorityTest, a_removed_node_is_no_member) {
    const Subject first = subject_of(authority_->admit(token(), request_, "node")->certificate);
    ASSERT_TRUE(authority_->remove_node("node").ok());
    EXPECT_TRUE(absl::IsUnauthenticated(authority_->check_member(first)));
    EXPECT_TRUE(absl::IsUnauthenticated(authority_->renew(first, request_).status()));
    EXPECT_THAT(authority_->removed().value(), ElementsAre(first.admission));
    EXPECT_TRUE(absl::IsNotFound(authority_->remove_node("node")));
    EXPECT_TRUE(absl::IsNotFound(authority_->remove_node("../ca")));
    // Its name is free, but not for its old certificate.
    const Subject second = subject_of(authority_->admit(token(), request_, "node")->certificate);
    EXPECT_EQ(second.name, "node");
    EXPECT_TRUE(authority_->check_member(second).ok());
    EXPECT_TRUE(absl::IsUnauthenticated(authority_->check_member(first)));
    runtime_.later = hours(24 * 31); // by then they have run out
    EXPECT_EQ(authority_->removed()->size(), 0);
}

TEST_F(AuthorityTest, certificates_are_renewed) {
    const std::string first = authority_->admit_self(request_, "node")->certificate;
    runtime_.later = hours(24 * 20);
    const auto second = authority_->renew(subject_of(first), request_);
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_GT(read_certificate(*second)->validity.until, read_certificate(first)->validity.until);
    EXPECT_TRUE(authority_->check_member(subject_of(*second)).ok());
    for (Subject other : {Subject{"", "node", "node", ""}, Subject{authority_->cluster(), "ca", "node", ""},
                          Subject{authority_->cluster(), "node", "../ca", ""}}) {
        EXPECT_TRUE(absl::IsUnauthenticated(authority_->renew(other, request_).status()));
    }
}

} // namespace
} // namespace strata::cluster
