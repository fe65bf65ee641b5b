#include "daemon/engine_client.h"

#include "daemon/limits.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

namespace strata::daemon {

namespace {

std::atomic<int> calls{0};

// Counts a call from before it starts until its last callback has returned.
struct Counted {
    Counted() { ++calls; }
    ~Counted() { --calls; }
    Counted(const Counted &) = delete;
    Counted & operator=(const Counted &) = delete;
};

grpc::ChannelArguments channel_arguments() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(limits::kMessageBytes);
    arguments.SetMaxSendMessageSize(limits::kMessageBytes);
    // An engine that is coming up binds its socket some 100 ms after its start: try often.
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
    // A socket path names another process after a restart; a connection is never to be shared by path.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // A local socket needs no bandwidth probing, and no proxy from the environment.
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    return arguments;
}

struct StatusCall : Counted {
    grpc::ClientContext context;
    v1::GetEngineStatusRequest request;
    v1::EngineStatus status;
};

// These reactors own themselves: gRPC calls OnDone once, last, whatever happens.
class LoadReader final : public grpc::ClientReadReactor<v1::LoadProgress>, Counted {
public:
    LoadReader(v1::LoadRequest request, std::function<void(v1::LoadProgress)> progress,
               std::function<void(absl::Status)> done)
        : request_(std::move(request))
        , progress_(std::move(progress))
        , done_(std::move(done)) {}

    void start(v1::Engine::Stub & stub) {
        stub.async()->Load(&context_, &request_, this);
        StartRead(&part_);
        StartCall();
    }
    void OnReadDone(bool ok) override {
        if (!ok) return;
        progress_(part_);
        StartRead(&part_);
    }
    void OnDone(const grpc::Status & status) override {
        done_(from_grpc(status));
        delete this;
    }

private:
    grpc::ClientContext context_;
    v1::LoadRequest request_;
    v1::LoadProgress part_;
    std::function<void(v1::LoadProgress)> progress_;
    std::function<void(absl::Status)> done_;
};

class ServeStream final : public grpc::ClientBidiReactor<v1::ServeRequest, v1::ServeResponse>,
                          public EngineCall,
                          Counted {
public:
    ServeStream(v1::ServeRequest request, std::shared_ptr<AnswerHandler> handler)
        : request_(std::move(request))
        , handler_(std::move(handler)) {}

    template <typename Stub>
    void start(Stub & stub, std::shared_ptr<ServeStream> self) {
        self_ = std::move(self);
        stub.async()->Serve(&context_, this);
        StartWriteLast(&request_, grpc::WriteOptions());
        StartRead(&part_);
        StartCall();
    }
    void cancel() override { context_.TryCancel(); }

    void OnWriteDone(bool) override { request_.Clear(); } // a body may be 64 MiB: the engine has it now
    void OnReadDone(bool ok) override {
        if (!ok) return;
        handler_->on_part(std::move(part_));
        part_.Clear();
        StartRead(&part_);
    }
    void OnDone(const grpc::Status & status) override {
        handler_->on_done(from_grpc(status));
        handler_.reset();
        self_.reset(); // may be the end of this object
    }

private:
    grpc::ClientContext context_;
    v1::ServeRequest request_;
    v1::ServeResponse part_;
    std::shared_ptr<AnswerHandler> handler_;
    std::shared_ptr<ServeStream> self_; // until OnDone
};

} // namespace

absl::Status from_grpc(const grpc::Status & status) {
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

grpc::Status to_grpc(const absl::Status & status) {
    if (status.ok()) return grpc::Status::OK;
    return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

EngineClient::EngineClient(const std::filesystem::path & socket)
    : stub_(v1::Engine::NewStub(grpc::CreateCustomChannel("unix:" + socket.native(), grpc::InsecureChannelCredentials(),
                                                          channel_arguments()))) {}

void EngineClient::get_status(std::chrono::milliseconds timeout, bool wait, StatusDone done) const {
    auto call = std::make_shared<StatusCall>();
    call->context.set_deadline(std::chrono::system_clock::now() + timeout);
    call->context.set_wait_for_ready(wait);
    StatusCall * raw = call.get();
    stub_->async()->GetStatus(&raw->context, &raw->request, &raw->status,
                              [call = std::move(call), done = std::move(done)](const grpc::Status & status) {
                                  if (status.ok()) {
                                      done(std::move(call->status));
                                  } else {
                                      done(from_grpc(status));
                                  }
                              });
}

void EngineClient::load(v1::LoadRequest request, std::function<void(v1::LoadProgress)> progress,
                        std::function<void(absl::Status)> done) const {
    (new LoadReader(std::move(request), std::move(progress), std::move(done)))->start(*stub_);
}

std::shared_ptr<EngineCall> EngineClient::serve(v1::ServeRequest request,
                                                std::shared_ptr<AnswerHandler> handler) const {
    auto stream = std::make_shared<ServeStream>(std::move(request), std::move(handler));
    stream->start(*stub_, stream);
    return stream;
}

std::shared_ptr<EngineCall> NodeClient::serve(v1::ServeRequest request, std::shared_ptr<AnswerHandler> handler) const {
    auto stream = std::make_shared<ServeStream>(std::move(request), std::move(handler));
    stream->start(*stub_, stream);
    return stream;
}

int EngineClient::calls_under_way() {
    return calls.load();
}

} // namespace strata::daemon
