#include "gateway/response_queue.h"

namespace strata::gateway {

bool is_streamed(std::string_view content_type) {
    const std::string_view type = content_type.substr(0, content_type.find(';'));
    return type == "text/event-stream" || type == "application/connect+json";
}

ResponseQueue::ResponseQueue(Options options)
    : stream_bytes_(options.stream_bytes)
    , answer_bytes_(options.answer_bytes)
    , budget_(std::move(options.budget))
    , wake_(std::move(options.wake))
    , token_(std::move(options.token))
    , share_(budget_) {}

void ResponseQueue::on_retry_after(int seconds) {
    const std::lock_guard lock(mutex_);
    retry_after_ = seconds;
}

void ResponseQueue::on_head(int status, std::string content_type) {
    const std::lock_guard lock(mutex_);
    if (!wake_ || has_head_) return;
    has_head_ = true;
    status_ = status;
    streamed_ = is_streamed(content_type);
    content_type_ = std::move(content_type);
    if (streamed_) wake();
}

void ResponseQueue::on_data(std::string data) {
    const std::lock_guard lock(mutex_);
    if (!wake_ || overflow_ || data.empty()) return;
    const size_t limit = streamed_ ? stream_bytes_ : answer_bytes_;
    if (data_.size() + taken_bytes_ + data.size() > limit || !share_.grow_to(data_.size() + data.size())) {
        overflow_ = true;
        data_ = std::string();
        share_.reset();
        wake_(true);
        return;
    }
    if (data_.empty()) {
        data_ = std::move(data);
    } else {
        data_ += data;
    }
    if (streamed_) wake();
}

void ResponseQueue::on_end(int, int) {
    const std::lock_guard lock(mutex_);
    token_.reset();
    if (!wake_) return;
    ended_ = true;
    wake();
}

void ResponseQueue::wake() {
    if (woken_) return;
    woken_ = true;
    wake_(false);
}

ResponseQueue::Batch ResponseQueue::take() {
    const std::lock_guard lock(mutex_);
    woken_ = false;
    Batch batch;
    batch.overflow = overflow_;
    if (streamed_ || ended_) {
        batch.has_head = has_head_;
        batch.streamed = streamed_;
        batch.status = status_;
        batch.retry_after = retry_after_;
        batch.content_type = std::move(content_type_);
        content_type_.clear();
        batch.data = std::move(data_);
        data_.clear();
        batch.share = std::exchange(share_, MemoryShare(budget_));
        batch.ended = ended_ && !overflow_; // what was lost never looks complete
    }
    taken_bytes_ = batch.data.size();
    return batch;
}

void ResponseQueue::detach() {
    const std::lock_guard lock(mutex_);
    wake_ = nullptr;
    data_ = std::string();
    share_.reset();
}

} // namespace strata::gateway
