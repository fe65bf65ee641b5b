#pragma once

#include "base/status.h"
#include "engine/request_queue.h"

#include <functional>
#include <string>

namespace strata::engine {

// Passes an answer on as long as the model's mesh stands, and an error instead from then on: libllama can't be told
// that what it reads is lost, and would go on with zeros.
class GuardedSink : public AnswerSink {
public:
    // health: of the mesh; called for each piece of the answer.
    GuardedSink(AnswerSink & sink, std::function<absl::Status()> health, std::string path)
        : sink_(sink)
        , health_(std::move(health))
        , path_(std::move(path)) {}

    void on_head(int status, std::string_view content_type) override;
    void on_data(std::string_view data) override;
    void on_end(int32_t prompt_tokens, int32_t generated_tokens, double queue_ms) override {
        sink_.on_end(prompt_tokens, generated_tokens, queue_ms);
    }

private:
    AnswerSink & sink_;
    const std::function<absl::Status()> health_;
    const std::string path_;
    bool stream_ = false;
    bool failed_ = false; // the error is out
};

} // namespace strata::engine
