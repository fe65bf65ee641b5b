#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

// What a cluster's state may take.
namespace strata::cluster::limits {

constexpr size_t kKeyBytes = 512;
constexpr size_t kValueBytes = size_t{1} << 20; // etcd takes 1.5 MiB for a whole request
constexpr size_t kTransactionKeys = 128;        // as etcd's default
constexpr size_t kNodeNameBytes = 63;           // a label of DNS
constexpr size_t kNodeStatusBytes = 8 << 10;    // what a node says of itself
constexpr size_t kLeases = 100'000;
constexpr int64_t kShortestLeaseMs = 1000, kLongestLeaseMs = 86'400'000;
constexpr int64_t kKeptRevisions = 10'000; // for watches that come back

} // namespace strata::cluster::limits
