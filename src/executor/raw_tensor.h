#pragma once

#include <ggml-backend.h>

#include <algorithm>

namespace strata::executor {

// Bytes of a device's memory, as ggml's functions that set, get and copy want them.
inline ggml_tensor raw_tensor(ggml_backend_buffer_t buffer, uint8_t * data, size_t bytes) {
    ggml_tensor raw{};
    raw.type = GGML_TYPE_I8;
    std::ranges::fill(raw.ne, 1);
    std::ranges::fill(raw.nb, bytes);
    raw.ne[0] = static_cast<int64_t>(bytes);
    raw.nb[0] = 1;
    raw.buffer = buffer;
    raw.data = data;
    return raw;
}

} // namespace strata::executor
