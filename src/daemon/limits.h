#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>

// What bounds the daemon's memory, processes and patience.
namespace strata::daemon::limits {

// Requests held while their model loads, over all models; beyond either number a request is refused with 429.
inline constexpr size_t kWaitingRequests = 4096;
inline constexpr size_t kWaitingBytes = size_t{256} << 20;
// A request that has not begun to run by then is refused with 503. The engine's queue gets what is left of it.
inline constexpr std::chrono::milliseconds kRequestDeadline = std::chrono::minutes(10);
// An answer that is not a stream is held until it is whole, so that a client never gets half of a JSON document.
inline constexpr size_t kWholeAnswerBytes = size_t{64} << 20;
// One gRPC message: a request body with images, and some room around it.
inline constexpr int kMessageBytes = 128 << 20;
// What a slow reader of a gRPC stream may leave unread before its request is cancelled.
inline constexpr size_t kUnreadBytes = size_t{8} << 20;
// HTTP bodies may be 64 MiB; the ones that come over gRPC no more.
inline constexpr size_t kBodyBytes = size_t{64} << 20;

// An engine process must answer its first status call within this time.
inline constexpr std::chrono::milliseconds kEngineUp = std::chrono::seconds(30);
// A running engine that has answered no status call for this long is taken for hung and killed.
inline constexpr std::chrono::milliseconds kEngineSilent = std::chrono::seconds(30);
// An engine of an earlier daemon must answer within this time to be adopted.
inline constexpr std::chrono::milliseconds kAdoption = std::chrono::seconds(3);
// From SIGTERM to SIGKILL.
inline constexpr std::chrono::milliseconds kTermination = std::chrono::seconds(10);
// How often running engines are asked for their status, deadlines are looked at and logs are rotated.
inline constexpr std::chrono::milliseconds kPoll = std::chrono::seconds(2);
inline constexpr std::chrono::milliseconds kPollAnswer = std::chrono::seconds(1);
inline constexpr std::chrono::milliseconds kSweep = std::chrono::milliseconds(500);

inline constexpr std::chrono::milliseconds kFirstBackoff = std::chrono::milliseconds(500);
inline constexpr std::chrono::milliseconds kLongestBackoff = std::chrono::seconds(30);
// The pause before the next start, after so many failures in a row (1, 2, ...).
inline std::chrono::milliseconds backoff_after(int failures) {
    return std::min(kFirstBackoff * (1 << std::min(failures - 1, 10)), kLongestBackoff);
}
// An engine that ran this long was healthy: the next failure starts with the first back-off again.
inline constexpr std::chrono::milliseconds kHealthy = std::chrono::minutes(1);
// After this many failures in a row a deployment that is not kept is left stopped until it is asked for again.
inline constexpr int kFailuresInRow = 5;
// How long a request may wait for a place among the loaded models before a busy one is drained to make room.
inline constexpr std::chrono::milliseconds kPlacePatience = std::chrono::seconds(10);

// Models that a node tells the others of.
inline constexpr size_t kServedModels = 32;

inline constexpr size_t kRunningJobs = 2;
inline constexpr size_t kWaitingJobs = 16;
inline constexpr size_t kJobLineBytes = 1 << 20;
inline constexpr size_t kJobStderrBytes = 8 << 10;
inline constexpr size_t kImportSources = 1024;

inline constexpr uint64_t kLogBytes = 10 << 20; // then the log is moved to NAME.1
inline constexpr int kLogFiles = 3;
inline constexpr int32_t kLogLines = 10'000; // what Logs returns at most before it follows
inline constexpr size_t kLogChunkBytes = 64 << 10;

} // namespace strata::daemon::limits
