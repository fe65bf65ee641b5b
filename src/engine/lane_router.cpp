#include "engine/lane_router.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <functional>
#include <string>

namespace strata::engine {

namespace {

constexpr size_t kPieceBytes = 64;
constexpr size_t kMaxPieces = 16384;
// A lane with one request less is worth computing this much of a prompt again.
constexpr int64_t kBytesPerRequest = 2048;

// What of a request becomes its prompt, in the order in which templates use it.
std::string prompt_of(std::string_view body) {
    const auto json = nlohmann::ordered_json::parse(body, nullptr, false);
    if (!json.is_object()) return std::string(body);
    std::string prompt;
    for (const char * key : {"tools", "system", "instructions", "messages", "input", "prompt", "input_prefix"}) {
        if (!json.contains(key)) continue;
        std::string text = json[key].dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
        while (!text.empty() && (text.back() == ']' || text.back() == '"')) text.pop_back(); // it may go on
        prompt += text;
    }
    return prompt;
}

} // namespace

LaneRouter::Hashes LaneRouter::hashes_of(std::string_view body) {
    const std::string prompt = prompt_of(body);
    Hashes hashes;
    uint64_t hash = 0;
    for (size_t at = 0; at + kPieceBytes <= prompt.size() && hashes.size() < kMaxPieces; at += kPieceBytes) {
        hash = hash * 31 + std::hash<std::string_view>()(std::string_view(prompt).substr(at, kPieceBytes));
        hashes.push_back(hash);
    }
    return hashes;
}

size_t LaneRouter::enter(std::string_view body, int32_t width) {
    Hashes hashes = lanes_.size() > 1 ? hashes_of(body) : Hashes();
    const std::lock_guard lock(mutex_);
    const auto worth = [&](const Lane & lane) {
        size_t cached = 0;
        for (const Hashes & prompt : lane.prompts) {
            const auto [mine, theirs] = std::ranges::mismatch(hashes, prompt);
            cached = std::max(cached, static_cast<size_t>(mine - hashes.begin()));
        }
        // A lane without room would let the request wait.
        const int64_t waits = lane.busy + width > slots_each_ ? INT32_MAX : 0;
        return static_cast<int64_t>(cached * kPieceBytes) - lane.busy * kBytesPerRequest - waits;
    };
    const auto best = std::ranges::max_element(lanes_, {}, worth);
    best->busy += width;
    best->prompts.push_back(std::move(hashes));
    if (best->prompts.size() > static_cast<size_t>(slots_each_)) best->prompts.pop_front();
    return static_cast<size_t>(best - lanes_.begin());
}

void LaneRouter::leave(size_t lane, int32_t width) {
    const std::lock_guard lock(mutex_);
    lanes_[lane].busy -= width;
}

} // namespace strata::engine
