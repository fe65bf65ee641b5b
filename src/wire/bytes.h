#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Little-endian numbers, one after another, as all documents of the wire are made of.
namespace strata::wire {

static_assert(std::endian::native == std::endian::little, "the wire is little-endian and copied as it is");

class Writer {
public:
    template <typename T>
    requires std::is_arithmetic_v<T> || std::is_enum_v<T>
    void put(T value) { raw(&value, sizeof(value)); }
    void raw(const void * data, size_t size) {
        const auto * bytes = static_cast<const uint8_t *>(data);
        bytes_.insert(bytes_.end(), bytes, bytes + size);
    }
    // Its length as a u16, then its bytes.
    void text(std::string_view text) {
        put(static_cast<uint16_t>(text.size()));
        raw(text.data(), text.size());
    }

    bool empty() const { return bytes_.empty(); }
    size_t size() const { return bytes_.size(); }
    std::span<const uint8_t> bytes() const { return bytes_; }
    std::vector<uint8_t> take() { return std::exchange(bytes_, {}); }
    void clear() { bytes_.clear(); }

private:
    std::vector<uint8_t> bytes_;
};

// Reads what a Writer wrote, or what somebody else sent instead: after the first read beyond the end all further ones
// give zeros, and ok() is false.
class Reader {
public:
    explicit Reader(std::span<const uint8_t> bytes)
        : bytes_(bytes) {}

    template <typename T>
    requires std::is_arithmetic_v<T> || std::is_enum_v<T> T get() {
        T value{};
        raw(&value, sizeof(value));
        return value;
    }
    void raw(void * out, size_t size) {
        const auto from = take(size);
        if (from.size() == size && size > 0) std::memcpy(out, from.data(), size);
    }
    // The next `size` bytes, in place.
    std::span<const uint8_t> take(uint64_t size) {
        if (size > bytes_.size()) {
            ok_ = false;
            bytes_ = {};
            return {};
        }
        const auto taken = bytes_.first(size);
        bytes_ = bytes_.subspan(size);
        return taken;
    }
    std::string text() {
        const auto bytes = take(get<uint16_t>());
        return {reinterpret_cast<const char *>(bytes.data()), bytes.size()};
    }

    bool ok() const { return ok_; }
    bool done() const { return bytes_.empty(); }
    size_t left() const { return bytes_.size(); }

private:
    std::span<const uint8_t> bytes_;
    bool ok_ = true;
};

} // namespace strata::wire
