#pragma once

#include "base/status.h"
#include "engine/driver_options.h"
#include "engine/request_check.h"
#include "engine/request_queue.h"

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace strata::engine {

struct SlotState {
    int32_t id = 0;
    bool busy = false;
    int32_t context_tokens = 0;
    int32_t used_tokens = 0;
};

// Counters of the server since it was loaded.
struct ServerTotals {
    int64_t prompt_tokens = 0; // computed, not taken from a cache
    int64_t generated_tokens = 0;
    int64_t generate_steps = 0; // without the first token of each answer, which comes with the prompt
    double prompt_seconds = 0;
    double generate_seconds = 0;

    ServerTotals & operator+=(const ServerTotals & other) {
        prompt_tokens += other.prompt_tokens;
        generated_tokens += other.generated_tokens;
        generate_steps += other.generate_steps;
        prompt_seconds += other.prompt_seconds;
        generate_seconds += other.generate_seconds;
        return *this;
    }
};

// llama.cpp's server without its HTTP: the context with its slots, the loop that decodes, and the handlers of its API.
// The only file that knows the server's headers. Thread-safe, except that nothing may run or begin when it is
// destroyed.
class ServerHost {
public:
    // One at a time in a process: llama.cpp's log and progress are shared. The failure carries llama.cpp's own reason.
    static absl::StatusOr<std::unique_ptr<ServerHost>> load(const DriverOptions & options,
                                                            const std::filesystem::path & model);
    ~ServerHost();

    struct Route;
    // kNotFound: no such path; kUnimplemented: another method.
    absl::StatusOr<const Route *> find(std::string_view method, std::string_view path) const;
    static Need need(const Route & route);
    static BodyKind body_kind(const Route & route);

    // Answers a request on this thread through its sink, all but on_end. Returns soon after the request is stopped.
    RequestQueue::Tokens run(const Route & route, Request & request);

    // From the loop, also during a decode; nullopt when it did not answer before `timeout` (while it samples, or moves
    // a saved prompt).
    std::optional<std::vector<SlotState>> slots(std::chrono::milliseconds timeout);
    std::optional<ServerTotals> totals(std::chrono::milliseconds timeout);

    const ModelBounds & bounds() const;
    uint64_t weights_bytes() const;
    int32_t slot_context_tokens() const;
    int32_t threads() const; // that decode

private:
    struct State;
    explicit ServerHost(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

} // namespace strata::engine
