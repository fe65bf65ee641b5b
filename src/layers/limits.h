#pragma once

#include <cstddef>
#include <cstdint>

// Everything that the store reads from a disk is untrusted: a person may have copied it in. These bounds keep what a
// file can cost; each is far above what a real model needs.
namespace strata::layers::limits {

inline constexpr uint64_t kManifestBytes = uint64_t{4} << 20;
inline constexpr uint64_t kStoreIndexBytes = uint64_t{64} << 20;  // index.json
inline constexpr uint64_t kModelIndexBytes = uint64_t{256} << 20; // the tensor index of one model
inline constexpr uint64_t kLineageBytes = uint64_t{1} << 20;
inline constexpr uint64_t kLeaseBytes = uint64_t{64} << 20;
inline constexpr uint64_t kVerifiedBytes = uint64_t{64} << 20;

inline constexpr size_t kJsonDepth = 32;
inline constexpr size_t kJsonTokens = size_t{8} << 20; // values, keys, brackets: bounds the memory of a parsed document

inline constexpr size_t kModels = 100'000;  // entries of index.json
inline constexpr size_t kManifestDepth = 4; // indexes within indexes
inline constexpr size_t kManifestLayers = 9'999;
inline constexpr size_t kTensors = 200'000;     // of one model
inline constexpr size_t kTensorNameBytes = 256; // ggml itself takes 63
inline constexpr size_t kTensorDims = 4;
inline constexpr size_t kMetadataEntries = 100'000;
inline constexpr size_t kTextBytes = size_t{1} << 20; // one metadata value
inline constexpr size_t kWordBytes = 256;             // an architecture, a type, a media type
inline constexpr size_t kOriginBytes = 8192;

inline constexpr size_t kCachedTensors = 500'000; // in the parsed indexes that a store keeps in memory
inline constexpr size_t kCachedLineages = 10'000;

inline constexpr uint64_t kReadBytes = uint64_t{1} << 20;      // one read while hashing or copying
inline constexpr uint64_t kWritebackBytes = uint64_t{1} << 20; // written so much, the kernel is told to begin
inline constexpr int64_t kLockWaitMs = 60'000;

} // namespace strata::layers::limits
