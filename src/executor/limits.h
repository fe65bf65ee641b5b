#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

// What one driver's session may hold in an executor.
namespace strata::executor {

inline constexpr size_t kMaxBuffers = 4096;
inline constexpr uint64_t kMaxAddressSpaceBytes = uint64_t{1} << 44; // reserved, not used memory
inline constexpr size_t kMaxGraphs = 256;
inline constexpr size_t kMaxGraphBytes = size_t{256} << 20;
inline constexpr size_t kMaxPeers = 256;
// One node of a graph: a product with the largest vocabularies, attention over a million tokens. More would hold a
// device for hours.
inline constexpr double kMaxNodeOperations = 1e14;
inline constexpr double kMaxScratchBytes = uint64_t{4} << 30;
inline constexpr uint64_t kCopyPieceBytes = uint64_t{8} << 20;
// Of a device's memory, for one node that the host computes.
inline constexpr uint64_t kMaxHostCopyBytes = uint64_t{4} << 30;
// How long a device works for one driver while others wait, about; one node goes on to its end.
inline constexpr std::chrono::milliseconds kTurn{100};
inline constexpr double kFirstTurnOperations = 1e9; // until it is known how long they take
// Of a device's time for one graph.
inline constexpr std::chrono::minutes kMaxGraphTime{30};
inline constexpr size_t kMaxWeights = 1 << 20;
inline constexpr size_t kMaxOffers = 1 << 14;
inline constexpr size_t kMaxOffersBytes = size_t{256} << 20; // of what they say of their blobs
// Weights lie at multiples of this in their blobs, as in every GGUF file that can be mapped.
inline constexpr uint64_t kWeightAlignment = 32;
// Bytes of weights in memory of other types, repacked or a device's, for each of their blob: some devices' and, of
// those who say strange things of a weight, strange ones.
inline constexpr uint64_t kMaxCopiesOfBlob = 4;
// Commands that arrived and wait, several times what a driver that counts its credit sends (mesh/limits.h), and pushes
// that nobody expects yet.
inline constexpr size_t kMaxInboxBytes = size_t{1} << 30;
inline constexpr size_t kMaxInboxCommands = size_t{1} << 21;
inline constexpr size_t kMaxArrivedBytes = size_t{1} << 30;
// A driver hears of progress at least this often: it waits when it is far ahead (mesh/limits.h).
inline constexpr uint32_t kFramesPerProgress = 8;
inline constexpr uint64_t kGraphsPerProgress = 16;

// A source of blobs that sends nothing for so long is left for another one.
inline constexpr std::chrono::milliseconds kSourcePatience{10000};
// Blobs that peers ask for and that have to be looked for in the store; above that they are not here.
inline constexpr size_t kMaxStoreTasks = 1024;
// How much of a blob goes in one frame, executor to executor.
inline constexpr uint64_t kBlobPieceBytes = uint64_t{4} << 20;

// A device that drivers keep busy all the time does a piece of background work this often.
inline constexpr std::chrono::milliseconds kMaxBackgroundWait{100};

// Layer jobs at once, of one operator and of all.
inline constexpr size_t kMaxJobsOfOperator = 16;
inline constexpr size_t kMaxJobs = 64;
// What a job does in one turn on a device: until the first of these. A piece of the slowest types takes longer.
inline constexpr std::chrono::milliseconds kJobTurn{2};
inline constexpr size_t kJobTurnBytes = size_t{1} << 20;
// Bytes of one job that are made and not on the disk.
inline constexpr size_t kMaxUnwrittenBytes = size_t{4} << 20;
// An operator hears of a job's progress at most this often.
inline constexpr std::chrono::milliseconds kJobStateInterval{100};

// Memory is counted in pieces of this size, when they are first written.
inline constexpr uint64_t kChunkBytes = 64 << 10;

} // namespace strata::executor
