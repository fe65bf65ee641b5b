#include "mesh/directory.h"

#include <algorithm>

namespace strata::mesh {

Directory::Entries::iterator Directory::split(uint64_t address) {
    auto next = entries_.lower_bound(address);
    if (next == entries_.begin() || (next != entries_.end() && next->first == address)) return next;
    Entry & before = std::prev(next)->second;
    if (before.end <= address) return next;
    Entry rest = before;
    before.end = address;
    return entries_.emplace_hint(next, address, std::move(rest));
}

void Directory::change(Segment range, const std::function<void(Entry &)> & function) {
    auto at = split(range.address);
    split(range.end());
    for (; at != entries_.end() && at->first < range.end(); ++at) function(at->second);
    merge(range);
}

// Joins equal neighbours in and around the range.
void Directory::merge(Segment range) {
    auto at = entries_.lower_bound(range.address);
    if (at != entries_.begin()) --at;
    while (at != entries_.end() && at->first <= range.end()) {
        const auto next = std::next(at);
        if (next != entries_.end() && next->first == at->second.end && at->second.same(next->second)) {
            at->second.end = next->second.end;
            entries_.erase(next);
        } else {
            at = next;
        }
    }
}

void Directory::add(Segment range) {
    Entry entry;
    entry.end = range.end();
    entries_[range.address] = std::move(entry);
}

void Directory::remove(Segment range) {
    const auto first = split(range.address);
    const auto last = split(range.end());
    entries_.erase(first, last);
}

void Directory::wrote(Segment range, Holders by) {
    change(range, [&](Entry & entry) {
        entry.holders = by;
        entry.bytes.reset();
    });
}

void Directory::wrote(Segment range, Bytes bytes) {
    change(range, [&](Entry & entry) {
        entry.holders = 0;
        entry.bytes = bytes;
        entry.bytes_address = range.address;
    });
}

void Directory::has(Segment range, Holders executor) {
    change(range, [&](Entry & entry) { entry.holders |= executor; });
}

bool Directory::lost(Holders executor) {
    bool alone = false;
    for (auto & [begin, entry] : entries_) {
        if (entry.holders == kEverybody) continue;
        alone = alone || (entry.holders == executor && entry.bytes == nullptr);
        entry.holders &= ~executor;
    }
    return alone;
}

void Directory::forget_bytes(Segment range) {
    change(range, [](Entry & entry) {
        if (entry.holders != 0) entry.bytes.reset();
    });
}

void Directory::visit(Segment range, const std::function<void(Segment, const Entry &)> & function) const {
    auto at = entries_.upper_bound(range.address);
    if (at != entries_.begin()) --at;
    for (; at != entries_.end() && at->first < range.end(); ++at) {
        const uint64_t begin = std::max(at->first, range.address);
        const uint64_t end = std::min(at->second.end, range.end());
        if (begin < end) function({begin, end - begin}, at->second);
    }
}

void RangeSet::add(Segment range) {
    uint64_t begin = range.address, end = range.end();
    auto at = ends_.upper_bound(begin);
    if (at != ends_.begin() && std::prev(at)->second >= begin) --at;
    while (at != ends_.end() && at->first <= end) {
        begin = std::min(begin, at->first);
        end = std::max(end, at->second);
        at = ends_.erase(at);
    }
    ends_[begin] = end;
}

std::vector<Segment> RangeSet::without(Segment range) const {
    std::vector<Segment> left;
    uint64_t begin = range.address;
    auto at = ends_.upper_bound(begin);
    if (at != ends_.begin() && std::prev(at)->second > begin) --at;
    for (; at != ends_.end() && at->first < range.end(); ++at) {
        if (at->first > begin) left.push_back({begin, at->first - begin});
        begin = std::max(begin, at->second);
    }
    if (begin < range.end()) left.push_back({begin, range.end() - begin});
    return left;
}

std::vector<Segment> RangeSet::segments() const {
    std::vector<Segment> all;
    for (const auto & [begin, end] : ends_) all.push_back({begin, end - begin});
    return all;
}

} // namespace strata::mesh
