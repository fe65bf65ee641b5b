#pragma once

#include <grpcpp/support/server_callback.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace strata::daemon {

// The answering side of a server-streaming call: takes messages from any thread and sends them one after the other.
// Lives until gRPC is done with it; whoever writes holds it by shared_ptr and may go on writing into the void.
template <typename Message>
class StreamWriter final : public grpc::ServerWriteReactor<Message> {
public:
    static std::shared_ptr<StreamWriter> make() {
        std::shared_ptr<StreamWriter> writer(new StreamWriter);
        writer->self_ = writer;
        return writer;
    }

    // Called once when the client gives up, also when it has already. Not called after finish().
    void on_cancel(std::function<void()> handler) {
        {
            const std::lock_guard lock(mutex_);
            if (finished_) return;
            if (!cancelled_) {
                on_cancel_ = std::move(handler);
                return;
            }
        }
        handler();
    }

    void write(Message message) { add(std::move(message), false); }
    // For messages of which only the last matters: replaces one that was not sent yet.
    void progress(Message message) { add(std::move(message), true); }
    // What was written is sent first. Only the first call counts.
    void finish(grpc::Status status) {
        std::function<void()> dropped; // destroyed without the lock
        const std::lock_guard lock(mutex_);
        if (std::exchange(finished_, true)) return;
        dropped = std::exchange(on_cancel_, nullptr);
        status_ = std::move(status);
        if (!writing_) this->Finish(status_);
    }
    // Whether everything was sent.
    bool drained() {
        const std::lock_guard lock(mutex_);
        return queue_.empty();
    }

private:
    struct Entry {
        Message message;
        bool replaceable;
    };

    StreamWriter() = default;

    void add(Message message, bool replaceable) {
        const std::lock_guard lock(mutex_);
        if (finished_ || cancelled_) return;
        // The front is being sent.
        if (replaceable && queue_.size() > 1 && queue_.back().replaceable) {
            queue_.back().message = std::move(message);
            return;
        }
        queue_.push_back({std::move(message), replaceable});
        if (!std::exchange(writing_, true)) this->StartWrite(&queue_.front().message);
    }

    void OnWriteDone(bool ok) override {
        const std::lock_guard lock(mutex_);
        queue_.pop_front();
        if (!ok) queue_.clear();
        if (!queue_.empty()) {
            this->StartWrite(&queue_.front().message);
            return;
        }
        writing_ = false;
        if (finished_) this->Finish(status_);
    }

    void OnCancel() override {
        std::function<void()> handler;
        {
            const std::lock_guard lock(mutex_);
            cancelled_ = true;
            handler = std::exchange(on_cancel_, nullptr);
        }
        if (handler) handler();
    }

    void OnDone() override { const std::shared_ptr<StreamWriter> self = std::move(self_); }

    std::mutex mutex_;
    std::deque<Entry> queue_; // references to its front stay valid while it grows
    bool writing_ = false;
    bool cancelled_ = false;
    bool finished_ = false;
    grpc::Status status_;
    std::function<void()> on_cancel_;
    std::shared_ptr<StreamWriter> self_;
};

} // namespace strata::daemon
