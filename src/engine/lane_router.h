#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string_view>
#include <vector>

namespace strata::engine {

// Chooses the lane that a request goes to: the one that has most of its prompt cached, unless others have less to do
// by more than that is worth. What a lane has cached is what it was given last. Thread-safe.
class LaneRouter {
public:
    LaneRouter(size_t lanes, int32_t slots_each)
        : slots_each_(slots_each)
        , lanes_(lanes) {}

    // body: of the request. width: slots that it holds until it leaves.
    size_t enter(std::string_view body, int32_t width);
    void leave(size_t lane, int32_t width);

private:
    // Of a prompt's pieces, each with all before it: equal up to where two prompts are.
    using Hashes = std::vector<uint64_t>;
    struct Lane {
        int32_t busy = 0; // slots
        std::deque<Hashes> prompts;
    };

    static Hashes hashes_of(std::string_view body);

    const int32_t slots_each_;
    std::mutex mutex_;
    std::vector<Lane> lanes_;
};

} // namespace strata::engine
