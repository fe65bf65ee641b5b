#pragma once

#include <cstddef>
#include <cstdint>

// Limits on what a caller may ask of the library. Beyond them a call fails with STRATA_INVALID_ARGUMENT and says the
// limit.
namespace strata::engine {

constexpr size_t kMaxOptionsBytes = 4096;  // struct_size of an options struct
constexpr size_t kMaxPathBytes = 4096;     // PATH_MAX
constexpr size_t kMaxTextBytes = 16 << 20; // a prompt, a text to tokenize or to embed, a chat
constexpr size_t kMaxTokens = 1 << 24;     // tokens in one call
constexpr size_t kMaxChatMessages = 65536;
constexpr size_t kMaxSources = 4096;            // files of one import
constexpr int32_t kMaxThreads = 512;            // ggml's GGML_MAX_N_THREADS
constexpr int32_t kDefaultContextTokens = 4096; // at most, when the caller names none
constexpr int32_t kDefaultBatchTokens = 512;
constexpr int32_t kPipelineBatchTokens = 128; // bench/mesh.py, prefill over two executors
constexpr size_t kMaxGrammarBytes = 256 << 10;
constexpr size_t kMaxGrammarNesting = 128;     // of groups; llama.cpp's parser calls itself for each
constexpr size_t kMaxGrammarRules = 16384;     // llama.cpp's check for left recursion calls itself along rules
constexpr size_t kMaxCapturedErrors = 16;      // error lines of llama.cpp kept for a message
constexpr size_t kMaxCapturedErrorBytes = 500; // of each

} // namespace strata::engine
