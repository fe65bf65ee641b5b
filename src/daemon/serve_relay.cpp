#include "daemon/serve_relay.h"

#include "base/api_error.h"
#include "daemon/limits.h"
#include "gateway/json_scanner.h"
#include "gateway/limits.h"

#include <fmt/format.h>
#include <grpcpp/server_context.h>

#include <atomic>
#include <utility>

namespace strata::daemon {

namespace {

std::string next_id() {
    static std::atomic<uint64_t> last{0};
    return fmt::format("grpc-{}", ++last);
}

size_t size_of(const v1::ServeResponse & part) {
    return part.has_data() ? part.data().size() : 0;
}

} // namespace

ServeRelay * ServeRelay::make(gateway::Backend & backend, grpc::CallbackServerContext & context, bool relayed) {
    std::shared_ptr<ServeRelay> relay(new ServeRelay(backend, context, relayed));
    relay->self_ = relay;
    relay->StartRead(&relay->request_);
    return relay.get();
}

void ServeRelay::OnReadDone(bool ok) {
    if (!ok || !request_.has_head()) {
        Finish({grpc::StatusCode::INVALID_ARGUMENT, "the first message must be the request's head"});
        return;
    }
    v1::ServeRequest::Head head = std::move(*request_.mutable_head());
    request_.Clear();
    gateway::ApiRequest request;
    // Another node's id may be one of ours as well.
    request.id = head.request_id().empty() || relayed_ ? next_id() : head.request_id();
    request.relayed = relayed_;
    request.method = head.method().empty() ? "POST" : head.method();
    request.path = head.path();
    const auto refuse = [&](int status, std::string_view message) {
        on_head(status, "application/json");
        on_data(error_body(request.path, status, message));
        on_end(0, 0);
    };
    if (head.body().size() > limits::kBodyBytes) {
        refuse(413, fmt::format("the body is larger than {} MiB", limits::kBodyBytes >> 20));
        return;
    }
    if (!head.body().empty()) {
        gateway::JsonScanner scanner(gateway::Limits().json_depth);
        scanner.feed(head.body());
        auto model = scanner.finish();
        if (!model.ok()) {
            refuse(400, std::string(model.status().message()));
            return;
        }
        request.model = std::move(*model);
    }
    request.body = std::move(*head.mutable_body());

    const auto call = backend_.serve(std::move(request), self_);
    bool left_meanwhile = false;
    {
        const std::lock_guard lock(mutex_);
        if (!ended_) call_ = call;
        left_meanwhile = cancelled_;
    }
    if (left_meanwhile) call->cancel();
}

void ServeRelay::on_head(int status, std::string content_type) {
    v1::ServeResponse part;
    part.mutable_head()->set_status(status);
    part.mutable_head()->set_content_type(std::move(content_type));
    write(std::move(part));
}

void ServeRelay::on_data(std::string data) {
    v1::ServeResponse part;
    part.set_data(std::move(data));
    write(std::move(part));
}

void ServeRelay::on_end(int prompt_tokens, int generated_tokens) {
    v1::ServeResponse part;
    part.mutable_end()->set_prompt_tokens(prompt_tokens);
    part.mutable_end()->set_generated_tokens(generated_tokens);
    write(std::move(part));
    const std::lock_guard lock(mutex_);
    ended_ = true;
    call_.reset();
    finish_when_sent();
}

void ServeRelay::write(v1::ServeResponse part) {
    const std::lock_guard lock(mutex_);
    if (cancelled_) return;
    queued_bytes_ += size_of(part);
    // A whole answer may be as large as it is; only a stream waits for its reader.
    if (queue_.size() > 1 && queued_bytes_ > limits::kUnreadBytes) {
        cancelled_ = true;
        context_.TryCancel(); // also ends the write that the client does not take; OnCancel follows
        return;
    }
    queue_.push_back(std::move(part));
    if (queue_.size() == 1) StartWrite(&queue_.front());
}

void ServeRelay::OnWriteDone(bool ok) {
    const std::lock_guard lock(mutex_);
    queued_bytes_ -= size_of(queue_.front());
    queue_.pop_front();
    if (!ok) queue_.clear(); // the client is gone; OnCancel comes
    if (!queue_.empty()) {
        StartWrite(&queue_.front());
    } else {
        finish_when_sent();
    }
}

void ServeRelay::finish_when_sent() {
    if (ended_ && queue_.empty()) Finish(cancelled_ ? grpc::Status::CANCELLED : grpc::Status::OK);
}

void ServeRelay::OnCancel() {
    std::shared_ptr<gateway::ApiCall> call;
    {
        const std::lock_guard lock(mutex_);
        cancelled_ = true;
        call = call_;
    }
    if (call) call->cancel();
}

void ServeRelay::OnDone() {
    const std::shared_ptr<ServeRelay> self = std::move(self_);
}

} // namespace strata::daemon
