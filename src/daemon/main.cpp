// stratad: serves the models of a home over HTTP and gRPC.
#include "base/api_error.h"
#include "base/duration.h"
#include "base/home.h"
#include "base/text.h"
#include "base/version.h"
#include "daemon/daemon.h"
#include "daemon/logging.h"

#include <CLI/CLI.hpp>
#include <absl/synchronization/mutex.h>
#include <fmt/format.h>
#include <malloc.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <string>

namespace {

using strata::daemon::Daemon;
using strata::daemon::DaemonOptions;

// Exit codes, as those of the strata command.
constexpr int kFailed = 1;
constexpr int kWrongUse = 2;

struct Arguments {
    std::string home;
    std::string listen = "127.0.0.1:7420";
    std::string engine;
    std::string idle_timeout = "10m";
    std::string drain = "30s";
    std::string log_level = "info";
    bool json = false;
};

std::filesystem::path beside_this_program(const char * name) {
    std::error_code failed;
    const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
    return failed ? std::filesystem::path(name) : self.parent_path() / name;
}

// "ADDRESS:PORT", "[ADDRESS]:PORT" for IPv6, or a port alone.
absl::Status parse_listen(const std::string & text, strata::gateway::ServerOptions & http) {
    const size_t colon = text.rfind(':');
    std::string address = colon == std::string::npos ? "" : text.substr(0, colon);
    const std::string port = colon == std::string::npos ? text : text.substr(colon + 1);
    if (address.size() > 2 && address.front() == '[' && address.back() == ']') {
        address = address.substr(1, address.size() - 2);
    }
    if (!address.empty()) http.address = address;
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), http.port);
    if (port.empty() || error != std::errc() || end != port.data() + port.size()) {
        return absl::InvalidArgumentError(
            fmt::format("--listen \"{}\": write ADDRESS:PORT, for example 127.0.0.1:7420", strata::printable(text)));
    }
    return absl::OkStatus();
}

absl::Status serve(const Arguments & arguments, DaemonOptions options) {
    STRATA_RETURN_IF_ERROR(parse_listen(arguments.listen, options.http));
    STRATA_ASSIGN_OR_RETURN(options.idle_timeout, strata::parse_duration(arguments.idle_timeout));
    STRATA_ASSIGN_OR_RETURN(const auto drain, strata::parse_duration(arguments.drain));
    options.home = strata::Home::find(arguments.home);
    options.engine_program =
        arguments.engine.empty() ? beside_this_program("strata-engine") : std::filesystem::absolute(arguments.engine);
    std::error_code failed;
    std::filesystem::create_directories(options.home.logs(), failed);
    if (failed) return strata::errno_status(failed.value(), "make the folder", options.home.logs().native());
    STRATA_RETURN_IF_ERROR(strata::daemon::set_up_logging(options.home.logs() / "stratad.log", arguments.log_level,
                                                          arguments.json ? strata::daemon::Console::kJson
                                                                         : strata::daemon::Console::kText));

    STRATA_ASSIGN_OR_RETURN(const auto daemon, Daemon::start(options));
    spdlog::info("strata {} serves {} on {}", STRATA_VERSION_STRING, options.home.root.native(), daemon->url());
    // For people only: what is logged stays.
    const bool person = ::isatty(STDOUT_FILENO) == 1 && !arguments.json;
    if (const std::string command = person ? daemon->join_command() : ""; !command.empty()) {
        std::printf("another machine becomes a node of this cluster, within an hour, with\n  %s\n", command.c_str());
    }
    daemon->wait_for_signal();
    daemon->stop(drain);
    return absl::OkStatus();
}

// In the forms of the strata command.
void report(const absl::Status & status, bool json) {
    const std::string message(status.message());
    if (json) {
        std::string code = absl::StatusCodeToString(status.code());
        std::transform(code.begin(), code.end(), code.begin(), [](unsigned char c) { return std::tolower(c); });
        const nlohmann::ordered_json line = {{"error", {{"code", code}, {"message", message}}}};
        std::printf("%s\n", strata::dump_replacing(line).c_str());
    } else {
        std::fprintf(stderr, "stratad: %s\n", message.c_str());
    }
}

} // namespace

int main(int argc, char ** argv) {
    // A few threads share their memory: an arena for each would keep what the busiest moment of each needed.
    ::mallopt(M_ARENA_MAX, 2);
    std::signal(SIGPIPE, SIG_IGN);
    // Debian builds Abseil with its search for lock cycles on, which every call of gRPC pays for.
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);

    Arguments arguments;
    DaemonOptions options;
    CLI::App app("Serves the models of a home over HTTP (OpenAI, Anthropic) and, for the strata command, over gRPC.\n"
                 "Models load on first use. Example: stratad --listen 127.0.0.1:7420 --idle-timeout 30m");
    app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    app.set_version_flag("--version", STRATA_VERSION_STRING);
    app.add_option("--home", arguments.home, "Folder of models, state and logs [$STRATA_HOME, ~/.local/share/strata]");
    app.add_option("--listen", arguments.listen, "Address and port of the HTTP API; loopback only; port 0 picks one")
        ->envname("STRATA_LISTEN")
        ->capture_default_str();
    app.add_option("--cluster", options.cluster,
                   "Begin a cluster that other nodes join at this address, ADDRESS[:PORT], by default port 7421; the "
                   "next port is its executor's")
        ->envname("STRATA_CLUSTER");
    app.add_option("--node-name", options.node_name, "Of this node, when it begins a cluster [the host's]");
    app.add_option("--executor-threads", options.executor_threads,
                   "Threads with which this node works on the models of its cluster; 0: one for each core")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    app.add_option("--allow-host", options.http.allow_hosts,
                   "Name that a Host or Origin header may carry besides loopback's; may be repeated")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    app.add_option("--idle-timeout", arguments.idle_timeout,
                   "Unload a model after this time without requests; 0: never")
        ->capture_default_str();
    app.add_option("--max-loaded", options.max_loaded, "Models loaded at once; the one used longest ago goes; 0: any")
        ->check(CLI::Range(0, 10'000))
        ->capture_default_str();
    app.add_option("--drain", arguments.drain, "Time that running requests get to end when the daemon is stopped")
        ->capture_default_str();
    app.add_option("--engine", arguments.engine, "The engine program [strata-engine beside this program]");
    app.add_option("--log-level", arguments.log_level, "trace, debug, info, warn or error")->capture_default_str();
    app.add_flag("--json", arguments.json, "Log to stdout as JSON lines, as the strata command does with --json");
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError & error) { // also --help and --version, with 0
        return app.exit(error) == 0 ? 0 : kWrongUse;
    }

    const absl::Status status = serve(arguments, options);
    if (status.ok()) return 0;
    report(status, arguments.json);
    return absl::IsInvalidArgument(status) ? kWrongUse : kFailed; // only values of options are invalid here
}
