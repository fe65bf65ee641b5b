#pragma once

#include <cstdint>

// Limits on what a GGUF file may claim. Each is far above any real model; beyond it a file is refused before anything
// is allocated for it.
namespace strata::layers {

// Metadata and tensor infos together, which are read into memory. A vocabulary of 256,000 tokens with merges takes 20
// MB.
constexpr uint64_t kMaxGgufHeaderBytes = 512u << 20;
constexpr uint64_t kMaxGgufKeys = 1u << 16;
constexpr uint64_t kMaxGgufTensors = 1u << 16;
constexpr uint64_t kMaxGgufKeyBytes = 65535; // as the GGUF specification says
constexpr uint64_t kMaxGgufAlignment = 1u << 20;
// What llama.cpp can load (LLAMA_MAX_LAYERS in llama-hparams.h).
constexpr uint64_t kMaxModelBlocks = 512;
// Files of one split model; as many as llama.cpp's file names have room for.
constexpr uint64_t kMaxModelParts = 99999;

} // namespace strata::layers
