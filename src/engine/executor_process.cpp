#include "engine/executor_process.h"

#include "base/home.h"
#include "engine/executor_store.h"
#include "engine/stop_signals.h"
#include "executor/executor.h"
#include "wire/tcp.h"

#include <fmt/format.h>
#include <ggml-backend.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace strata::engine {
namespace {

// All of ggml's devices that have memory, in the order in which people want them: GPUs, those that share the host's
// memory, the CPU.
std::vector<std::unique_ptr<executor::Device>> open_devices(int threads) {
    std::vector<std::unique_ptr<executor::Device>> devices;
    for (const auto type :
         {GGML_BACKEND_DEVICE_TYPE_GPU, GGML_BACKEND_DEVICE_TYPE_IGPU, GGML_BACKEND_DEVICE_TYPE_CPU}) {
        for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
            ggml_backend_dev_t device = ggml_backend_dev_get(i);
            if (ggml_backend_dev_type(device) != type) continue;
            spdlog::info("device {}: {} ({})", devices.size(), ggml_backend_dev_name(device),
                         ggml_backend_dev_description(device));
            devices.push_back(std::make_unique<executor::Device>(device, threads));
            devices.back()->start();
        }
    }
    return devices;
}

// A driver may have many blobs on their way, each of which is a file.
void allow_many_files() {
    rlimit files{};
    if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

uint64_t three_quarters_of_free() {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), &free, &total);
    return free / 4 * 3;
}

} // namespace

absl::Status run_executor_process(const ExecutorProcessOptions & options) {
    const StopSignals signals;
    allow_many_files();
    std::shared_ptr<const wire::TlsContext> tls;
    if (!options.tls.empty()) {
        STRATA_ASSIGN_OR_RETURN(tls, wire::TlsContext::load(options.tls));
    }
    wire::TcpNetwork network(tls);
    const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
    executor::ExecutorOptions made;
    made.name = options.name.empty() ? options.listen : options.name;
    made.build = options.build;
    made.folder = options.folder;
    if (options.memory_limit_bytes != 0) made.device_memory_limit_bytes = options.memory_limit_bytes;
    made.memory_limit_bytes = options.memory_limit_bytes != 0 ? options.memory_limit_bytes : three_quarters_of_free();
    STRATA_ASSIGN_OR_RETURN(made.store,
                            ExecutorStore::open(options.store.empty() ? Home::find().store() : options.store));
    made.kept_blobs_bytes = three_quarters_of_free() / 2;
    made.log = [](const std::string & line) { spdlog::info("{}", line); };
    const auto executor = std::make_shared<executor::Executor>(
        network, std::move(made), open_devices(options.threads > 0 ? options.threads : cores));
    STRATA_ASSIGN_OR_RETURN(const std::string address, network.listen(options.listen, executor));
    std::printf("%s\n", nlohmann::json({{"listening", address}}).dump().c_str());
    std::fflush(stdout);
    spdlog::info("executor {} on {}{}", options.build, address, tls == nullptr ? "" : ", TLS only");
    int signal = 0;
    while (signal == 0) signal = signals.wait(std::chrono::milliseconds(1000));
    spdlog::info("signal {} ({})", signal, strsignal(signal));
    return absl::OkStatus();
}

} // namespace strata::engine
