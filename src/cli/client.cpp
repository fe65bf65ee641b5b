#include "cli/client.h"

#include "base/unique_fd.h"
#include "cli/interrupt.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <thread>

namespace strata::cli {

namespace {

// For calls that only look something up.
constexpr std::chrono::seconds kUnaryTimeout{60};
constexpr std::chrono::milliseconds kDyingPoll{20};
constexpr int kDyingPolls = 10;
// A list of all tensors of a large model, or the whole of a JSON answer.
constexpr int kMaxMessageBytes = 256 << 20;

// gRPC reads the path of a "unix:" target as part of a URI.
std::string target_of(const Home & home) {
    const std::string path = home.daemon_socket().native();
    std::string target = "unix:";
    for (const char c : path) {
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '/' ||
                           c == '.' || c == '-' || c == '_' || c == '~';
        target += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
    return target;
}

// The kernel closes a dying process's sockets one after the other: the one that listens may be the last.
bool daemon_is_gone(const Home & home) {
    for (int i = 0; i < kDyingPolls; ++i) {
        if (!daemon_listens(home)) return true;
        std::this_thread::sleep_for(kDyingPoll);
    }
    return false;
}

} // namespace

bool daemon_listens(const Home & home) {
    const std::string path = home.daemon_socket().native();
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof(address.sun_path)) return false;
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return socket.valid() && ::connect(socket.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) == 0;
}

Client::Client(const Home & home)
    : home_(home) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
    arguments.SetMaxSendMessageSize(kMaxMessageBytes);
    const auto channel = grpc::CreateCustomChannel(target_of(home), grpc::InsecureChannelCredentials(), arguments);
    cluster_ = v1::Cluster::NewStub(channel);
    models_ = v1::Models::NewStub(channel);
    deployments_ = v1::Deployments::NewStub(channel);
}

absl::StatusOr<Client> Client::connect(const Home & home) {
    if (!daemon_listens(home)) {
        return absl::UnavailableError(
            fmt::format("no daemon runs on {}; start one with `strata serve --detach`", home.root.native()));
    }
    return Client(home);
}

absl::Status Client::to_status(const grpc::Status & status, bool interrupted) const {
    if (interrupted) return absl::CancelledError("interrupted");
    if (status.ok()) return absl::OkStatus();
    // A connection that broke is UNAVAILABLE too, with a message about sockets that helps nobody.
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE && daemon_is_gone(home_)) {
        return absl::UnavailableError(
            "the daemon ended while it worked on this; run the command again (`strata logs` may show why it ended)");
    }
    if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
        return absl::DeadlineExceededError("the daemon did not answer in time; `strata logs` may show why");
    }
    if (status.error_code() == grpc::StatusCode::UNIMPLEMENTED) {
        return absl::UnimplementedError("the running daemon is of another version and does not know this; restart it: "
                                        "`strata stop --daemon`, then `strata serve --detach`");
    }
    const auto code = status.error_code() == grpc::StatusCode::CANCELLED
                          ? absl::StatusCode::kAborted
                          : static_cast<absl::StatusCode>(status.error_code()); // the same numbers
    return absl::Status(code, status.error_message().empty() ? "the daemon gave no reason" : status.error_message());
}

template <typename Response, typename Call>
absl::StatusOr<Response> Client::unary(const Call & call, bool limited) {
    grpc::ClientContext context;
    if (limited) context.set_deadline(std::chrono::system_clock::now() + kUnaryTimeout);
    const InterruptScope interrupt([&context] { context.TryCancel(); });
    Response response;
    const grpc::Status status = call(&context, &response);
    STRATA_RETURN_IF_ERROR(to_status(status, interrupt.interrupted()));
    return response;
}

template <typename Response, typename Call, typename OnMessage>
absl::Status Client::stream(const Call & call, const OnMessage & on_message) {
    grpc::ClientContext context;
    const InterruptScope interrupt([&context] { context.TryCancel(); });
    const auto reader = call(&context);
    Response message;
    bool wanted = true;
    while (reader->Read(&message)) {
        if (!wanted) continue;
        wanted = on_message(message);
        if (!wanted) context.TryCancel();
    }
    const grpc::Status status = reader->Finish();
    return wanted || interrupt.interrupted() ? to_status(status, interrupt.interrupted()) : absl::OkStatus();
}

template <typename Call>
absl::StatusOr<v1::JobProgress> Client::job(const Call & call, const OnProgress & progress) {
    v1::JobProgress last;
    STRATA_RETURN_IF_ERROR(stream<v1::JobProgress>(call, [&](const v1::JobProgress & message) {
        last = message;
        if (!message.finished()) progress(message);
        return true;
    }));
    if (!last.finished()) return absl::InternalError("the daemon ended the operation without a result; try it again");
    return last;
}

absl::StatusOr<v1::Node> Client::node() {
    STRATA_ASSIGN_OR_RETURN(const auto response, list_nodes());
    if (response.nodes().empty()) return absl::InternalError("the daemon does not say who it is");
    return response.nodes(0);
}

absl::StatusOr<v1::ListNodesResponse> Client::list_nodes() {
    return unary<v1::ListNodesResponse>(
        [&](auto * context, auto * out) { return cluster_->ListNodes(context, {}, out); });
}

absl::StatusOr<v1::Node> Client::join(const v1::JoinRequest & request) {
    STRATA_ASSIGN_OR_RETURN(
        const auto response,
        unary<v1::JoinResponse>([&](auto * context, auto * out) { return cluster_->Join(context, request, out); },
                                false));
    return response.node();
}

absl::StatusOr<v1::LeaveResponse> Client::leave() {
    return unary<v1::LeaveResponse>([&](auto * context, auto * out) { return cluster_->Leave(context, {}, out); });
}

absl::StatusOr<v1::CreateTokenResponse> Client::create_token(const v1::CreateTokenRequest & request) {
    return unary<v1::CreateTokenResponse>(
        [&](auto * context, auto * out) { return cluster_->CreateToken(context, request, out); });
}

absl::StatusOr<v1::ListTokensResponse> Client::list_tokens() {
    return unary<v1::ListTokensResponse>(
        [&](auto * context, auto * out) { return cluster_->ListTokens(context, {}, out); });
}

absl::Status Client::revoke_token(const std::string & id) {
    v1::RevokeTokenRequest request;
    request.set_id(id);
    return unary<v1::RevokeTokenResponse>(
               [&](auto * context, auto * out) { return cluster_->RevokeToken(context, request, out); })
        .status();
}

absl::Status Client::remove_node(const std::string & name) {
    v1::RemoveNodeRequest request;
    request.set_name(name);
    return unary<v1::RemoveNodeResponse>(
               [&](auto * context, auto * out) { return cluster_->RemoveNode(context, request, out); })
        .status();
}

absl::StatusOr<v1::ListModelsResponse> Client::list_models() {
    return unary<v1::ListModelsResponse>([&](auto * context, auto * out) { return models_->List(context, {}, out); });
}

absl::StatusOr<v1::ShowModelResponse> Client::show_model(std::string_view model, bool tensors) {
    v1::ShowModelRequest request;
    request.set_model(std::string(model));
    request.set_tensors(tensors);
    return unary<v1::ShowModelResponse>(
        [&](auto * context, auto * out) { return models_->Show(context, request, out); });
}

absl::Status Client::remove_model(std::string_view model) {
    v1::RemoveModelRequest request;
    request.set_model(std::string(model));
    return unary<v1::RemoveModelResponse>(
               [&](auto * context, auto * out) { return models_->Remove(context, request, out); })
        .status();
}

absl::StatusOr<v1::CollectGarbageResponse> Client::collect_garbage(const v1::CollectGarbageRequest & request) {
    return unary<v1::CollectGarbageResponse>(
        [&](auto * context, auto * out) { return models_->CollectGarbage(context, request, out); }, false);
}

absl::StatusOr<v1::JobProgress> Client::import_model(const v1::ImportModelRequest & request,
                                                     const OnProgress & progress) {
    return job([&](auto * context) { return models_->Import(context, request); }, progress);
}

absl::StatusOr<v1::JobProgress> Client::pull_model(const v1::PullModelRequest & request, const OnProgress & progress) {
    return job([&](auto * context) { return models_->Pull(context, request); }, progress);
}

absl::StatusOr<v1::JobProgress> Client::verify_model(std::string_view model, const OnProgress & progress) {
    v1::VerifyModelRequest request;
    request.set_model(std::string(model));
    return job([&](auto * context) { return models_->Verify(context, request); }, progress);
}

absl::StatusOr<v1::ListDeploymentsResponse> Client::list_deployments(bool all) {
    v1::ListDeploymentsRequest request;
    request.set_all(all);
    return unary<v1::ListDeploymentsResponse>(
        [&](auto * context, auto * out) { return deployments_->List(context, request, out); });
}

absl::Status Client::start_deployment(const v1::StartDeploymentRequest & request,
                                      const std::function<void(const v1::LoadProgress &)> & progress) {
    return stream<v1::LoadProgress>([&](auto * context) { return deployments_->Start(context, request); },
                                    [&](const v1::LoadProgress & message) {
                                        progress(message);
                                        return true;
                                    });
}

absl::StatusOr<v1::StopDeploymentResponse> Client::stop_deployment(const v1::StopDeploymentRequest & request) {
    return unary<v1::StopDeploymentResponse>(
        [&](auto * context, auto * out) { return deployments_->Stop(context, request, out); }, false);
}

absl::Status Client::logs(const v1::LogsRequest & request, const std::function<bool(const std::string &)> & text) {
    return stream<v1::LogsResponse>([&](auto * context) { return deployments_->Logs(context, request); },
                                    [&](const v1::LogsResponse & message) { return text(message.text()); });
}

absl::Status Client::serve(const v1::ServeRequest::Head & head,
                           const std::function<absl::Status(const v1::ServeResponse &)> & part) {
    grpc::ClientContext context;
    const InterruptScope interrupt([&context] { context.TryCancel(); });
    const auto call = deployments_->Serve(&context);
    v1::ServeRequest request;
    *request.mutable_head() = head;
    if (call->Write(request)) call->WritesDone(); // a failed write shows in Finish
    absl::Status refused;
    bool ended = false;
    v1::ServeResponse response;
    while (call->Read(&response)) {
        if (!refused.ok()) continue;
        ended = ended || response.has_end();
        refused = part(response);
        if (!refused.ok()) context.TryCancel();
    }
    absl::Status status = to_status(call->Finish(), interrupt.interrupted());
    if (interrupt.interrupted()) return status;
    if (!refused.ok()) return refused;
    STRATA_RETURN_IF_ERROR(status);
    if (!ended) return absl::InternalError("the answer was cut off; `strata logs` may show why");
    return absl::OkStatus();
}

} // namespace strata::cli
