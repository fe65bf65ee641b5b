#pragma once

#include "base/home.h"
#include "base/status.h"
#include "strata/v1/cluster.grpc.pb.h"
#include "strata/v1/deployments.grpc.pb.h"
#include "strata/v1/models.grpc.pb.h"

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace strata::cli {

// Whether something listens on the daemon's socket. Takes microseconds.
bool daemon_listens(const Home & home);

// The calls of the daemon, over its unix socket. All of them block; Ctrl-C cancels the running one, which then returns
// kCancelled (the daemon's own kCancelled comes back as kAborted). Used by one thread. Movable.
class Client {
public:
    // kUnavailable when nothing listens on the socket.
    static absl::StatusOr<Client> connect(const Home & home);

    absl::StatusOr<v1::Node> node(); // the daemon's
    absl::StatusOr<v1::ListNodesResponse> list_nodes();
    absl::StatusOr<v1::Node> join(const v1::JoinRequest & request);
    absl::StatusOr<v1::LeaveResponse> leave();
    absl::StatusOr<v1::CreateTokenResponse> create_token(const v1::CreateTokenRequest & request);
    absl::StatusOr<v1::ListTokensResponse> list_tokens();
    absl::Status revoke_token(const std::string & id);
    absl::Status remove_node(const std::string & name);

    absl::StatusOr<v1::ListModelsResponse> list_models();
    absl::StatusOr<v1::ShowModelResponse> show_model(std::string_view model, bool tensors);
    absl::Status remove_model(std::string_view model);
    absl::StatusOr<v1::CollectGarbageResponse> collect_garbage(const v1::CollectGarbageRequest & request);

    // Jobs return their last message, the one that says `finished`.
    using OnProgress = std::function<void(const v1::JobProgress &)>;
    absl::StatusOr<v1::JobProgress> import_model(const v1::ImportModelRequest & request, const OnProgress & progress);
    absl::StatusOr<v1::JobProgress> pull_model(const v1::PullModelRequest & request, const OnProgress & progress);
    absl::StatusOr<v1::JobProgress> verify_model(std::string_view model, const OnProgress & progress);

    absl::StatusOr<v1::ListDeploymentsResponse> list_deployments(bool all);
    absl::Status start_deployment(const v1::StartDeploymentRequest & request,
                                  const std::function<void(const v1::LoadProgress &)> & progress);
    absl::StatusOr<v1::StopDeploymentResponse> stop_deployment(const v1::StopDeploymentRequest & request);
    // Until `text` wants no more.
    absl::Status logs(const v1::LogsRequest & request, const std::function<bool(const std::string &)> & text);

    // One request to a model's API. `part` gets the answer piece by piece; an error from it cancels the request and is
    // returned.
    absl::Status serve(const v1::ServeRequest::Head & head,
                       const std::function<absl::Status(const v1::ServeResponse &)> & part);

private:
    explicit Client(const Home & home);

    absl::Status to_status(const grpc::Status & status, bool interrupted) const;
    template <typename Response, typename Call>
    absl::StatusOr<Response> unary(const Call & call, bool limited = true);
    template <typename Response, typename Call, typename OnMessage>
    absl::Status stream(const Call & call, const OnMessage & on_message);
    template <typename Call>
    absl::StatusOr<v1::JobProgress> job(const Call & call, const OnProgress & progress);

    Home home_;
    std::unique_ptr<v1::Cluster::Stub> cluster_;
    std::unique_ptr<v1::Models::Stub> models_;
    std::unique_ptr<v1::Deployments::Stub> deployments_;
};

} // namespace strata::cli
