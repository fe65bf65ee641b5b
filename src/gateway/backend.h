#pragma once

#include "base/status.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace strata::gateway {

// One request to a model's API, as it came in over HTTP or gRPC.
struct ApiRequest {
    std::string id;       // unique in this process; also what logs carry
    std::string method;   // "POST", "GET"
    std::string path;     // "/v1/chat/completions"
    std::string model;    // what the body names, empty when it names none
    std::string body;     // JSON, opaque
    bool relayed = false; // by another node, which has looked for a better one
};

// Takes the answer to a request: on_head once, on_data any number of times, on_end once and always. Calls come from any
// thread but one at a time, and must return quickly: an implementation queues.
class ResponseSink {
public:
    virtual ~ResponseSink() = default;
    // Optional, before on_head: when it makes sense to try again after a 429 or 503 (which say 1 s otherwise).
    virtual void on_retry_after(int /*seconds*/) {}
    virtual void on_head(int status, std::string content_type) = 0;
    virtual void on_data(std::string data) = 0;
    virtual void on_end(int prompt_tokens, int generated_tokens) = 0;
};

// A request under way. Cancelling is idempotent, may come at any time, also after the end; on_end still follows.
// Dropping the handle does not cancel.
class ApiCall {
public:
    virtual ~ApiCall() = default;
    virtual void cancel() = 0;
};

struct ModelSummary {
    std::string name; // NAME:TAG
    int64_t created_unix = 0;
    std::string architecture;
    uint64_t parameters = 0;
    uint64_t size_bytes = 0;
    uint64_t context_tokens = 0;
    bool ready = false; // loaded now
};

// What the gateway needs of the node behind it. Thread-safe.
class Backend {
public:
    virtual ~Backend() = default;
    // Starts the request and returns at once; loads the model first when that is needed. Failures (unknown model, a
    // full queue, an engine that died) reach the sink as an HTTP status with an error body in the shape of the path's
    // API (api_error.h); in the middle of a stream as an error event. Never null.
    virtual std::shared_ptr<ApiCall> serve(ApiRequest request, std::shared_ptr<ResponseSink> sink) = 0;
    // Answers from memory: it is called on a thread that serves other connections too.
    virtual std::vector<ModelSummary> models() = 0;
    // Whether new requests are taken: false while shutting down.
    virtual bool accepting() = 0;
};

} // namespace strata::gateway
