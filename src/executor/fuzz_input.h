#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace strata::executor {

// A fuzzer's input as a row of decisions. Zeros once it is used up.
class FuzzInput {
public:
    explicit FuzzInput(std::span<const uint8_t> bytes)
        : bytes_(bytes) {}

    template <typename T>
    T take() {
        T out{};
        const auto from = bytes(sizeof out);
        if (!from.empty()) std::memcpy(&out, from.data(), from.size());
        return out;
    }
    size_t below(size_t limit) {
        if (limit <= 256) return take<uint8_t>() % limit;
        return take<uint16_t>() % limit;
    }
    // At most so many.
    std::span<const uint8_t> bytes(size_t most) {
        const auto out = bytes_.first(std::min(most, bytes_.size()));
        bytes_ = bytes_.subspan(out.size());
        return out;
    }
    bool empty() const { return bytes_.empty(); }

private:
    std::span<const uint8_t> bytes_;
};

} // namespace strata::executor
