#pragma once

#include "base/status.h"
#include "strata/v1/deployments.grpc.pb.h"
#include "strata/v1/engine.grpc.pb.h"

#include <grpcpp/channel.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>

namespace strata::daemon {

absl::Status from_grpc(const grpc::Status & status);
grpc::Status to_grpc(const absl::Status & status);

// A call under way that can be given up; its last callback then comes with kCancelled. Thread-safe.
class EngineCall {
public:
    virtual ~EngineCall() = default;
    virtual void cancel() = 0;
};

// Takes the parts of one answer. Calls come from gRPC's threads, one at a time; on_done comes once and last, always.
class AnswerHandler {
public:
    virtual ~AnswerHandler() = default;
    virtual void on_part(v1::ServeResponse part) = 0;
    virtual void on_done(absl::Status status) = 0;
};

// Where requests are answered.
class ServeTarget {
public:
    virtual ~ServeTarget() = default;
    virtual std::shared_ptr<EngineCall> serve(v1::ServeRequest request,
                                              std::shared_ptr<AnswerHandler> handler) const = 0;
};

// The control socket of one engine process. All calls return at once and their callbacks come from gRPC's few threads,
// so that open streams cost memory only. Thread-safe; calls under way go on when the client goes away.
class EngineClient final : public ServeTarget {
public:
    explicit EngineClient(const std::filesystem::path & socket);

    using StatusDone = std::function<void(absl::StatusOr<v1::EngineStatus>)>;
    // wait: keep trying until the socket answers or the time is over, for an engine that is coming up.
    void get_status(std::chrono::milliseconds timeout, bool wait, StatusDone done) const;
    void load(v1::LoadRequest request, std::function<void(v1::LoadProgress)> progress,
              std::function<void(absl::Status)> done) const;
    std::shared_ptr<EngineCall> serve(v1::ServeRequest request, std::shared_ptr<AnswerHandler> handler) const override;

    // Calls of all clients whose last callback has not returned. At 0 no callback is running or will come.
    static int calls_under_way();

private:
    std::unique_ptr<v1::Engine::Stub> stub_;
};

// The daemon of another node. Thread-safe, as EngineClient is.
class NodeClient final : public ServeTarget {
public:
    NodeClient(std::string name, const std::shared_ptr<grpc::Channel> & channel)
        : name_(std::move(name))
        , stub_(v1::Deployments::NewStub(channel)) {}

    const std::string & name() const { return name_; }
    std::shared_ptr<EngineCall> serve(v1::ServeRequest request, std::shared_ptr<AnswerHandler> handler) const override;

private:
    const std::string name_;
    std::unique_ptr<v1::Deployments::Stub> stub_;
};

} // namespace strata::daemon
