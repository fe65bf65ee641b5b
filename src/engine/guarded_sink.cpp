#include "engine/guarded_sink.h"

#include "base/api_error.h"

#include <fmt/format.h>

namespace strata::engine {

namespace {

constexpr int kUnavailable = 503;

} // namespace

void GuardedSink::on_head(int status, std::string_view content_type) {
    stream_ = content_type.starts_with("text/event-stream");
    const absl::Status health = status < 400 && !stream_ ? health_() : absl::OkStatus();
    if (health.ok()) return sink_.on_head(status, content_type);
    failed_ = true;
    sink_.on_head(kUnavailable, "application/json; charset=utf-8");
    sink_.on_data(error_body(path_, kUnavailable, std::string(health.message())));
}

void GuardedSink::on_data(std::string_view data) {
    if (failed_) return;
    const absl::Status health = stream_ ? health_() : absl::OkStatus();
    if (health.ok()) return sink_.on_data(data);
    failed_ = true;
    const std::string error = error_body(path_, kUnavailable, std::string(health.message()));
    sink_.on_data(fmt::format("{}data: {}\n\n", is_anthropic(path_) ? "event: error\n" : "", error));
}

} // namespace strata::engine
