#pragma once

#include "base/home.h"
#include "layers/store.h"
#include "strata/v1/cluster.grpc.pb.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>

#include <string>

namespace strata::daemon {

// The nodes of the cluster: this one. Answers when the loop runs; the size of the store is counted on `workers`.
class ClusterService final : public v1::Cluster::CallbackService {
public:
    ClusterService(const Home & home, const layers::Store & store, boost::asio::io_context & loop,
                   boost::asio::thread_pool & workers);

    // Where the HTTP server listens; before the loop runs.
    void set_http_address(std::string address) { self_.set_http_address(std::move(address)); }

    grpc::ServerUnaryReactor * ListNodes(grpc::CallbackServerContext * context, const v1::ListNodesRequest * request,
                                         v1::ListNodesResponse * response) override;

private:
    const layers::Store & store_;
    boost::asio::io_context & loop_;
    boost::asio::thread_pool & workers_;
    v1::Node self_;
};

} // namespace strata::daemon
