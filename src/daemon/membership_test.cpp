// Nodes of clusters in one process, over real connections: who is let in, and who is not.
#include "base/temp_folder_testing.h"
#include "cluster/record.h"
#include "cluster/seal.h"
#include "daemon/membership.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <set>
#include <thread>

namespace strata::daemon {
namespace {

using strata::testing::TempFolder;
using ::testing::HasSubstr;

// An address of this machine that no other test uses.
std::string new_address() {
    static std::atomic<int> next{1};
    return fmt::format("127.{}.200.{}:7421", 1 + ::getpid() % 250, next++);
}

struct Node {
    TempFolder folder;
    std::string address = new_address();
    const Home home{folder.path()};
    std::unique_ptr<StateStore> state = open_sqlite_state(home.state_db()).value();
    std::atomic<int> joined{0};
    Peers peers;
    std::unique_ptr<Membership> membership;

    Node() { make(); }
    void make() {
        membership.reset();
        membership =
            std::make_unique<Membership>(home, *state, Runtime::real(), peers,
                                         Membership::Events{.joined = [this](const auto &, const auto &) { ++joined; },
                                                            .left = [this] { --joined; },
                                                            .describe_self =
                                                                [this] {
                                                                    v1::Node node;
                                                                    node.set_home(home.root);
                                                                    return node;
                                                                }});
    }
    std::string token() { return membership->authority().value()->create_token({}).value().to_string(); }
    absl::Status join(const Node & first, const std::string & token, const std::string & name) {
        v1::JoinRequest request;
        request.set_address(first.address);
        request.set_token(token);
        request.set_name(name);
        request.set_listen(address);
        return membership->join(request);
    }
    std::set<std::string> names() const {
        std::set<std::string> names;
        for (const v1::Node & node : membership->nodes()) names.insert(node.name());
        return names;
    }
    bool sees(const std::set<std::string> & wanted) const {
        for (int i = 0; i < 2000 && names() != wanted; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        return names() == wanted;
    }
    cluster::IdentityFiles identity() const { return cluster::IdentityFolder(membership->identity()).read().value(); }
};

// A client of a node's port that shows that certificate, or none.
grpc::Status heartbeat(const Node & to, const std::string & ca, const std::string & certificate,
                       const std::string & key, const std::string & name) {
    grpc::ChannelArguments arguments;
    arguments.SetSslTargetNameOverride(cluster::kServerName);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    const auto stub = v1::Membership::NewStub(grpc::CreateCustomChannel(
        to.address, grpc::SslCredentials({.pem_root_certs = ca, .pem_private_key = key, .pem_cert_chain = certificate}),
        arguments));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::HeartbeatRequest request;
    request.mutable_node()->set_name(name);
    v1::HeartbeatResponse response;
    return stub->Heartbeat(&context, request, &response);
}

class MembershipTest : public ::testing::Test {
protected:
    void SetUp() override { ASSERT_TRUE(first_.membership->start(first_.address).ok()); }

    std::string first_name() { return first_.membership->membership().name; }

    Node first_;
};

TEST_F(MembershipTest, nodes_know_each_other) {
    Node second, third;
    const std::string token = first_.token();
    ASSERT_TRUE(second.join(first_, token, "second").ok());
    ASSERT_TRUE(third.join(second, token, "third").ok()); // through any node
    EXPECT_EQ(second.joined, 1);
    for (const Node * node : {&first_, &second, &third}) {
        EXPECT_TRUE(node->sees({first_name(), "second", "third"})) << node->names().size();
    }
    // A daemon that starts again comes back by itself.
    second.make();
    ASSERT_TRUE(second.membership->start("").ok());
    EXPECT_EQ(second.joined, 2);
    EXPECT_EQ(second.membership->membership().name, "second");
    first_.make();
    ASSERT_TRUE(first_.membership->start(first_.address).ok());
    Node fourth;
    EXPECT_TRUE(fourth.join(first_, token, "fourth").ok());
}

TEST_F(MembershipTest, a_node_may_leave) {
    Node second;
    EXPECT_TRUE(absl::IsFailedPrecondition(second.membership->leave().status()));
    EXPECT_TRUE(absl::IsFailedPrecondition(first_.membership->leave().status())); // it has the state
    ASSERT_TRUE(second.join(first_, first_.token(), "second").ok());
    ASSERT_TRUE(second.sees({first_name(), "second"}));
    EXPECT_EQ(second.membership->leave().value(), "second");
    EXPECT_EQ(second.joined, 0);
    EXPECT_TRUE(second.names().empty());
    EXPECT_FALSE(std::filesystem::exists(second.membership->identity()));
    second.make();
    ASSERT_TRUE(second.membership->start("").ok());
    EXPECT_EQ(second.membership->membership().cluster, "");
    // Its name is taken until it is removed.
    ASSERT_TRUE(second.join(first_, first_.token(), "second").ok());
    EXPECT_EQ(second.membership->membership().name, "second-2");
}

TEST_F(MembershipTest, a_removed_node_may_join_again) {
    Node second;
    ASSERT_TRUE(second.join(first_, first_.token(), "second").ok());
    EXPECT_TRUE(absl::IsAlreadyExists(second.join(first_, first_.token(), "second")));
    ASSERT_TRUE(first_.membership->remove_node("second").ok());
    absl::Status joined;
    for (int i = 0; i < 500; ++i) { // it has to hear of it
        joined = second.join(first_, first_.token(), "second");
        if (!absl::IsAlreadyExists(joined)) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    EXPECT_TRUE(joined.ok()) << joined;
    EXPECT_EQ(second.membership->membership().name, "second");
    EXPECT_TRUE(second.sees({first_name(), "second"}));
}

TEST_F(MembershipTest, only_nodes_are_answered) {
    Node second;
    ASSERT_TRUE(second.join(first_, first_.token(), "second").ok());
    const auto own = second.identity();
    EXPECT_TRUE(heartbeat(first_, own.ca, own.certificate, own.key, "second").ok());
    EXPECT_EQ(heartbeat(first_, own.ca, "", "", "second").error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_EQ(heartbeat(first_, own.ca, own.certificate, own.key, first_name()).error_code(),
              grpc::StatusCode::INVALID_ARGUMENT);

    // Of another cluster, or signed by itself: the connection does not come about.
    Node other;
    ASSERT_TRUE(other.membership->start(other.address).ok());
    const auto foreign = other.identity();
    EXPECT_EQ(heartbeat(first_, own.ca, foreign.certificate, foreign.key, "second").error_code(),
              grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(heartbeat(first_, foreign.ca, own.certificate, own.key, "second").error_code(),
              grpc::StatusCode::UNAVAILABLE);

    ASSERT_TRUE(first_.membership->authority().value()->remove_node("second").ok());
    const grpc::Status removed = heartbeat(first_, own.ca, own.certificate, own.key, "second");
    EXPECT_EQ(removed.error_code(), grpc::StatusCode::UNAUTHENTICATED);
    EXPECT_THAT(removed.error_message(), HasSubstr("was removed from the cluster"));
}

// Whoever signed it.
TEST_F(MembershipTest, a_certificate_that_has_run_out_is_refused) {
    const auto own = first_.identity();
    const auto store = cluster::SqliteStore::open(first_.home.cluster() / "cluster.db", Runtime::real()).value();
    const auto state = cluster::read<v1::CaState>(*store, "ca").value().value;
    const auto seal = cluster::Seal::open(first_.home.cluster() / "seal.key").value();
    const cluster::Identity ca{state.certificate(), seal.open(state.sealed_key(), "ca.sealedKey").value()};
    const std::string key = cluster::make_key().value();
    const auto beat_with = [&](std::chrono::hours from, std::chrono::hours until) {
        const auto now = std::chrono::system_clock::now();
        const std::string certificate =
            cluster::issue(ca, cluster::make_request(key).value(),
                           {.cluster = state.cluster(), .role = "node", .name = first_name(), .admission = "0"},
                           {now + from, now + until})
                .value();
        return heartbeat(first_, own.ca, certificate, key, first_name()).error_code();
    };
    using std::chrono::hours;
    EXPECT_EQ(beat_with(hours(-1), hours(1)), grpc::StatusCode::UNAUTHENTICATED); // never taken in
    EXPECT_EQ(beat_with(hours(-800), hours(-1)), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(beat_with(hours(1), hours(800)), grpc::StatusCode::UNAVAILABLE);
}

} // namespace
} // namespace strata::daemon
