#pragma once

#include "base/address.h"
#include "base/home.h"
#include "base/runtime.h"
#include "cluster/authority.h"
#include "cluster/identity.h"
#include "cluster/members.h"
#include "cluster/sqlite_store.h"
#include "daemon/peers.h"
#include "daemon/state.h"
#include "strata/v1/cluster.grpc.pb.h"

#include <grpcpp/impl/service_type.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/channel_arguments.h>

#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace strata::daemon {

// How the daemon of another node is talked to, at most so many bytes at a time.
grpc::ChannelArguments to_a_node(int message_bytes);

// Where a node's executor answers: the next port after its daemon's, so that a firewall's rules can be written.
Address executor_address(const Address & daemon);
inline constexpr uint16_t kClusterPort = 7421;

// This node's place in a cluster: its certificates, the port on which the other daemons reach it, its heartbeats, and
// what it knows of the others. The first node of a cluster has the state store and the CA as well. Thread-safe; calls
// wait for disk and network, those that say nothing of it do not.
class Membership {
public:
    struct Events {
        // This node belongs to a cluster from now on, with certificates in that folder.
        std::function<void(const SavedMembership &, const std::filesystem::path & identity)> joined;
        // To none any more.
        std::function<void()> left;
        // What heartbeats tell of this node.
        std::function<v1::Node()> describe_self;
    };

    Membership(Home home, StateStore & state, Runtime & runtime, Peers & peers, Events events);
    ~Membership();

    // Something else that the other nodes may ask, beside the membership's own; before start(). It calls
    // check_caller().
    void answer_with(grpc::Service & service) { services_.push_back(&service); }

    // Comes back to the cluster that the home belongs to. When it belongs to none and `listen` is given, begins one
    // that others can join there, as `name` (empty: like the host's).
    absl::Status start(std::string_view listen, std::string_view name = {});
    // Nothing is answered and no event comes any more.
    void stop();

    absl::Status join(const v1::JoinRequest & request);
    // Forgets the cluster; the name that this node had in it. kFailedPrecondition: it is in none, or has its state.
    absl::StatusOr<std::string> leave();

    // Something that heartbeats tell has changed: the next one comes now. Returns at once.
    void hurry();

    // Whether a call comes from a node of the cluster. Returns at once.
    absl::Status check_caller(const grpc::ServerContextBase & context) const;

    // Of all nodes, by name, as of the last heartbeat; empty when there is no cluster. Returns at once.
    std::vector<v1::Node> nodes() const;
    // The same as it is now, as far as this node knows it.
    absl::StatusOr<std::vector<v1::Node>> list_nodes();
    // Takes a node out, on the node that has the CA.
    absl::Status remove_node(std::string_view name);
    // Returns at once.
    SavedMembership membership() const;
    std::filesystem::path identity() const { return identity_.path(); }

    // On the node that has the CA; kFailedPrecondition elsewhere, with its name.
    absl::StatusOr<cluster::Authority *> authority() const;

private:
    class Service;

    absl::Status may_join() const;
    absl::Status check_stopping() const;
    void end();
    absl::Status enter(const SavedMembership & membership);
    absl::Status found(const Address & listen, std::string_view name);
    absl::Status open_state();
    absl::Status serve();
    std::chrono::nanoseconds beat();
    absl::Status beat_once();
    // Lists that the state store gave, in the order in which it gave them.
    absl::Status learn_from_store(v1::HeartbeatResponse * response);
    void learn(std::vector<v1::Node> nodes, std::vector<std::string> removed);
    // A call of the leader that stop() ends.
    template <typename Call>
    absl::Status ask(const std::string & address, std::chrono::milliseconds timeout, Call call);
    template <typename Call>
    absl::Status ask_leader(Call call);
    void renew_when_due();
    absl::Status renew(cluster::IdentityFiles files, const cluster::Subject & subject);
    absl::StatusOr<std::string> ask_for_certificate(const std::string & request);
    v1::Node self() const;

    const Home home_;
    StateStore & state_;
    Runtime & runtime_;
    Peers & peers_;
    const Events events_;
    std::vector<grpc::Service *> services_;
    const cluster::IdentityFolder identity_;

    std::mutex joining_; // one at a time; before mutex_

    // Of the node that has the state.
    std::unique_ptr<cluster::SqliteStore> store_;
    std::unique_ptr<cluster::Authority> authority_;
    std::unique_ptr<cluster::Members> members_;
    std::mutex learning_; // before mutex_

    mutable std::mutex mutex_;
    SavedMembership membership_;
    std::vector<v1::Node> nodes_;
    std::string complaint_;                  // of the last heartbeat; said once
    std::set<grpc::ClientContext *> asking_; // other daemons, at the moment
    std::chrono::steady_clock::time_point next_renewal_;
    bool expired_ = false; // this node's certificate
    bool removed_ = false; // says the leader
    bool stopping_ = false;

    // Made once, when the node has come into a cluster.
    std::unique_ptr<v1::Membership::Stub> leader_;
    std::unique_ptr<Service> service_;
    std::unique_ptr<grpc::Server> server_;
    std::unique_ptr<Runtime::Worker> heart_;
};

} // namespace strata::daemon
