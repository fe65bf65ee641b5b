#include "daemon/process.h"

#include <boost/asio/error.hpp>
#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>

extern char ** environ;

namespace strata::daemon {

namespace {

// Older C libraries know neither the calls nor the constant.
constexpr auto kWaitPidfd = static_cast<idtype_t>(3); // P_PIDFD
int open_pidfd(pid_t pid) {
    return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
}
int send_signal(int pidfd, int number) {
    return static_cast<int>(::syscall(SYS_pidfd_send_signal, pidfd, number, nullptr, 0));
}

std::string boot_id() {
    std::ifstream file("/proc/sys/kernel/random/boot_id");
    std::string id;
    std::getline(file, id);
    return id;
}

// Start time and state letter from /proc/PID/stat; the process's name in it may hold anything, also ")".
struct ProcStat {
    char state = 0;
    uint64_t start_ticks = 0;
};
std::optional<ProcStat> read_stat(pid_t pid) {
    std::ifstream file(fmt::format("/proc/{}/stat", pid));
    std::stringstream text;
    text << file.rdbuf();
    const std::string content = text.str();
    const size_t name_end = content.rfind(')');
    if (name_end == std::string::npos) return std::nullopt;
    std::istringstream fields(content.substr(name_end + 1));
    ProcStat stat;
    fields >> stat.state;
    std::string skipped;
    for (int field = 4; field < 22; ++field) fields >> skipped; // proc(5): starttime is field 22
    fields >> stat.start_ticks;
    if (!fields) return std::nullopt;
    return stat;
}

struct FileActions {
    posix_spawn_file_actions_t actions;
    FileActions() { posix_spawn_file_actions_init(&actions); }
    ~FileActions() { posix_spawn_file_actions_destroy(&actions); }
};

struct Attributes {
    posix_spawnattr_t attributes;
    Attributes() { posix_spawnattr_init(&attributes); }
    ~Attributes() { posix_spawnattr_destroy(&attributes); }
};

} // namespace

std::string ExitStatus::describe() const {
    if (!known) return "for an unknown reason";
    if (signal != 0) {
        // The kernel sends SIGKILL to make room; who sent one can't be known.
        return fmt::format("signal {} ({}){}", signal, ::strsignal(signal),
                           signal == SIGKILL ? ", perhaps for lack of memory" : "");
    }
    return fmt::format("exit code {}", code);
}

Process::Process(boost::asio::io_context & loop, ProcessId id, UniqueFd pidfd)
    : id_(std::move(id))
    , pidfd_(loop, pidfd.release())
    , alive_(std::make_shared<const Process *>(this)) {}

absl::StatusOr<std::unique_ptr<Process>> Process::spawn(boost::asio::io_context & loop, const SpawnOptions & options) {
    FileActions files;
    posix_spawn_file_actions_addopen(&files.actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files.actions, options.out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&files.actions, options.err, STDERR_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&files.actions, STDERR_FILENO + 1);

    // The daemon ignores and blocks signals that the child must have as any program has them.
    Attributes attributes;
    sigset_t all;
    sigset_t none;
    sigfillset(&all);
    sigemptyset(&none);
    posix_spawnattr_setsigdefault(&attributes.attributes, &all);
    posix_spawnattr_setsigmask(&attributes.attributes, &none);
    posix_spawnattr_setflags(&attributes.attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);

    std::vector<std::string> words{options.program.native()};
    words.insert(words.end(), options.arguments.begin(), options.arguments.end());
    std::vector<char *> argv;
    for (std::string & word : words) argv.push_back(word.data());
    argv.push_back(nullptr);

    pid_t pid = 0;
    const int error =
        ::posix_spawn(&pid, options.program.c_str(), &files.actions, &attributes.attributes, argv.data(), environ);
    if (error != 0) return errno_status(error, "start", options.program.native());

    // Until it is waited for, the pid stays the child's even when it has ended already.
    UniqueFd pidfd(open_pidfd(pid));
    const auto stat = read_stat(pid);
    if (!pidfd.valid() || !stat) {
        const int reason = errno;
        ::kill(pid, SIGKILL);
        ::waitpid(pid, nullptr, 0);
        return errno_status(reason, "watch", options.program.native());
    }
    return std::unique_ptr<Process>(new Process(loop, ProcessId{pid, stat->start_ticks, boot_id()}, std::move(pidfd)));
}

absl::StatusOr<std::unique_ptr<Process>> Process::adopt(boost::asio::io_context & loop, const ProcessId & id) {
    const std::string gone = fmt::format("process {} is gone", id.pid);
    if (id.pid <= 1 || id.boot_id != boot_id()) return absl::NotFoundError(gone);
    // The descriptor first: what is read of the pid afterwards is of the process that the descriptor holds, or the
    // start time tells.
    UniqueFd pidfd(open_pidfd(id.pid));
    if (!pidfd.valid()) return absl::NotFoundError(gone);
    const auto stat = read_stat(id.pid);
    if (!stat || stat->start_ticks != id.start_ticks || stat->state == 'Z' || stat->state == 'X') {
        return absl::NotFoundError(gone);
    }
    return std::unique_ptr<Process>(new Process(loop, id, std::move(pidfd)));
}

void Process::on_exit(std::function<void(ExitStatus)> handler) {
    pidfd_.async_wait(
        boost::asio::posix::stream_descriptor::wait_read,
        [this, alive = std::weak_ptr(alive_), handler = std::move(handler)](const boost::system::error_code & error) {
            if (error || alive.expired()) return;
            ExitStatus exit;
            siginfo_t info{};
            if (::waitid(kWaitPidfd, static_cast<id_t>(pidfd_.native_handle()), &info, WEXITED) == 0) {
                exit.known = true;
                if (info.si_code == CLD_EXITED) {
                    exit.code = info.si_status;
                } else {
                    exit.signal = info.si_status;
                }
            }
            handler(exit);
        });
}

absl::StatusOr<Pipe> make_pipe() {
    std::array<int, 2> ends{};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_status(errno, "make", "a pipe");
    return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

void Process::signal(int number) {
    send_signal(pidfd_.native_handle(), number);
}

bool Process::traced() const {
    std::ifstream file(fmt::format("/proc/{}/status", id_.pid));
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("TracerPid:", 0) == 0) return std::atoi(line.c_str() + sizeof("TracerPid:") - 1) != 0;
    }
    return false;
}

} // namespace strata::daemon
