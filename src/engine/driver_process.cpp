#include "engine/driver_process.h"

#include "base/unique_fd.h"
#include "engine/engine_service.h"
#include "engine/stop_signals.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>

namespace strata::engine {

using std::chrono::milliseconds;

namespace {

constexpr int kMaxMessageBytes = (128 << 20) + (1 << 20); // a body and what is around it

// gRPC would take the place of a socket that somebody still listens on.
absl::Status prepare_socket(const std::filesystem::path & path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.native().size() >= sizeof(address.sun_path)) {
        return absl::InvalidArgumentError(
            fmt::format("the socket path {} is longer than {} bytes", path.string(), sizeof(address.sun_path) - 1));
    }
    std::memcpy(address.sun_path, path.c_str(), path.native().size());
    const auto folder = path.parent_path();
    if (!folder.empty() && ::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) {
        return errno_status(errno, "create folder", folder.string());
    }
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) {
        return errno == ENOENT ? absl::OkStatus() : errno_status(errno, "look at", path.string());
    }
    if (!S_ISSOCK(info.st_mode)) {
        return absl::AlreadyExistsError(fmt::format("{} is there and is no socket", path.string()));
    }
    const UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr *>(&address), sizeof(address)) == 0) {
        return absl::AlreadyExistsError(fmt::format("another process listens on {}", path.string()));
    }
    if (::unlink(path.c_str()) != 0) return errno_status(errno, "remove the stale socket", path.string());
    return absl::OkStatus();
}

std::unique_ptr<grpc::Server> listen(EngineService & service, const std::string & socket) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    builder.RegisterService(&service);
    builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
    builder.SetMaxSendMessageSize(kMaxMessageBytes);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0); // a local socket needs no probing of its bandwidth
    const mode_t old_mask = ::umask(0177);                   // the socket is ours alone from its first moment
    std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    ::umask(old_mask);
    return server;
}

// Returns when this process is to end, with the reason.
std::string wait_for_end(const StopSignals & signals, const EngineService & service, pid_t parent,
                         milliseconds orphan_timeout) {
    while (true) {
        if (const int signal = signals.wait(milliseconds(1000)); signal != 0) {
            return fmt::format("signal {} ({})", signal, ::strsignal(signal));
        }
        if (orphan_timeout.count() == 0 || ::getppid() == parent) continue;
        if (service.quiet() >= orphan_timeout) return "the process that started this one is gone, and nobody else asks";
    }
}

} // namespace

absl::Status run_driver_process(const DriverProcessOptions & options) {
    const pid_t parent = ::getppid(); // before the socket says that this process is up
    const StopSignals signals;
    STRATA_RETURN_IF_ERROR(prepare_socket(options.socket));
    EngineService service;
    const std::unique_ptr<grpc::Server> server = listen(service, options.socket);
    if (server == nullptr) return absl::UnavailableError(fmt::format("cannot listen on {}", options.socket));
    spdlog::info("engine {} listens on {}", strata_engine_build(), options.socket);

    const std::string reason = wait_for_end(signals, service, parent, options.orphan_timeout);
    spdlog::info("ending: {}", reason);
    // A second signal does not wait.
    const bool drained = service.slot().drain(options.drain, [&] { return signals.wait(milliseconds(0)) != 0; });
    if (!drained) spdlog::warn("cancelling the requests that still run");
    service.slot().cancel_all();
    service.slot().drain(milliseconds(2000), [] { return false; }); // their last words
    server->Shutdown(std::chrono::system_clock::now() + milliseconds(500));
    server->Wait();
    service.slot().unload();
    ::unlink(options.socket.c_str());
    return absl::OkStatus();
}

} // namespace strata::engine
