#include "engine/serve_stream.h"

#include <deque>
#include <memory>
#include <mutex>
#include <string>

namespace strata::engine {

namespace {

// Small events that wait are sent as one message.
constexpr size_t kMergeBytes = 64 << 10;

class ServeStream : public grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse>,
                    public std::enable_shared_from_this<ServeStream> {
public:
    explicit ServeStream(DriverSlot & slot)
        : slot_(slot) {}
    ~ServeStream() override { strata_request_release(request_); }

    void begin() {
        self_ = shared_from_this();
        StartRead(&message_);
    }

    void OnReadDone(bool ok) override {
        if (!ok || !message_.has_head()) {
            Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "the first message of Serve must have a head"));
            return;
        }
        start();
    }

    void OnWriteDone(bool ok) override {
        const std::lock_guard lock(mutex_);
        writing_ = false;
        queued_bytes_ -= parts_.front().data().size();
        parts_.pop_front();
        if (!ok) { // the other side is gone; OnCancel says so too
            gone_ = true;
            parts_.clear();
        }
        write_next();
    }

    void OnCancel() override {
        const std::lock_guard lock(mutex_);
        cancelled_ = true;
        // Before the request is known here, start() looks at cancelled_.
        if (request_ != nullptr) strata_request_cancel(request_);
    }

    // After Finish, and so after on_end.
    void OnDone() override { self_.reset(); }

private:
    void start() {
        const std::shared_ptr<ServeStream> alive = self_; // an answer may come and end at once, on other threads
        const strata_response_fns fns = {[](int32_t status, const char * type, void * user) {
                                             static_cast<ServeStream *>(user)->on_head(status, type);
                                         },
                                         [](const void * data, size_t bytes, void * user) {
                                             static_cast<ServeStream *>(user)->on_data(static_cast<const char *>(data),
                                                                                       bytes);
                                         },
                                         [](int32_t prompt, int32_t generated, double queue_ms, void * user) {
                                             static_cast<ServeStream *>(user)->on_end(prompt, generated, queue_ms);
                                         }};
        id_ = message_.head().request_id();
        strata_request * request = nullptr;
        const grpc::Status status = slot_.start(message_.head(), fns, this, &request);
        v1::ServeRequest().Swap(&message_); // the driver has copied the body
        if (!status.ok()) {
            Finish(status);
            return;
        }
        const std::lock_guard lock(mutex_);
        request_ = request;
        if (cancelled_ || gone_) strata_request_cancel(request_);
        if (!ended_) slot_.remember(id_, request_);
        remembered_ = !ended_;
    }

    void on_head(int32_t status, const char * content_type) {
        const std::lock_guard lock(mutex_);
        v1::ServeResponse part;
        part.mutable_head()->set_status(status);
        part.mutable_head()->set_content_type(content_type);
        push(std::move(part), 0);
    }

    void on_data(const char * data, size_t bytes) {
        const std::lock_guard lock(mutex_);
        // The front part is with gRPC while a write is under way.
        const size_t fixed = writing_ ? 1 : 0;
        if (queued_bytes_ >= kMaxQueuedAnswerBytes && !too_slow_) {
            too_slow_ = true;
            parts_.resize(fixed);
            if (request_ != nullptr) strata_request_cancel(request_);
        }
        if (gone_ || too_slow_) return;
        if (parts_.size() > fixed && parts_.back().has_data() && parts_.back().data().size() + bytes <= kMergeBytes) {
            parts_.back().mutable_data()->append(data, bytes);
            queued_bytes_ += bytes;
            return;
        }
        v1::ServeResponse part;
        part.set_data(data, bytes);
        push(std::move(part), bytes);
    }

    void on_end(int32_t prompt_tokens, int32_t generated_tokens, double queue_ms) {
        const std::shared_ptr<ServeStream> alive = shared_from_this(); // OnDone may come before this returns
        strata_request * remembered = nullptr;
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
            if (remembered_) remembered = request_;
        }
        if (remembered != nullptr) slot_.forget(id_, remembered);
        const std::lock_guard lock(mutex_);
        v1::ServeResponse part;
        part.mutable_end()->set_prompt_tokens(prompt_tokens);
        part.mutable_end()->set_generated_tokens(generated_tokens);
        part.mutable_end()->set_queue_ms(queue_ms);
        all_pushed_ = true;
        push(std::move(part), 0);
        write_next(); // when nothing was pushed
    }

    void push(v1::ServeResponse part, size_t bytes) { // mutex_ held
        if (gone_ || too_slow_) return;
        parts_.push_back(std::move(part));
        queued_bytes_ += bytes;
        write_next();
    }

    void write_next() { // mutex_ held
        if (writing_) return;
        if (!parts_.empty()) {
            writing_ = true;
            StartWrite(&parts_.front());
            return;
        }
        if (!all_pushed_ || finished_) return;
        finished_ = true;
        if (too_slow_) {
            Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the answer was read too slowly"));
        } else {
            Finish(grpc::Status::OK);
        }
    }

    DriverSlot & slot_;
    std::shared_ptr<ServeStream> self_; // until OnDone
    v1::ServeRequest message_;
    std::string id_;

    std::mutex mutex_;
    strata_request * request_ = nullptr;
    std::deque<v1::ServeResponse> parts_; // the front one is with gRPC while writing_
    size_t queued_bytes_ = 0;
    bool writing_ = false;
    bool cancelled_ = false; // by the other side
    bool gone_ = false;      // a write failed
    bool too_slow_ = false;
    bool ended_ = false;      // on_end has begun
    bool remembered_ = false; // in the slot, by id
    bool all_pushed_ = false;
    bool finished_ = false;
};

} // namespace

grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> * new_serve_stream(DriverSlot & slot) {
    const auto stream = std::make_shared<ServeStream>(slot);
    stream->begin();
    return stream.get();
}

} // namespace strata::engine
