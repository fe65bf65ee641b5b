#pragma once

#include "base/status.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace strata::cluster {

// A key's value, and the revision of the store that gave it to the key.
struct Entry {
    std::string key;
    std::string value;
    int64_t revision = 0;
};

// All keys of a prefix as they were at one revision, in the order of their bytes.
struct Listing {
    std::vector<Entry> entries;
    int64_t revision = 0;
};

// A change of one key: its new value, or none when it was removed.
struct Change {
    std::string key;
    std::optional<std::string> value;
    int64_t revision = 0;
};

// Writes that happen together, or not at all.
struct Transaction {
    // Each key must have got its value at that revision; 0: there must be no such key.
    struct Condition {
        std::string key;
        int64_t revision = 0;
    };
    struct Put {
        std::string key;
        std::string value;
        int64_t lease = 0; // the key goes with it; 0: it stays
    };
    std::vector<Condition> conditions = {};
    std::vector<Put> puts = {};
    std::vector<std::string> removals = {}; // keys that are not there may be removed
};

// What a cluster knows: a map from keys to values, with a revision that grows with each transaction that changes
// something. Thread-safe. Calls block, for a disk or a network: none of them belongs on an event loop. A store that
// can't be reached is kUnavailable; reads have tried all its servers by then.
class Store {
public:
    virtual ~Store() = default;

    virtual absl::StatusOr<std::optional<Entry>> get(std::string_view key) = 0;
    virtual absl::StatusOr<Listing> list(std::string_view prefix) = 0;

    // Returns the revision at which the writes happened; kAborted: a condition does not hold, nothing happened.
    // What was committed is on the disk. kNotFound: a lease is not there. kUnavailable: the store was lost on the way,
    // and the writes happened or not.
    virtual absl::StatusOr<int64_t> commit(const Transaction & transaction) = 0;

    // A lease ends when nobody has renewed it for `ttl_ms`, and takes its keys along. A store that was not running
    // meanwhile gives all leases their whole time again.
    virtual absl::StatusOr<int64_t> grant_lease(int64_t ttl_ms) = 0;
    virtual absl::Status renew_lease(int64_t lease) = 0; // kNotFound: it has ended
    virtual absl::Status end_lease(int64_t lease) = 0;

    // Changes of the prefix's keys since `after` (a revision), oldest first, with none left out, as they happen: the
    // changes of one revision in one call, on a thread of the store, which may use the store but neither begin nor end
    // a watch. kOutOfRange, at once or later as the last call of `ended`: changes that old are not kept any more,
    // list() again.
    class Watch {
    public:
        virtual ~Watch() = default; // no call comes after it; may wait for one that runs
    };
    using OnChanges = std::function<void(const std::vector<Change> & changes)>;
    using OnEnd = std::function<void(const absl::Status & why)>;
    virtual absl::StatusOr<std::unique_ptr<Watch>> watch(std::string_view prefix, int64_t after, OnChanges changes,
                                                         OnEnd ended) = 0;
};

} // namespace strata::cluster
