#pragma once

#include <cstddef>
#include <cstdint>

// Limits of a driver. What a request may ask of llama.cpp's server is bounded here, because the server itself takes
// many numbers as they come. Beyond a limit a request is answered with an error that names the field and the limit.
namespace strata::engine {

// The queue.
constexpr int32_t kDefaultMaxWaiting = 4096;
constexpr int64_t kDefaultMaxWaitingBytes = 256 << 20;
constexpr size_t kRequestOverheadBytes = 1024; // counted for each waiting request beside its body
constexpr size_t kMaxBodyBytes = 128 << 20;    // images in base64 included
constexpr int32_t kMaxSlots = 256;             // LLAMA_MAX_SEQ
constexpr int32_t kDefaultSlots = 4;
constexpr int32_t kShortWorkers = 2; // for what needs no slot: tokenize, props, ...

// Loading.
constexpr int32_t kMaxContextTokens = 1 << 24;
constexpr int32_t kMaxBatchTokens = 1 << 16;
constexpr int32_t kMaxEmbeddingBatchTokens = 2048; // default at most; an input of an encoder must fit one micro-batch
constexpr int64_t kMaxPromptCacheMib = 8192;       // llama-server's default; at most an eighth of the memory
constexpr size_t kMaxLlamaArgs = 256;

// A body.
constexpr int kMaxJsonDepth = 100;    // the server and its schema converter call themselves per level
constexpr size_t kMaxPrompts = 128;   // in one completion request
constexpr size_t kMaxInputs = 2048;   // texts in one embedding or rerank request
constexpr int64_t kMaxLogprobs = 128; // per token; each is a piece of JSON
constexpr size_t kMaxStops = 128;     // each token is compared with each
constexpr size_t kMaxSamplers = 64;
constexpr size_t kMaxSequenceBreakers = 64; // each is matched against the whole vocabulary
constexpr size_t kMaxLogitBiases = 16384;
constexpr size_t kMaxSchemaProperties = 384;   // of one object; the schema converter's work grows with their cube
constexpr int64_t kMaxPenaltyWindow = 1 << 20; // tokens; the sampler allocates it at once
constexpr double kMaxSamplerNumber = 1e6;      // magnitude of temperatures, penalties, ...
constexpr size_t kPromptSlackBytes = 4096;     // beyond what the context can hold at the vocabulary's longest token

// Answers.
constexpr int64_t kSlotsTimeoutMs = 40; // a status waits that long for the slots, then tells the last known
constexpr int64_t kStatusReuseMs = 20;  // statuses closer together share one look at the slots

} // namespace strata::engine
