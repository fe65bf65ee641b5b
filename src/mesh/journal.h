#pragma once

#include "mesh/directory.h"
#include "mesh/step.h"

#include <memory>
#include <variant>
#include <vector>

namespace strata::mesh {

// All that changed a lane's memory, in order, since it was committed last: enough to do it again from there, wherever
// the layers are bound by then. Bounded: what is more makes it incomplete, and then a loss can't be mended.
//
// Nothing commits yet (that takes standbys), so the journal goes back to the lane's beginning.
class Journal {
public:
    struct Set {
        Segment range;
        Bytes bytes; // shared with the directory
    };
    struct Fill {
        Segment range;
        uint8_t value;
    };
    struct Copy {
        uint64_t to;
        Segment from;
    };
    struct Graph {
        std::shared_ptr<const CapturedGraph> graph;
    };
    using Entry = std::variant<Set, Fill, Copy, Graph>;

    explicit Journal(uint64_t limit_bytes)
        : limit_bytes_(limit_bytes) {}

    void add(Entry entry) {
        if (!complete_) return;
        bytes_ += sizeof(Entry);
        if (const auto * set = std::get_if<Set>(&entry)) bytes_ += set->range.bytes;
        entries_.push_back(std::move(entry));
        if (bytes_ > limit_bytes_) give_up();
    }
    // Something happened that can't be done again.
    void give_up() {
        complete_ = false;
        entries_ = {};
        bytes_ = 0;
    }

    bool complete() const { return complete_; }
    const std::vector<Entry> & entries() const { return entries_; }
    uint64_t bytes() const { return bytes_; }

private:
    const uint64_t limit_bytes_;
    std::vector<Entry> entries_;
    uint64_t bytes_ = 0;
    bool complete_ = true;
};

} // namespace strata::mesh
