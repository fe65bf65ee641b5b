#include "cli/progress.h"

#include "base/text.h"
#include "cli/text.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace strata::cli {

namespace {

using std::chrono::duration;
using std::chrono::milliseconds;

constexpr milliseconds kBeforeFirstDraw{300}; // what is over sooner needs no bar
constexpr milliseconds kBetweenDraws{100};
constexpr milliseconds kBeforeFirstLine{2000};
constexpr milliseconds kBetweenLines{5000};
constexpr size_t kWidestBar = 40;
constexpr size_t kNarrowestBar = 8;

// Asked at each draw, so that a resized terminal needs no signal.
size_t terminal_columns() {
    winsize size{};
    if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
    return size.ws_col;
}

std::string clock_time(double seconds) {
    const auto whole = static_cast<int64_t>(std::min(seconds + 0.5, 359999.0));
    if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole % 3600 / 60, whole % 60);
    return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

void write_err(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
}

double fraction_of(const ProgressView & view) {
    return view.total == 0 ? 0 : std::min(static_cast<double>(view.done) / static_cast<double>(view.total), 1.0);
}

} // namespace

void RateMeter::add(Time now, uint64_t done) {
    if (!samples_.empty() && done < samples_.back().second) samples_.clear(); // the operation began anew
    samples_.emplace_back(now, done);
    while (samples_.size() > 2 && now - samples_[1].first >= kWindow) samples_.pop_front();
}

std::optional<double> RateMeter::per_second() const {
    if (samples_.size() < 2) return std::nullopt;
    const double seconds = duration<double>(samples_.back().first - samples_.front().first).count();
    const uint64_t done = samples_.back().second - samples_.front().second;
    if (seconds <= 0 || done == 0) return std::nullopt;
    return static_cast<double>(done) / seconds;
}

std::string render_progress(const ProgressView & view, size_t columns, const Output & output) {
    const double fraction = fraction_of(view);
    const std::string percent = view.total == 0 ? "" : fmt::format("{:3.0f}%", std::floor(fraction * 100));
    std::string sizes;
    std::string rate;
    if (view.bytes) {
        sizes = view.total == 0 ? human_bytes(view.done)
                                : fmt::format("{} of {}", human_bytes(view.done), human_bytes(view.total));
        if (view.rate) rate = human_bytes(static_cast<uint64_t>(*view.rate)) + "/s";
    }
    std::string left;
    if (view.rate && view.total > view.done) {
        left = clock_time(static_cast<double>(view.total - view.done) / *view.rate) + " left";
    }

    // One column stays free: a full line wraps on some terminals. In a narrow one the least important parts go first.
    const size_t room = columns > 1 ? columns - 1 : 0;
    std::string label = safe_text(view.label);
    const auto tail = [&] {
        std::string text;
        for (const std::string_view part :
             {std::string_view(percent), std::string_view(sizes), std::string_view(rate), std::string_view(left)}) {
            if (!part.empty()) text.append("  ").append(part);
        }
        return text;
    };
    for (std::string * part : {&sizes, &rate, &left}) {
        if (display_width(label) + display_width(tail()) + 2 + kNarrowestBar <= room) break;
        part->clear();
    }
    const size_t tail_width = display_width(tail());
    if (tail_width + 2 + kNarrowestBar < room) label = cut_to_width(label, room - tail_width - 2 - kNarrowestBar);

    const size_t used = display_width(label) + tail_width + 2;
    if (used + kNarrowestBar > room) return cut_to_width(label + tail(), room);
    const size_t width = std::min(room - used, kWidestBar);

    const auto repeat = [](std::string_view character, size_t count) {
        std::string text;
        for (size_t i = 0; i < count; ++i) text += character;
        return text;
    };
    std::string bar;
    if (view.total == 0) {
        // A short piece that goes to and fro.
        const size_t piece = std::min<size_t>(width / 3 + 1, width);
        const size_t span = width - piece;
        const size_t phase = span == 0 ? 0 : view.frame % (2 * span);
        const size_t start = phase <= span ? phase : 2 * span - phase;
        bar = output.err_style(Style::kDim, repeat("─", start)) + output.err_style(Style::kCyan, repeat("━", piece)) +
              output.err_style(Style::kDim, repeat("─", span - start));
    } else {
        const auto filled = static_cast<size_t>(fraction * static_cast<double>(width));
        bar = output.err_style(Style::kCyan, repeat("━", filled)) +
              output.err_style(Style::kDim, repeat("─", width - filled));
    }
    return label + "  " + bar + tail();
}

Progress::Progress(const Output & output, const Clock & clock)
    : output_(output)
    , clock_(clock)
    , started_(clock.now()) {}

Progress::~Progress() {
    clear();
}

void Progress::update(std::string_view label, uint64_t done, uint64_t total, bool bytes) {
    if (output_.json) return;
    const RateMeter::Time now = clock_.now();
    if (view_.label != label) {
        view_.label = label;
        rate_ = {};
    }
    view_.done = done;
    view_.total = total;
    view_.bytes = bytes;
    rate_.add(now, done);
    view_.rate = rate_.per_second();
    output_.err_terminal ? draw(now) : print_plain(now);
}

void Progress::draw(RateMeter::Time now) {
    if (last_shown_ ? now - *last_shown_ < kBetweenDraws : now - started_ < kBeforeFirstDraw) return;
    last_shown_ = now;
    ++view_.frame;
    // Carriage return, erase to the end of the line. Auto-wrap goes off so that a terminal that got narrower since its
    // size was read cuts the line instead of leaving half a bar on the screen.
    write_err("\r\x1b[K\x1b[?7l" + render_progress(view_, terminal_columns(), output_) + "\x1b[?7h");
    drawn_ = true;
}

void Progress::print_plain(RateMeter::Time now) {
    if (last_shown_ ? now - *last_shown_ < kBetweenLines : now - started_ < kBeforeFirstLine) return;
    last_shown_ = now;
    std::string line = safe_text(view_.label) + ":";
    if (view_.total != 0) line += fmt::format(" {:.0f}%", std::floor(fraction_of(view_) * 100));
    if (view_.bytes) line += fmt::format(" {}", human_bytes(view_.done));
    if (view_.bytes && view_.rate) line += fmt::format(" ({}/s)", human_bytes(static_cast<uint64_t>(*view_.rate)));
    write_err(line + "\n");
}

void Progress::clear() {
    if (!drawn_) return;
    write_err("\r\x1b[K");
    drawn_ = false;
}

} // namespace strata::cli
