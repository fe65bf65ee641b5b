#pragma once

#include "base/status.h"

#include <string>
#include <string_view>
#include <vector>

namespace strata::cli {

struct SseEvent {
    std::string type; // of the "event:" field; empty when there was none
    std::string data; // the "data:" fields, joined by a newline

    bool operator==(const SseEvent &) const = default;
};

// Reads a stream of server-sent events (the HTML standard's "event stream interpretation") from pieces that may be cut
// anywhere. Not thread-safe.
class SseParser {
public:
    // More than this in one event is refused: the stream is then not what it should be.
    static constexpr size_t kMaxEventBytes = 16 << 20;

    // The events that `piece` completes, in order. kResourceExhausted when an event passes kMaxEventBytes; the parser
    // must not be fed after that.
    absl::StatusOr<std::vector<SseEvent>> feed(std::string_view piece);

private:
    void take_line(std::vector<SseEvent> & events);

    std::string line_;
    SseEvent event_;
    bool has_data_ = false;
    bool skip_newline_ = false; // the last piece ended in the "\r" of a possible "\r\n"
    bool first_line_ = true;
};

} // namespace strata::cli
