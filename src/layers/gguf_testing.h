#pragma once

#include "layers/gguf_bytes.h"

#include <ggml.h>
#include <gguf.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// Writes GGUF files for tests, right and wrong ones: each number that a file states can be set to another one.
namespace strata::layers::testing {

struct TestTensor {
    std::string name;
    std::vector<int64_t> shape = {32};
    int32_t type = GGML_TYPE_F32;
    std::string data; // its length is the tensor's
    // What the file says, when it is not the truth.
    std::vector<uint64_t> offset = {};     // one number
    std::vector<uint32_t> dimensions = {}; // one number
};

class GgufBuilder {
public:
    std::string magic = "GGUF";
    uint32_t version = 3;
    uint64_t alignment = 32; // of the data; set_alignment also says it
    int64_t more_keys = 0;   // added to the number that the file says
    int64_t more_tensors = 0;
    std::vector<std::string> pairs; // as they lie in the file
    std::vector<TestTensor> tensors;

    template <typename T>
    GgufBuilder & number(std::string_view key, gguf_type type, T value) {
        std::string & pair = start(key, type);
        append(pair, value);
        return *this;
    }
    GgufBuilder & u32(std::string_view key, uint32_t value) { return number(key, GGUF_TYPE_UINT32, value); }
    GgufBuilder & u16(std::string_view key, uint16_t value) { return number(key, GGUF_TYPE_UINT16, value); }
    GgufBuilder & i32(std::string_view key, int32_t value) { return number(key, GGUF_TYPE_INT32, value); }
    GgufBuilder & text(std::string_view key, std::string_view value) {
        append_string(start(key, GGUF_TYPE_STRING), value);
        return *this;
    }
    GgufBuilder & texts(std::string_view key, const std::vector<std::string> & values) {
        std::string & pair = start_array(key, GGUF_TYPE_STRING, values.size());
        for (const std::string & value : values) append_string(pair, value);
        return *this;
    }
    template <typename T>
    GgufBuilder & numbers(std::string_view key, gguf_type type, const std::vector<T> & values) {
        std::string & pair = start_array(key, type, values.size());
        for (const T & value : values) append(pair, value);
        return *this;
    }
    // A pair's beginning, for tests that go on by hand.
    std::string & start(std::string_view key, int32_t type) {
        std::string & pair = pairs.emplace_back();
        append_string(pair, key);
        append(pair, type);
        return pair;
    }
    std::string & start_array(std::string_view key, int32_t type, uint64_t count) {
        std::string & pair = start(key, GGUF_TYPE_ARRAY);
        append(pair, type);
        append(pair, count);
        return pair;
    }
    GgufBuilder & set_alignment(uint32_t value) {
        alignment = value;
        return u32(GGUF_KEY_GENERAL_ALIGNMENT, value);
    }
    // A tensor with bytes that depend on `seed` only.
    GgufBuilder & tensor(std::string_view name, std::vector<int64_t> shape = {32}, uint32_t seed = 1,
                         int32_t type = GGML_TYPE_F32) {
        int64_t elements = 1;
        for (const int64_t size : shape) elements *= size;
        const auto known = static_cast<ggml_type>(type);
        std::string data(static_cast<size_t>(elements / ggml_blck_size(known)) * ggml_type_size(known), '\0');
        uint32_t state = seed * 2654435761u + 1;
        for (char & c : data) {
            state = state * 1664525u + 1013904223u;
            c = static_cast<char>(state >> 24);
        }
        tensors.push_back({std::string(name), std::move(shape), type, std::move(data)});
        return *this;
    }

    std::string build() const {
        std::string out = header();
        if (!tensors.empty()) pad(out);
        for (const TestTensor & tensor : tensors) {
            out += tensor.data;
            pad(out);
        }
        return out;
    }
    // Without the padding in front of the data.
    std::string header() const {
        std::string out = magic;
        append(out, version);
        append<uint64_t>(out, tensors.size() + static_cast<uint64_t>(more_tensors));
        append<uint64_t>(out, pairs.size() + static_cast<uint64_t>(more_keys));
        for (const std::string & pair : pairs) out += pair;
        uint64_t offset = 0;
        for (const TestTensor & tensor : tensors) {
            append_string(out, tensor.name);
            append<uint32_t>(out, tensor.dimensions.empty() ? tensor.shape.size() : tensor.dimensions[0]);
            for (const int64_t size : tensor.shape) append(out, size);
            append(out, tensor.type);
            append(out, tensor.offset.empty() ? offset : tensor.offset[0]);
            offset = padded(offset + tensor.data.size());
        }
        return out;
    }

private:
    uint64_t padded(uint64_t size) const {
        return alignment == 0 ? size : (size + alignment - 1) / alignment * alignment;
    }
    void pad(std::string & out) const { out.resize(padded(out.size()), '\0'); }
};

// A small model that is right in all that import checks: `blocks` blocks, a vocabulary of four tokens, a tail.
inline GgufBuilder small_model(uint32_t blocks = 2) {
    GgufBuilder builder;
    builder.text("general.architecture", "llama")
        .text("general.name", "Small")
        .u32("general.file_type", 3)
        .u32("llama.block_count", blocks)
        .u32("llama.context_length", 128)
        .text("tokenizer.ggml.model", "gpt2")
        .texts("tokenizer.ggml.tokens", {"a", "b", "c", "\xc3\xa9"})
        .numbers<int32_t>("tokenizer.ggml.token_type", GGUF_TYPE_INT32, {1, 1, 1, 3})
        .u32("tokenizer.ggml.bos_token_id", 3);
    builder.tensor("token_embd.weight", {32, 4}, 100);
    for (uint32_t i = 0; i < blocks; ++i) {
        const std::string block = "blk." + std::to_string(i) + ".";
        builder.tensor(block + "attn_q.weight", {32, 2}, 10 * i + 2, GGML_TYPE_Q4_1);
        builder.tensor(block + "attn_norm.weight", {33}, 10 * i + 1); // 132 bytes: padding follows
    }
    builder.tensor("output_norm.weight", {32}, 101);
    return builder;
}

} // namespace strata::layers::testing
