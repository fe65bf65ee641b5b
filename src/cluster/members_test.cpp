#include "base/temp_folder_testing.h"
#include "cluster/authority.h"
#include "cluster/members.h"
#include "cluster/sqlite_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace strata::cluster {
namespace {

using ::testing::ElementsAre;

class MembersTest : public ::testing::Test {
protected:
    // "NAME STATE ADDRESS" of each.
    std::vector<std::string> list(Members & members) {
        std::vector<std::string> texts;
        const auto nodes = members.list();
        EXPECT_TRUE(nodes.ok()) << nodes.status();
        for (const v1::Node & node : *nodes) {
            texts.push_back(node.name() + (node.state() == v1::Node::STATE_READY ? " ready " : " silent ") +
                            node.executor_address());
        }
        return texts;
    }
    static v1::Node node(const std::string & name, const std::string & executor) {
        v1::Node node;
        node.set_name(name);
        node.set_executor_address(executor);
        return node;
    }

    strata::testing::TempFolder folder_;
    const std::unique_ptr<Store> store_ = SqliteStore::open(folder_.path() / "c.db", Runtime::real()).value();
    const std::unique_ptr<Authority> authority_ =
        Authority::open(*store_, Seal::open(folder_.path() / "seal.key").value(), Runtime::real()).value();
    const std::string request_ = make_request(make_key().value()).value();
};

TEST_F(MembersTest, who_is_heard_is_ready) {
    ASSERT_TRUE(authority_->admit_self(request_, "a").ok());
    ASSERT_TRUE(authority_->admit_self(request_, "b").ok());
    Members members(*store_, Runtime::real());
    EXPECT_THAT(list(members), ElementsAre("a silent ", "b silent "));
    ASSERT_TRUE(members.heard(node("a", "h:1")).ok());
    EXPECT_THAT(list(members), ElementsAre("a ready h:1", "b silent "));
    const int64_t revision = store_->list("")->revision;
    ASSERT_TRUE(members.heard(node("a", "h:1")).ok());
    EXPECT_EQ(store_->list("")->revision, revision); // nothing new is nothing written
    ASSERT_TRUE(members.heard(node("a", "h:2")).ok());
    EXPECT_THAT(list(members), ElementsAre("a ready h:2", "b silent "));

    // Another leader, which has heard nobody yet, sees the same.
    Members other(*store_, Runtime::real());
    EXPECT_THAT(list(other), ElementsAre("a ready h:2", "b silent "));
    ASSERT_TRUE(other.heard(node("a", "h:2")).ok());

    ASSERT_TRUE(authority_->remove_node("a").ok());
    EXPECT_THAT(list(members), ElementsAre("b silent "));
}

TEST_F(MembersTest, who_is_not_heard_is_silent) {
    ASSERT_TRUE(authority_->admit_self(request_, "a").ok());
    Members members(*store_, Runtime::real());
    ASSERT_TRUE(members.heard(node("a", "h:1")).ok());
    for (int i = 0; i < 3000 && list(members) != std::vector<std::string>{"a silent "}; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_THAT(list(members), ElementsAre("a silent "));
    ASSERT_TRUE(members.heard(node("a", "h:1")).ok());
    EXPECT_THAT(list(members), ElementsAre("a ready h:1"));
}

TEST_F(MembersTest, what_a_node_says_is_checked) {
    Members members(*store_, Runtime::real());
    EXPECT_TRUE(absl::IsInvalidArgument(members.heard(node("a", "no address"))));
    EXPECT_TRUE(absl::IsInvalidArgument(members.heard(node("a", std::string(100'000, 'a') + ":1"))));
    v1::Node large = node("a", "");
    large.set_home(std::string(100'000, 'x'));
    EXPECT_TRUE(absl::IsInvalidArgument(members.heard(large)));
    EXPECT_TRUE(store_->list("status/")->entries.empty());
}

} // namespace
} // namespace strata::cluster
