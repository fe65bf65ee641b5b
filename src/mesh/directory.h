#pragma once

#include "wire/message.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace strata::mesh {

using wire::Segment;

// Executors by number.
using Holders = uint64_t;
inline constexpr size_t kMaxExecutors = 62;
// Everybody, whoever comes later included: bytes that are zero since their buffer was made.
inline constexpr Holders kEverybody = ~Holders{0};

inline Holders holder(size_t executor) {
    return Holders{1} << executor;
}

// Bytes that the driver wrote and keeps.
using Bytes = std::shared_ptr<const std::vector<uint8_t>>;

// Who holds valid bytes, for each range of a lane's address space. Not thread-safe.
class Directory {
public:
    struct Entry {
        uint64_t end = 0;
        Holders holders = kEverybody;
        Bytes bytes; // the driver's, which begin at `bytes_address`
        uint64_t bytes_address = 0;

        bool same(const Entry & other) const {
            return holders == other.holders && bytes == nullptr && other.bytes == nullptr;
        }
    };

    void add(Segment range);    // a new buffer: zeros
    void remove(Segment range); // its end

    // The range was written by an executor, or is zero everywhere (kEverybody): nobody else's bytes are valid.
    void wrote(Segment range, Holders by);
    // The range was written by the driver. Executors in `holders` have the bytes as well.
    void wrote(Segment range, Bytes bytes);
    // An executor has valid bytes too.
    void has(Segment range, Holders executor);
    // An executor is gone, and all that it held. True when something was held by it alone.
    bool lost(Holders executor);
    // The driver forgets its copies in this range where an executor holds the bytes.
    void forget_bytes(Segment range);

    // Calls for each piece of the range, in order. Bytes outside of all buffers are left out.
    void visit(Segment range, const std::function<void(Segment, const Entry &)> & function) const;

    size_t entries() const { return entries_.size(); }

private:
    using Entries = std::map<uint64_t, Entry>;

    Entries::iterator split(uint64_t address); // the first entry that begins at or after it, once it is a boundary
    void change(Segment range, const std::function<void(Entry &)> & function);
    void merge(Segment range);

    Entries entries_;
};

// A set of addresses.
class RangeSet {
public:
    void add(Segment range);
    // What of `range` is not in the set.
    std::vector<Segment> without(Segment range) const;
    std::vector<Segment> segments() const;

private:
    std::map<uint64_t, uint64_t> ends_; // by begin
};

} // namespace strata::mesh
