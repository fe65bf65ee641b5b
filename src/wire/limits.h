#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

// What a peer may ask for, and how long it may be silent.
namespace strata::wire {

// One frame. What is larger (a restored KV cache, a weight) goes as several.
inline constexpr size_t kMaxFrameBytes = size_t{64} << 20;
// The first frame of a connection.
inline constexpr size_t kMaxHelloBytes = size_t{4} << 10;
// Bytes accepted for sending and not yet taken by the network. A peer that reads slower than this is cut off.
inline constexpr size_t kMaxQueuedBytes = size_t{1} << 30;
inline constexpr size_t kMaxConnections = 256;

inline constexpr std::chrono::milliseconds kHelloTimeout{5000}; // for TLS's handshake as well
inline constexpr std::chrono::milliseconds kConnectTimeout{5000};
// A connection without other traffic carries a ping this often, and one that carries nothing for so long is dead.
inline constexpr std::chrono::milliseconds kPingInterval{2000};
inline constexpr std::chrono::milliseconds kSilenceTimeout{10000};
// A frame that has begun arrives within this plus a second for each of kMinBytesPerSecond.
inline constexpr std::chrono::milliseconds kFrameTimeout{10000};
inline constexpr size_t kMinBytesPerSecond = size_t{64} << 10;

} // namespace strata::wire
