#pragma once

#include "gateway/backend.h"
#include "strata/v1/engine.pb.h"

#include <grpcpp/support/server_callback.h>

#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>

namespace strata::daemon {

// One request that comes over gRPC instead of HTTP: hands it to the backend and sends the answer's parts to the client.
// A client that reads slower than the model writes is cut off at limits::kUnreadBytes.
class ServeRelay final : public grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse>,
                         public gateway::ResponseSink {
public:
    // `relayed`: the client is another node.
    static ServeRelay * make(gateway::Backend & backend, grpc::CallbackServerContext & context, bool relayed);
    ~ServeRelay() override { --alive_; }

    // Requests whose end has not reached its client yet. Thread-safe.
    static int under_way() { return alive_; }

private:
    ServeRelay(gateway::Backend & backend, grpc::CallbackServerContext & context, bool relayed)
        : backend_(backend)
        , context_(context)
        , relayed_(relayed) {
        ++alive_;
    }

    void OnReadDone(bool ok) override;
    void OnWriteDone(bool ok) override;
    void OnCancel() override;
    void OnDone() override;

    void on_head(int status, std::string content_type) override;
    void on_data(std::string data) override;
    void on_end(int prompt_tokens, int generated_tokens) override;

    void write(v1::ServeResponse part);
    void finish_when_sent(); // with the lock held

    static inline std::atomic<int> alive_ = 0;

    gateway::Backend & backend_;
    grpc::CallbackServerContext & context_;
    const bool relayed_;
    v1::ServeRequest request_;
    std::shared_ptr<ServeRelay> self_; // until OnDone

    std::mutex mutex_;
    std::shared_ptr<gateway::ApiCall> call_;
    std::deque<v1::ServeResponse> queue_; // the front is being sent
    size_t queued_bytes_ = 0;
    bool cancelled_ = false;
    bool ended_ = false;
};

} // namespace strata::daemon
