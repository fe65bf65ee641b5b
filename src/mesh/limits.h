#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace strata::mesh {

// Commands leave when they are this many bytes, whatever comes after them.
inline constexpr size_t kFlushBytes = size_t{4} << 20;
// How far the driver may be ahead of an executor.
inline constexpr uint64_t kMaxUnfinishedGraphs = 64;
inline constexpr uint64_t kMaxUnfinishedBytes = uint64_t{256} << 20;
// Graphs named at the executors; then all are forgotten.
inline constexpr size_t kMaxNamedGraphs = 192;
inline constexpr size_t kMaxCapturedGraphs = 64;
// One command's payload, or one weight frame's.
inline constexpr size_t kPieceBytes = size_t{8} << 20;
// Rows that a node writes are told apart up to this many runs; more count as the whole tensor.
inline constexpr size_t kMaxRowRuns = 64;
// Of weights, that wait for the network.
inline constexpr size_t kMaxQueuedBlobBytes = size_t{32} << 20;
// How long to wait before a full link is looked at again, and when no link is full.
inline constexpr std::chrono::milliseconds kFullLinkPause{1};
inline constexpr std::chrono::milliseconds kIdlePause{1000};
// What the lane keeps to be able to do all again.
inline constexpr uint64_t kMaxJournalBytes = uint64_t{512} << 20;

inline constexpr std::chrono::milliseconds kOpenTimeout{10000};
// Of an executor, after a loss.
inline constexpr std::chrono::milliseconds kAnswerTimeout{10000};
// How long lost layers wait to be bound elsewhere, where that is somebody else's to do.
inline constexpr std::chrono::milliseconds kLossPatience{60000};

} // namespace strata::mesh
