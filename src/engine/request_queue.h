#pragma once

#include "base/status.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_set>
#include <vector>

namespace strata::engine {

// Takes the answer to a request. Calls come from the queue's threads, one at a time for a request: on_head once and
// first (not at all for a request that was cancelled before its answer began), on_data any number of times, on_end
// once, last and always. A call that blocks holds back one of a few workers.
class AnswerSink {
public:
    virtual ~AnswerSink() = default;
    virtual void on_head(int status, std::string_view content_type) = 0;
    virtual void on_data(std::string_view data) = 0;
    virtual void on_end(int32_t prompt_tokens, int32_t generated_tokens, double queue_ms) = 0;
};

// What a request needs: one of the model's slots, or only a short look at the model.
enum class Need { kSlot, kShort };

// A request that waits or runs. Made by RequestQueue; shared by the queue and whoever may cancel it.
class Request {
public:
    std::string method;
    std::string path;
    std::string body;
    Need need = Need::kShort;
    std::unique_ptr<AnswerSink> sink;

    // Whether to end early. Never goes back to false.
    bool stopped() const { return stopped_.load(std::memory_order_acquire); }
    double queue_ms() const { return std::chrono::duration<double, std::milli>(admitted_ - created_).count(); }

private:
    friend class RequestQueue;
    enum class State { kWaiting, kRunning, kRefused, kEnded };
    using Clock = std::chrono::steady_clock;

    State state_ = State::kWaiting;
    std::atomic<bool> stopped_ = false;
    Clock::time_point created_ = Clock::now();
    Clock::time_point admitted_ = created_;
    size_t bytes_ = 0; // counted against the limit while it waits
    std::list<std::shared_ptr<Request>>::iterator place_;
    std::multimap<Clock::time_point, std::shared_ptr<Request>>::iterator deadline_;
    bool has_deadline_ = false;
    int refusal_status_ = 0; // of a refused one; 0: cancelled
    std::string refusal_;
};

struct QueueOptions {
    int32_t slots = 1;
    int32_t short_workers = 1;
    size_t max_waiting = 1;
    size_t max_waiting_bytes = 1;
};

// Requests wait as entries of a bounded queue, first come first served, for a fixed number of worker threads; so
// threads and memory do not grow with the number of waiting requests. One worker more than there are slots prepares the
// next request while all slots are busy. Thread-safe.
class RequestQueue {
public:
    // Passed to the work of a request that needs slots.
    class Admission {
    public:
        // Waits until `slots` slots are free for the request, keeping its turn: nobody behind it goes first, so a
        // request for many slots is not starved. False when the request was stopped meanwhile. Called at most once,
        // before the model is used.
        bool enter(int32_t slots);

    private:
        friend class RequestQueue;
        Admission(RequestQueue & queue, Request & request)
            : queue_(queue)
            , request_(request) {}
        RequestQueue & queue_;
        Request & request_;
        int32_t width_ = 0;
    };
    // Answers a request, all but on_end; returns what on_end says. Runs on a worker.
    struct Tokens {
        int32_t prompt = 0;
        int32_t generated = 0;
    };
    using Work = std::function<Tokens(Request &, Admission &)>;
    // Answers a request that is not run, with an HTTP status and a sentence; all but on_end.
    using Refusal = std::function<void(Request &, int status, std::string_view message)>;

    RequestQueue(const QueueOptions & options, Work work, Refusal refusal);
    ~RequestQueue();

    // Stops what runs, refuses what waits, and waits for all callbacks to return. Called by one thread, once; a cancel
    // on another may come at the same time and after it.
    void stop();

    // Takes a request, or refuses it through its sink. deadline_ms: how long it may wait; 0: without end.
    void submit(const std::shared_ptr<Request> & request, int64_t deadline_ms);
    // Answers a request without running it.
    void refuse(const std::shared_ptr<Request> & request, int status, std::string message);
    // A waiting request ends at once, a running one as soon as its work sees it. Idempotent.
    void cancel(const std::shared_ptr<Request> & request);

    // Refuses new requests from now on.
    void close();
    // Waits until no request is left. False after the timeout.
    bool wait_idle(std::chrono::milliseconds timeout);

    struct Counts {
        int32_t waiting = 0;
        int32_t active = 0;
        int64_t total = 0;   // taken since the start
        int64_t idle_ms = 0; // since the last one ended; 0 while there is one
        bool closed = false;
    };
    Counts counts() const;

private:
    using List = std::list<std::shared_ptr<Request>>;

    List & waiting(Need need) { return need == Need::kSlot ? waiting_slot_ : waiting_short_; }
    void work_on(Need need);
    void attend();
    void run(const std::shared_ptr<Request> & request);
    void unlink(Request & request); // mutex_ held
    void refuse_locked(const std::shared_ptr<Request> & request, int status, std::string message);
    void finish(Request & request, const Tokens & tokens);
    bool fits(int32_t width) const; // mutex_ held

    const QueueOptions options_;
    const Work work_;
    const Refusal refusal_;

    mutable std::mutex mutex_;
    std::condition_variable slot_work_, short_work_, gate_, attendant_, idle_;
    List waiting_slot_, waiting_short_;
    size_t waiting_bytes_ = 0;
    std::multimap<Request::Clock::time_point, std::shared_ptr<Request>> deadlines_;
    List refused_; // to be answered by the attendant
    std::unordered_set<Request *> running_;
    bool gate_taken_ = false; // a request is being admitted: those behind it wait
    int32_t width_ = 0;       // slots that running requests may use
    int64_t open_ = 0;        // requests whose on_end has not returned
    int64_t total_ = 0;
    Request::Clock::time_point last_end_ = Request::Clock::now();
    bool closed_ = false;
    bool stopping_ = false;
    std::vector<std::thread> workers_;
    std::thread attendant_thread_;
};

} // namespace strata::engine
