#pragma once

#include "gateway/backend.h"
#include "gateway/in_flight.h"
#include "gateway/memory_budget.h"

#include <functional>
#include <memory>
#include <mutex>
#include <string>

namespace strata::gateway {

// Between the backend's threads, which give an answer to this sink, and the connection's thread, which takes it. What
// comes faster than the client reads is put together and taken at once. An answer that is not streamed is handed over
// when it is complete. Thread-safe.
class ResponseQueue final : public ResponseSink {
public:
    struct Options {
        size_t stream_bytes; // most that a streamed answer may have waiting
        size_t answer_bytes; // most for one that is not streamed
        std::shared_ptr<MemoryBudget> budget;
        InFlightToken token; // kept until on_end
        // From any thread: there is something to take, or so much waits that the rest is lost. Must not call back.
        std::function<void(bool overflow)> wake;
    };
    explicit ResponseQueue(Options options);

    void on_retry_after(int seconds) override;
    void on_head(int status, std::string content_type) override;
    void on_data(std::string data) override;
    void on_end(int prompt_tokens, int generated_tokens) override;

    // What has come since the last take.
    struct Batch {
        bool has_head = false; // stays set once the head has come
        bool streamed = false;
        int status = 0;
        int retry_after = 0;      // seconds, 0: not said
        std::string content_type; // with the first batch that has the head
        std::string data;
        MemoryShare share; // of data
        bool ended = false;
        bool overflow = false; // too much waited: what follows is lost
    };
    // By the connection's thread. The last batch counts as waiting until the next take.
    Batch take();
    // From now on everything is dropped and nobody is woken.
    void detach();

private:
    void wake();

    const size_t stream_bytes_;
    const size_t answer_bytes_;
    const std::shared_ptr<MemoryBudget> budget_;
    std::mutex mutex_;
    std::function<void(bool)> wake_;
    InFlightToken token_;
    bool woken_ = false;
    size_t taken_bytes_ = 0; // of the last batch
    bool has_head_ = false;
    bool streamed_ = false;
    int status_ = 0;
    int retry_after_ = 0;
    std::string content_type_;
    std::string data_;
    MemoryShare share_;
    bool ended_ = false;
    bool overflow_ = false;
};

// Whether an answer of this type is passed on as it comes.
bool is_streamed(std::string_view content_type);

} // namespace strata::gateway
