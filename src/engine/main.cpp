// strata-engine: the process that links ggml. A thin program over libstrata: a driver with a control socket, or one
// job.
#include "base/version.h"
#include "engine/bind_command.h"
#include "engine/driver_process.h"
#include "engine/executor_process.h"
#include "engine/jobs.h"
#include "engine/quantize_command.h"
#include "strata/strata.h"

#include <CLI/CLI.hpp>
#include <absl/synchronization/mutex.h>
#include <nlohmann/json.hpp>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <string>
#include <vector>

namespace {

void on_log(strata_log_level level, const char * text, void *) {
    switch (level) {
    case STRATA_LOG_DEBUG:
        return spdlog::debug("{}", text);
    case STRATA_LOG_INFO:
        return spdlog::info("{}", text);
    case STRATA_LOG_WARN:
        return spdlog::warn("{}", text);
    case STRATA_LOG_ERROR:
        return spdlog::error("{}", text);
    }
}

// Stdout belongs to the results of jobs.
void start_log(const std::string & level) {
    spdlog::set_default_logger(spdlog::stderr_logger_mt("engine"));
    spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e %L %v");
    spdlog::set_level(spdlog::level::from_str(level));
    spdlog::flush_on(spdlog::level::info);
    strata_set_log(on_log, nullptr);
}

int run_driver(const strata::engine::DriverProcessOptions & options) {
    const absl::Status status = strata::engine::run_driver_process(options);
    if (status.ok()) return 0;
    spdlog::error("{}", std::string(status.message()));
    return 1;
}

int run_executor(const strata::engine::ExecutorProcessOptions & options) {
    const absl::Status status = strata::engine::run_executor_process(options);
    if (status.ok()) return 0;
    spdlog::error("{}", std::string(status.message()));
    return 1;
}

int print_version(bool as_json) {
    if (as_json) {
        const nlohmann::ordered_json json = {{"version", strata_version()}, {"engine_build", strata_engine_build()}};
        std::printf("%s\n", json.dump().c_str());
    } else {
        std::printf("strata-engine %s (%s)\n", strata_version(), strata_engine_build());
    }
    return 0;
}

} // namespace

int main(int argc, char ** argv) {
    // Debian builds Abseil with its search for lock cycles on, which every call of gRPC pays for.
    absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
    CLI::App app("The data plane of strata: loads models, answers requests, works on the layer store.\n"
                 "stratad starts it; by hand it is for debugging.");
    app.require_subcommand(1);
    app.failure_message(CLI::FailureMessage::help);
    std::string log_level = "info";
    app.add_option("--log-level", log_level, "What goes to stderr")
        ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "off"}))
        ->capture_default_str();
    app.fallthrough(); // --log-level also after the subcommand

    strata::engine::DriverProcessOptions driver;
    int64_t drain_ms = driver.drain.count();
    int64_t orphan_timeout_s = driver.orphan_timeout.count() / 1000;
    CLI::App & driver_command = *app.add_subcommand("driver", "Serve one model over gRPC (strata.v1.Engine)");
    driver_command.add_option("--socket", driver.socket, "Unix socket to listen on; made with mode 0600")->required();
    driver_command.add_option("--drain-ms", drain_ms, "How long running requests may go on after SIGTERM")
        ->check(CLI::Range(int64_t{0}, int64_t{86400000}))
        ->capture_default_str();
    driver_command
        .add_option("--orphan-timeout-s", orphan_timeout_s,
                    "End when the process that started this one is gone and nobody has called for this long; 0: never")
        ->check(CLI::Range(int64_t{0}, int64_t{86400}))
        ->capture_default_str();

    strata::engine::ExecutorProcessOptions executor;
    executor.build = STRATA_ENGINE_BUILD_STRING;
    CLI::App & executor_command =
        *app.add_subcommand("executor", "Hold layers and run parts of graphs for the drivers of a mesh");
    executor_command.add_option("--listen", executor.listen, "Address for drivers and other executors, on loopback")
        ->capture_default_str();
    executor_command.add_option("--name", executor.name, "What people call it; default: the address");
    executor_command.add_option("--threads", executor.threads, "Threads of the CPU; 0: one for each core")
        ->check(CLI::Range(0, 1024))
        ->capture_default_str();
    executor_command
        .add_option("--memory-limit", executor.memory_limit_bytes,
                    "Memory for each driver beside weights, as in 8G; default: three quarters of what is free")
        ->transform(CLI::AsSizeValue(false));
    executor_command.add_option("--store", executor.store,
                                "Layer store: layers are taken from it, and kept in it; default: the user's");
    executor_command.add_option("--tls", executor.tls,
                                "Talk TLS, with certificates on both sides: folder with ca.pem, cert.pem, key.pem");
    executor_command.add_option("--folder", executor.folder, "Where weights of programs without digests are put")
        ->capture_default_str();

    strata::engine::BindCommand bind;
    CLI::App & bind_command =
        *app.add_subcommand("bind", "Bind layers of a driver's model to another executor, while it runs");
    bind_command.add_option("--socket", bind.socket, "The driver's")->required();
    bind_command.add_option("--layers", bind.layers, "A block or a range of them, as in 10-19; the tail is one more")
        ->required();
    bind_command.add_option("--to", bind.to, "The executor, HOST:PORT")->required();

    strata::engine::QuantizeCommand quantize;
    quantize.build = STRATA_ENGINE_BUILD_STRING;
    CLI::App & quantize_command = *app.add_subcommand(
        "quantize-layer", "Make a layer from one in an executor's store, with its matrices in another type");
    quantize_command.add_option("--executor", quantize.executor, "The executor, HOST:PORT")->required();
    quantize_command.add_option("--layer", quantize.layer, "The layer's digest, sha256:…")->required();
    quantize_command
        .add_option("--type", quantize.type,
                    "As in q4_0, q4_k, q8_0; from F16 or BF16 it loses less than from a quantized layer")
        ->required();
    quantize_command.add_flag("--json", quantize.json, "Progress and result as JSON lines");

    std::string store;
    std::string name;
    const auto add_store = [&](CLI::App & command) {
        command.add_option("--store", store, "Folder of the layer store")->required();
    };
    std::vector<std::string> sources;
    CLI::App & import_command = *app.add_subcommand("import", "Import a GGUF model, or \"oci:DIR[:REF]\"");
    add_store(import_command);
    import_command.add_option("--name", name, "NAME[:TAG]; default: from the file's name");
    import_command.add_option("FILES", sources, "The file, or all files of a split model")->required();

    std::string url;
    CLI::App & pull_command = *app.add_subcommand("pull", "Fetch and import a model");
    add_store(pull_command);
    pull_command.add_option("--name", name, "NAME[:TAG]; default: from the file's name");
    pull_command.add_option("URL", url, "hf://ORG/REPO/FILE")->required();

    std::string model;
    CLI::App & verify_command = *app.add_subcommand("verify", "Hash every blob of a model or of the store");
    add_store(verify_command);
    verify_command.add_option("MODEL", model, "NAME[:TAG]; default: the whole store");

    bool as_json = false;
    CLI::App & version_command = *app.add_subcommand("version", "Print the version and the engine build");
    version_command.add_flag("--json", as_json, "As JSON");

    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError & error) { // also --help, with 0
        constexpr int kWrongUse = 2;
        return app.exit(error) == 0 ? 0 : kWrongUse;
    }
    start_log(log_level);
    if (driver_command.parsed()) {
        driver.drain = std::chrono::milliseconds(drain_ms);
        driver.orphan_timeout = std::chrono::seconds(orphan_timeout_s);
        return run_driver(driver);
    }
    if (executor_command.parsed()) return run_executor(executor);
    if (bind_command.parsed()) return strata::engine::run_bind(bind);
    if (quantize_command.parsed()) return strata::engine::run_quantize(quantize);
    if (import_command.parsed()) return strata::engine::run_import(store, name, sources);
    if (pull_command.parsed()) return strata::engine::run_pull(store, name, url);
    if (verify_command.parsed()) return strata::engine::run_verify(store, model);
    return print_version(as_json);
}
