#pragma once

#include "daemon/engine_client.h"
#include "gateway/backend.h"

#include <boost/asio/io_context.hpp>

#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

namespace strata::daemon {

class ServeCall;

// Who a call belongs to while it waits or runs. Called on the loop.
class CallOwner {
public:
    virtual ~CallOwner() = default;
    // The client left while the call was waiting.
    virtual void on_waiting_cancelled(const std::shared_ptr<ServeCall> & call) = 0;
    // The engine has let go of the call. Not ok: the answer is not complete, and the owner says why by fail(), now or
    // as soon as it knows.
    virtual void on_call_done(const std::shared_ptr<ServeCall> & call, const absl::Status & status) = 0;
};

// One API request on its way: it waits for its model, then relays the engine's answer. The parts of the answer go from
// gRPC's threads to the sink directly; only the beginning and the end pass through the loop.
//
// A stream of events is passed on as it comes. Any other answer is held until it is whole, so that a client gets a
// whole document or an error and nothing in between.
class ServeCall final : public gateway::ApiCall, public AnswerHandler, public std::enable_shared_from_this<ServeCall> {
public:
    using Deadline = std::chrono::steady_clock::time_point;

    ServeCall(boost::asio::io_context & loop, gateway::ApiRequest request, std::shared_ptr<gateway::ResponseSink> sink,
              Deadline deadline)
        : loop_(loop)
        , deadline_(deadline)
        , path_(request.path)
        , body_bytes_(request.body.size())
        , request_(std::move(request))
        , sink_(std::move(sink)) {}

    void cancel() override; // any thread

    // The rest is called on the loop.
    const gateway::ApiRequest & request() const { return request_; }
    Deadline deadline() const { return deadline_; }
    size_t body_bytes() const { return body_bytes_; }
    void set_owner(CallOwner * owner) { owner_ = owner; }
    // Sends the request to the engine, or to another node; once.
    void start(const ServeTarget & target);
    // Ends a call that has no engine (any more): with an error, as a whole answer or as the last event of a stream; or
    // without a word when the client has left. Does nothing after the end.
    // `field` is the one of the request that is wrong.
    void fail(int http_status, const std::string & message, std::optional<std::chrono::milliseconds> retry = {},
              std::string_view field = {});
    // Ends a running call with this error; on_call_done follows.
    void cut(int http_status, std::string message);

private:
    void on_part(v1::ServeResponse part) override;
    void on_done(absl::Status status) override;
    void end(int prompt_tokens, int generated_tokens);

    boost::asio::io_context & loop_;
    const Deadline deadline_;
    const std::string path_;
    const size_t body_bytes_;
    CallOwner * owner_ = nullptr;
    gateway::ApiRequest request_;

    // Of the answer. Touched by the engine's callbacks, and by the loop when there is no engine.
    std::shared_ptr<gateway::ResponseSink> sink_; // until the end
    int http_status_ = 0;
    std::string content_type_;
    std::string whole_;
    bool streaming_ = false;

    std::mutex mutex_;
    bool cancelled_ = false;
    int cut_status_ = 0;
    std::string cut_message_;
    std::shared_ptr<EngineCall> engine_call_;
};

} // namespace strata::daemon
