#include "engine/request_queue.h"

#include "base/check.h"
#include "engine/driver_limits.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::engine {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

RequestQueue::RequestQueue(const QueueOptions & options, Work work, Refusal refusal)
    : options_(options)
    , work_(std::move(work))
    , refusal_(std::move(refusal)) {
    for (int32_t i = 0; i < options_.slots + 1; ++i) workers_.emplace_back([this] { work_on(Need::kSlot); });
    for (int32_t i = 0; i < options_.short_workers; ++i) workers_.emplace_back([this] { work_on(Need::kShort); });
    attendant_thread_ = std::thread([this] { attend(); });
}

RequestQueue::~RequestQueue() {
    if (attendant_thread_.joinable()) stop();
}

void RequestQueue::stop() {
    {
        const std::lock_guard lock(mutex_);
        closed_ = true;
        stopping_ = true;
        for (List * list : {&waiting_slot_, &waiting_short_}) {
            while (!list->empty()) {
                const auto request = list->front();
                unlink(*request);
                refuse_locked(request, 503, "the model is being unloaded");
            }
        }
        for (Request * request : running_) request->stopped_.store(true, std::memory_order_release);
        slot_work_.notify_all();
        short_work_.notify_all();
        gate_.notify_all();
        attendant_.notify_all();
    }
    for (std::thread & worker : workers_) worker.join();
    attendant_thread_.join();
}

void RequestQueue::submit(const std::shared_ptr<Request> & request, int64_t deadline_ms) {
    const std::lock_guard lock(mutex_);
    if (closed_) return refuse_locked(request, 503, "the model is being unloaded; try again later");
    const size_t count = waiting_slot_.size() + waiting_short_.size();
    if (count >= options_.max_waiting) {
        return refuse_locked(request, 429, fmt::format("{} requests are waiting already; try again later", count));
    }
    const size_t bytes = request->body.size() + kRequestOverheadBytes;
    if (waiting_bytes_ + bytes > options_.max_waiting_bytes) {
        return refuse_locked(
            request, 429,
            fmt::format("the waiting requests hold {} bytes, and {} more go beyond the limit of {}; try "
                        "again later",
                        waiting_bytes_, bytes, options_.max_waiting_bytes));
    }
    request->bytes_ = bytes;
    waiting_bytes_ += bytes;
    ++open_;
    ++total_;
    List & list = waiting(request->need);
    request->place_ = list.insert(list.end(), request);
    if (deadline_ms > 0) {
        // An absurd number must not overflow the clock.
        const auto wait = milliseconds(std::min<int64_t>(deadline_ms, milliseconds(std::chrono::hours(24)).count()));
        request->deadline_ = deadlines_.emplace(request->created_ + wait, request);
        request->has_deadline_ = true;
        if (request->deadline_ == deadlines_.begin()) attendant_.notify_one();
    }
    (request->need == Need::kSlot ? slot_work_ : short_work_).notify_one();
}

void RequestQueue::refuse(const std::shared_ptr<Request> & request, int status, std::string message) {
    const std::lock_guard lock(mutex_);
    refuse_locked(request, status, std::move(message));
}

void RequestQueue::refuse_locked(const std::shared_ptr<Request> & request, int status, std::string message) {
    if (request->bytes_ == 0) ++open_; // never waited
    request->state_ = Request::State::kRefused;
    request->refusal_status_ = status;
    request->refusal_ = std::move(message);
    request->body = std::string(); // frees it now, the answer may take a moment
    refused_.push_back(request);
    attendant_.notify_one();
}

void RequestQueue::unlink(Request & request) {
    waiting(request.need).erase(request.place_);
    waiting_bytes_ -= request.bytes_;
    if (request.has_deadline_) deadlines_.erase(request.deadline_);
    request.has_deadline_ = false;
}

void RequestQueue::cancel(const std::shared_ptr<Request> & request) {
    const std::lock_guard lock(mutex_);
    request->stopped_.store(true, std::memory_order_release);
    if (request->state_ == Request::State::kWaiting) {
        unlink(*request);
        refuse_locked(request, 0, {});
    } else if (request->state_ == Request::State::kRunning) {
        gate_.notify_all();
    }
}

void RequestQueue::close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
}

bool RequestQueue::wait_idle(milliseconds timeout) {
    std::unique_lock lock(mutex_);
    return idle_.wait_for(lock, timeout, [&] { return open_ == 0; });
}

RequestQueue::Counts RequestQueue::counts() const {
    const std::lock_guard lock(mutex_);
    Counts counts;
    counts.waiting = static_cast<int32_t>(waiting_slot_.size() + waiting_short_.size());
    counts.active = static_cast<int32_t>(running_.size());
    counts.total = total_;
    counts.closed = closed_;
    if (open_ == 0) counts.idle_ms = duration_cast<milliseconds>(Request::Clock::now() - last_end_).count();
    return counts;
}

void RequestQueue::work_on(Need need) {
    std::condition_variable & work = need == Need::kSlot ? slot_work_ : short_work_;
    std::unique_lock lock(mutex_);
    while (true) {
        work.wait(lock,
                  [&] { return stopping_ || (!waiting(need).empty() && (need == Need::kShort || !gate_taken_)); });
        if (stopping_) return; // what waited was refused
        const auto request = waiting(need).front();
        unlink(*request);
        request->state_ = Request::State::kRunning;
        running_.insert(request.get());
        if (need == Need::kSlot) gate_taken_ = true;
        lock.unlock();
        run(request);
        lock.lock();
    }
}

void RequestQueue::run(const std::shared_ptr<Request> & request) {
    Admission admission(*this, *request);
    request->admitted_ = Request::Clock::now();
    const Tokens tokens = work_(*request, admission);
    {
        const std::lock_guard lock(mutex_);
        running_.erase(request.get());
        request->state_ = Request::State::kEnded;
        width_ -= admission.width_;
        if (request->need == Need::kSlot && admission.width_ == 0) { // answered without the model
            gate_taken_ = false;
            slot_work_.notify_one();
        }
        gate_.notify_all();
    }
    finish(*request, tokens);
}

bool RequestQueue::fits(int32_t width) const {
    if (width_ == 0) return true;
    // A request for one slot may be prepared while all slots are busy. A larger one has all its slots free when it
    // starts, since llama.cpp's server would let smaller ones go first for ever.
    return width_ + width <= options_.slots + (width == 1 ? 1 : 0);
}

bool RequestQueue::Admission::enter(int32_t slots) {
    STRATA_CHECK(width_ == 0 && slots > 0);
    std::unique_lock lock(queue_.mutex_);
    if (request_.need == Need::kShort) return !request_.stopped();
    queue_.gate_.wait(lock, [&] { return request_.stopped() || queue_.fits(slots); });
    request_.admitted_ = Request::Clock::now();
    width_ = slots;
    queue_.width_ += width_;
    queue_.gate_taken_ = false;
    queue_.slot_work_.notify_one();
    return !request_.stopped();
}

void RequestQueue::finish(Request & request, const Tokens & tokens) {
    request.body = std::string(); // the handle may live on
    request.sink->on_end(tokens.prompt, tokens.generated, request.queue_ms());
    const std::lock_guard lock(mutex_);
    last_end_ = Request::Clock::now();
    if (--open_ == 0) idle_.notify_all();
}

// Answers whatever is not run, so that a cancel, a refusal or a deadline never waits for a worker.
void RequestQueue::attend() {
    std::unique_lock lock(mutex_);
    while (true) {
        const auto now = Request::Clock::now();
        while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
            const auto request = deadlines_.begin()->second;
            unlink(*request);
            refuse_locked(request, 503,
                          fmt::format("no slot became free within {} ms; try again later",
                                      duration_cast<milliseconds>(now - request->created_).count()));
        }
        if (!refused_.empty()) {
            const auto request = refused_.front();
            refused_.pop_front();
            lock.unlock();
            request->admitted_ = now;
            if (request->refusal_status_ != 0) refusal_(*request, request->refusal_status_, request->refusal_);
            finish(*request, {});
            lock.lock();
            continue;
        }
        if (stopping_) return;
        if (deadlines_.empty())
            attendant_.wait(lock);
        else
            attendant_.wait_until(lock, deadlines_.begin()->first);
    }
}

} // namespace strata::engine
