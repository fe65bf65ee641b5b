#include "daemon/serve_call.h"

#include "base/api_error.h"
#include "daemon/limits.h"
#include "gateway/api_error.h"

#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace strata::daemon {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

void ServeCall::cancel() {
    std::shared_ptr<EngineCall> running;
    {
        const std::lock_guard lock(mutex_);
        if (std::exchange(cancelled_, true)) return;
        running = engine_call_;
    }
    if (running) {
        running->cancel();
        return;
    }
    boost::asio::post(loop_, [self = shared_from_this()] {
        if (self->owner_ != nullptr) self->owner_->on_waiting_cancelled(self);
    });
}

void ServeCall::start(const ServeTarget & target) {
    const auto left = duration_cast<milliseconds>(deadline_ - std::chrono::steady_clock::now());
    v1::ServeRequest message;
    v1::ServeRequest::Head & head = *message.mutable_head();
    head.set_request_id(request_.id);
    head.set_method(request_.method);
    head.set_path(request_.path);
    head.set_body(std::move(request_.body));
    head.set_deadline_ms(std::max<int64_t>(left.count(), 1));
    request_ = {};

    // Parts of the answer may come before serve() returns; a cancel in between finds the call at the end of this.
    std::shared_ptr<EngineCall> running = target.serve(std::move(message), shared_from_this());
    bool left_meanwhile = false;
    {
        const std::lock_guard lock(mutex_);
        engine_call_ = running;
        left_meanwhile = cancelled_;
    }
    if (left_meanwhile) running->cancel();
}

void ServeCall::cut(int http_status, std::string message) {
    std::shared_ptr<EngineCall> running;
    {
        const std::lock_guard lock(mutex_);
        cut_status_ = http_status;
        cut_message_ = std::move(message);
        running = engine_call_;
    }
    if (running) running->cancel();
}

void ServeCall::on_part(v1::ServeResponse part) {
    if (!sink_) return;
    switch (part.part_case()) {
    case v1::ServeResponse::kHead:
        http_status_ = part.head().status();
        content_type_ = part.head().content_type();
        streaming_ = content_type_.rfind("text/event-stream", 0) == 0;
        if (streaming_) sink_->on_head(http_status_, content_type_);
        break;
    case v1::ServeResponse::kData:
        if (streaming_) {
            sink_->on_data(std::move(*part.mutable_data()));
        } else if (whole_.size() + part.data().size() > limits::kWholeAnswerBytes) {
            cut(500, fmt::format("the answer is larger than {} MiB", limits::kWholeAnswerBytes >> 20));
        } else if (whole_.empty()) {
            whole_ = std::move(*part.mutable_data());
        } else {
            whole_ += part.data();
        }
        break;
    case v1::ServeResponse::kEnd:
        if (!streaming_) {
            sink_->on_head(http_status_, content_type_);
            sink_->on_data(std::move(whole_));
        }
        end(part.end().prompt_tokens(), part.end().generated_tokens());
        break;
    case v1::ServeResponse::PART_NOT_SET:
        break;
    }
}

void ServeCall::on_done(absl::Status status) {
    boost::asio::post(loop_, [self = shared_from_this(), status = std::move(status)]() mutable {
        int cut_status = 0;
        bool left = false;
        {
            const std::lock_guard lock(self->mutex_);
            self->engine_call_.reset();
            cut_status = self->cut_status_;
            left = self->cancelled_;
        }
        if (left || cut_status != 0) self->fail(cut_status, self->cut_message_);
        if (!self->sink_) {
            status = absl::OkStatus(); // it has its end; what came after that does not matter
        } else if (status.ok()) {
            status = absl::InternalError("the engine broke the answer off");
        }
        self->owner_->on_call_done(self, status);
    });
}

void ServeCall::fail(int http_status, const std::string & message, std::optional<milliseconds> retry,
                     std::string_view field) {
    if (!sink_) return;
    bool listening = false;
    {
        const std::lock_guard lock(mutex_);
        listening = !cancelled_;
    }
    if (listening && streaming_) {
        sink_->on_data(gateway::error_event(path_, http_status, message));
    } else if (listening) {
        if (retry) sink_->on_retry_after(static_cast<int>(std::chrono::ceil<std::chrono::seconds>(*retry).count()));
        sink_->on_head(http_status, "application/json");
        sink_->on_data(error_body(path_, http_status, message, {.param = field}));
    }
    end(0, 0);
}

void ServeCall::end(int prompt_tokens, int generated_tokens) {
    sink_->on_end(prompt_tokens, generated_tokens);
    sink_.reset();
    whole_ = {};
}

} // namespace strata::daemon
