#pragma once

#include "base/home.h"
#include "daemon/membership.h"
#include "layers/store.h"
#include "strata/v1/cluster.grpc.pb.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>

#include <functional>
#include <string>

namespace strata::daemon {

// The nodes of the cluster, as far as this one is in any. Answers when the loop runs; what waits runs on `workers`.
class ClusterService final : public v1::Cluster::CallbackService {
public:
    ClusterService(const Home & home, const layers::Store & store, Membership & membership,
                   boost::asio::io_context & loop, boost::asio::thread_pool & workers);

    // Where the HTTP server listens; before the loop runs.
    void set_http_address(std::string address) { self_.set_http_address(std::move(address)); }

    // This node, but for what changes.
    const v1::Node & self() const { return self_; }

    grpc::ServerUnaryReactor * ListNodes(grpc::CallbackServerContext * context, const v1::ListNodesRequest * request,
                                         v1::ListNodesResponse * response) override;
    grpc::ServerUnaryReactor * Join(grpc::CallbackServerContext * context, const v1::JoinRequest * request,
                                    v1::JoinResponse * response) override;
    grpc::ServerUnaryReactor * Leave(grpc::CallbackServerContext * context, const v1::LeaveRequest * request,
                                     v1::LeaveResponse * response) override;
    grpc::ServerUnaryReactor * CreateToken(grpc::CallbackServerContext * context,
                                           const v1::CreateTokenRequest * request,
                                           v1::CreateTokenResponse * response) override;
    grpc::ServerUnaryReactor * ListTokens(grpc::CallbackServerContext * context, const v1::ListTokensRequest * request,
                                          v1::ListTokensResponse * response) override;
    grpc::ServerUnaryReactor * RevokeToken(grpc::CallbackServerContext * context,
                                           const v1::RevokeTokenRequest * request,
                                           v1::RevokeTokenResponse * response) override;
    grpc::ServerUnaryReactor * RemoveNode(grpc::CallbackServerContext * context, const v1::RemoveNodeRequest * request,
                                          v1::RemoveNodeResponse * response) override;

private:
    // Answers with what `work` returns, on a worker.
    grpc::ServerUnaryReactor * run(grpc::CallbackServerContext & context, std::function<absl::Status()> work);
    absl::Status list_nodes(v1::ListNodesResponse & response);

    const layers::Store & store_;
    Membership & membership_;
    boost::asio::io_context & loop_;
    boost::asio::thread_pool & workers_;
    v1::Node self_;
};

} // namespace strata::daemon
