#pragma once

#include "base/home.h"
#include "daemon/catalog.h"
#include "daemon/membership.h"
#include "daemon/supervisor.h"
#include "strata/v1/deployments.grpc.pb.h"

#include <boost/asio/io_context.hpp>

#include <optional>

namespace strata::daemon {

// Models being served, over gRPC.
class DeploymentsService final : public v1::Deployments::CallbackService {
public:
    DeploymentsService(const Home & home, Catalog & catalog, Supervisor & supervisor, const Membership & membership,
                       boost::asio::io_context & loop)
        : home_(home)
        , catalog_(catalog)
        , supervisor_(supervisor)
        , membership_(membership)
        , loop_(loop) {}

    grpc::ServerUnaryReactor * List(grpc::CallbackServerContext * context, const v1::ListDeploymentsRequest * request,
                                    v1::ListDeploymentsResponse * response) override;
    grpc::ServerWriteReactor<v1::LoadProgress> * Start(grpc::CallbackServerContext * context,
                                                       const v1::StartDeploymentRequest * request) override;
    grpc::ServerUnaryReactor * Stop(grpc::CallbackServerContext * context, const v1::StopDeploymentRequest * request,
                                    v1::StopDeploymentResponse * response) override;
    grpc::ServerWriteReactor<v1::LogsResponse> * Logs(grpc::CallbackServerContext * context,
                                                      const v1::LogsRequest * request) override;
    grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> *
    Serve(grpc::CallbackServerContext * context) override;

private:
    // The options that the request asks for; none: as remembered.
    absl::StatusOr<std::optional<v1::ServeOptions>> options_of(const v1::StartDeploymentRequest & request) const;

    const Home home_;
    Catalog & catalog_;
    Supervisor & supervisor_;
    const Membership & membership_;
    boost::asio::io_context & loop_;
};

} // namespace strata::daemon
