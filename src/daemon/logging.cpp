#include "daemon/logging.h"

#include "base/text.h"
#include "daemon/limits.h"

#include <fmt/format.h>
#include <spdlog/sinks/rotating_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
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

} // namespace

absl::Status set_up_logging(const std::filesystem::path & file, const std::string & level) {
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
    if (!stderr_is(file)) sinks.push_back(std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    auto logger = std::make_shared<spdlog::logger>("stratad", sinks.begin(), sinks.end());
    logger->set_level(parsed);
    logger->flush_on(spdlog::level::info);
    logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
    spdlog::set_default_logger(std::move(logger));
    return absl::OkStatus();
}

} // namespace strata::daemon
