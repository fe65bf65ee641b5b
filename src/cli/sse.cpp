#include "cli/sse.h"

#include <utility>

namespace strata::cli {

namespace {
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";
} // namespace

absl::StatusOr<std::vector<SseEvent>> SseParser::feed(std::string_view piece) {
    std::vector<SseEvent> events;
    while (!piece.empty()) {
        if (std::exchange(skip_newline_, false) && piece.front() == '\n') {
            piece.remove_prefix(1);
            continue;
        }
        const size_t end = piece.find_first_of("\r\n");
        line_ += piece.substr(0, end);
        if (line_.size() + event_.data.size() > kMaxEventBytes) {
            return absl::ResourceExhaustedError("the answer has an event of more than 16 MiB");
        }
        if (end == std::string_view::npos) break;
        skip_newline_ = piece[end] == '\r';
        piece.remove_prefix(end + 1);
        take_line(events);
    }
    return events;
}

void SseParser::take_line(std::vector<SseEvent> & events) {
    std::string_view line = line_;
    if (std::exchange(first_line_, false) && line.starts_with(kByteOrderMark))
        line.remove_prefix(kByteOrderMark.size());

    if (line.empty()) {
        // An event without data is dropped, as the standard says.
        SseEvent event = std::exchange(event_, {});
        if (std::exchange(has_data_, false)) events.push_back(std::move(event));
    } else if (line.front() != ':') { // not a comment
        const size_t colon = line.find(':');
        const std::string_view field = line.substr(0, colon);
        std::string_view value = colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
        if (value.starts_with(' ')) value.remove_prefix(1);
        if (field == "data") {
            if (std::exchange(has_data_, true)) event_.data += '\n';
            event_.data += value;
        } else if (field == "event") {
            event_.type = value;
        }
    }
    line_.clear();
}

} // namespace strata::cli
