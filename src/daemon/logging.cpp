#include "daemon/logging.h"

#include "base/api_error.h"
#include "base/text.h"
#include "daemon/limits.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <vector>

namespace strata::daemon {

namespace {

bool stderr_is(const std::filesystem::path & file) {
    struct stat a {};
    struct stat b {};
    return ::fstat(STDERR_FILENO, &a) == 0 && ::stat(file.c_str(), &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

class JsonLines final : public spdlog::formatter {
public:
    void format(const spdlog::details::log_msg & message, spdlog::memory_buf_t & out) override {
        const auto since = message.time.time_since_epoch();
        const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(since).count() % 1000;
        const std::string_view level(spdlog::level::to_string_view(message.level).data());
        const nlohmann::ordered_json line = {
            {"time", fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:03}Z",
                                 fmt::gmtime(std::chrono::system_clock::to_time_t(message.time)), ms)},
            {"level", level},
            {"message", std::string_view(message.payload.data(), message.payload.size())}};
        const std::string text = dump_replacing(line) + "\n";
        out.append(text.data(), text.data() + text.size());
    }
    std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonLines>(); }
};

} // namespace

absl::Status set_up_logging(const std::filesystem::path & file, const std::string & level, Console console) {
    const spdlog::level::level_enum parsed = spdlog::level::from_str(level);
    if (parsed == spdlog::level::off && level != "off") {
        return absl::InvalidArgumentError(
            fmt::format("\"{}\" is no log level; there are trace, debug, info, warn, error", printable(level)));
    }
    std::vector<spdlog::sink_ptr> sinks;
    try {
        sinks.push_back(std::make_shared<spdlog::sinks::rotating_file_sink_mt>(file.native(), limits::kLogBytes,
                                                                               limits::kLogFiles));
    } catch (const spdlog::spdlog_ex & error) {
        return absl::InternalError(fmt::format("cannot log to {}: {}", file.native(), error.what()));
    }
    if (console == Console::kText && !stderr_is(file)) {
        sinks.push_back(std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    }
    for (const spdlog::sink_ptr & sink : sinks) sink->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
    if (console == Console::kJson) {
        sinks.push_back(std::make_shared<spdlog::sinks::stdout_sink_mt>());
        sinks.back()->set_formatter(std::make_unique<JsonLines>());
    }
    auto logger = std::make_shared<spdlog::logger>("stratad", sinks.begin(), sinks.end());
    logger->set_level(parsed);
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(std::move(logger));
    return absl::OkStatus();
}

} // namespace strata::daemon
