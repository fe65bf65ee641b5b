#pragma once

#include <gguf.h>

#include <bit>
#include <cstring>
#include <string>
#include <string_view>

// The bytes of GGUF's scalars.
namespace strata::layers {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");

// `data` has at least sizeof(T) bytes; they need not be aligned.
template <typename T>
T load(std::string_view data) {
    T value;
    std::memcpy(&value, data.data(), sizeof(T));
    return value;
}

template <typename T>
void append(std::string & out, T value) {
    out.append(reinterpret_cast<const char *>(&value), sizeof(T));
}

inline void append_string(std::string & out, std::string_view text) {
    append<uint64_t>(out, text.size());
    out += text;
}

// 0 for strings, arrays and what is no type.
inline uint64_t scalar_bytes(gguf_type type) {
    switch (type) {
    case GGUF_TYPE_UINT8:
    case GGUF_TYPE_INT8:
    case GGUF_TYPE_BOOL:
        return 1;
    case GGUF_TYPE_UINT16:
    case GGUF_TYPE_INT16:
        return 2;
    case GGUF_TYPE_UINT32:
    case GGUF_TYPE_INT32:
    case GGUF_TYPE_FLOAT32:
        return 4;
    case GGUF_TYPE_UINT64:
    case GGUF_TYPE_INT64:
    case GGUF_TYPE_FLOAT64:
        return 8;
    default:
        return 0;
    }
}

} // namespace strata::layers
