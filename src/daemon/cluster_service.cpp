#include "daemon/cluster_service.h"

#include "base/clock.h"
#include "base/version.h"
#include "daemon/engine_client.h"

#include <boost/asio/post.hpp>
#include <unistd.h>

#include <array>
#include <thread>

namespace strata::daemon {

ClusterService::ClusterService(const Home & home, const layers::Store & store, Membership & membership,
                               boost::asio::io_context & loop, boost::asio::thread_pool & workers)
    : store_(store)
    , membership_(membership)
    , loop_(loop)
    , workers_(workers) {
    std::array<char, 256> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0) name = {"localhost"};
    self_.set_name(name.data());
    self_.set_version(STRATA_VERSION_STRING);
    self_.set_engine_build(STRATA_ENGINE_BUILD_STRING);
    self_.set_started_unix_ms(unix_ms(Clock::real().wall()));
    self_.set_home(home.root);
    self_.set_cpus(static_cast<int32_t>(std::thread::hardware_concurrency()));
    self_.set_memory_bytes(int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE));
    self_.set_pid(::getpid());
}

grpc::ServerUnaryReactor * ClusterService::run(grpc::CallbackServerContext & context,
                                               std::function<absl::Status()> work) {
    grpc::ServerUnaryReactor * reactor = context.DefaultReactor();
    boost::asio::post(loop_, [this, reactor, work = std::move(work)] {
        boost::asio::post(workers_, [reactor, work] { reactor->Finish(to_grpc(work())); });
    });
    return reactor;
}

grpc::ServerUnaryReactor * ClusterService::ListNodes(grpc::CallbackServerContext * context,
                                                     const v1::ListNodesRequest *, v1::ListNodesResponse * response) {
    return run(*context, [this, response] { return list_nodes(*response); });
}

absl::Status ClusterService::list_nodes(v1::ListNodesResponse & response) {
    STRATA_ASSIGN_OR_RETURN(const auto bytes, store_.size_bytes());
    const SavedMembership membership = membership_.membership();
    STRATA_ASSIGN_OR_RETURN(const std::vector<v1::Node> nodes, membership_.list_nodes());
    v1::Node & here = *response.add_nodes();
    here = self_;
    for (const v1::Node & node : nodes) {
        if (node.name() == membership.name) here = node;
    }
    here.set_store_bytes(static_cast<int64_t>(bytes));
    if (!membership.cluster.empty()) {
        here.set_name(membership.name);
        here.set_cluster(membership.cluster);
        here.set_cluster_address(membership.address);
        here.set_state(v1::Node::STATE_READY);
        here.set_heard_ms_ago(0);
    }
    for (const v1::Node & node : nodes) {
        if (node.name() != membership.name) *response.add_nodes() = node;
    }
    return absl::OkStatus();
}

grpc::ServerUnaryReactor * ClusterService::Join(grpc::CallbackServerContext * context, const v1::JoinRequest * request,
                                                v1::JoinResponse * response) {
    return run(*context, [this, request, response]() -> absl::Status {
        STRATA_RETURN_IF_ERROR(membership_.join(*request));
        v1::ListNodesResponse nodes;
        STRATA_RETURN_IF_ERROR(list_nodes(nodes));
        *response->mutable_node() = nodes.nodes(0);
        return absl::OkStatus();
    });
}

grpc::ServerUnaryReactor * ClusterService::Leave(grpc::CallbackServerContext * context, const v1::LeaveRequest *,
                                                 v1::LeaveResponse * response) {
    return run(*context, [this, response]() -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(*response->mutable_name(), membership_.leave());
        return absl::OkStatus();
    });
}

grpc::ServerUnaryReactor * ClusterService::CreateToken(grpc::CallbackServerContext * context,
                                                       const v1::CreateTokenRequest * request,
                                                       v1::CreateTokenResponse * response) {
    return run(*context, [this, request, response]() -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(cluster::Authority * authority, membership_.authority());
        cluster::TokenOptions options;
        if (request->ttl_ms() != 0) options.ttl = std::chrono::milliseconds(request->ttl_ms());
        if (request->uses() != 0) options.uses = request->uses();
        const int64_t now = unix_ms(Clock::real().wall());
        STRATA_ASSIGN_OR_RETURN(const cluster::JoinToken token, authority->create_token(options));
        response->set_token(token.to_string());
        response->set_expires_unix_ms(now + options.ttl.count());
        response->set_address(membership_.membership().address);
        return absl::OkStatus();
    });
}

grpc::ServerUnaryReactor * ClusterService::ListTokens(grpc::CallbackServerContext * context,
                                                      const v1::ListTokensRequest *,
                                                      v1::ListTokensResponse * response) {
    return run(*context, [this, response]() -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(cluster::Authority * authority, membership_.authority());
        STRATA_ASSIGN_OR_RETURN(const auto tokens, authority->tokens());
        for (const v1::TokenState & token : tokens) {
            v1::TokenInfo & info = *response->add_tokens();
            info.set_id(token.id());
            info.set_created_unix_ms(token.created_unix_ms());
            info.set_expires_unix_ms(token.expires_unix_ms());
            info.set_uses_left(token.uses_left());
        }
        return absl::OkStatus();
    });
}

grpc::ServerUnaryReactor * ClusterService::RevokeToken(grpc::CallbackServerContext * context,
                                                       const v1::RevokeTokenRequest * request,
                                                       v1::RevokeTokenResponse *) {
    return run(*context, [this, request]() -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(cluster::Authority * authority, membership_.authority());
        return authority->revoke_token(request->id());
    });
}

grpc::ServerUnaryReactor * ClusterService::RemoveNode(grpc::CallbackServerContext * context,
                                                      const v1::RemoveNodeRequest * request, v1::RemoveNodeResponse *) {
    return run(*context, [this, request] { return membership_.remove_node(request->name()); });
}

} // namespace strata::daemon
