#include "cli/daemon.h"

#include "base/unique_fd.h"
#include "cli/input.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/text.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

extern char ** environ;

namespace strata::cli {

namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::chrono::seconds kStartTimeout{60};
constexpr milliseconds kStartPoll{10};
constexpr int kQuotedLines = 5;

// argv for exec: points into `words`.
std::vector<char *> argument_vector(std::vector<std::string> & words) {
    std::vector<char *> arguments;
    arguments.reserve(words.size() + 1);
    for (std::string & word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    return arguments;
}

std::vector<std::string> command_line(const fs::path & stratad, const Home & home,
                                      const std::vector<std::string> & arguments) {
    std::vector<std::string> words = {stratad.native(), "--home", home.root.native()};
    words.insert(words.end(), arguments.begin(), arguments.end());
    return words;
}

// What a file got since it had `offset` bytes, its last lines.
std::string new_lines(const fs::path & file, uintmax_t offset, int lines) {
    std::error_code error;
    if (fs::file_size(file, error) <= offset || error) return {};
    return last_lines(file, lines);
}

absl::StatusOr<pid_t> spawn_in_background(const fs::path & stratad, const Home & home,
                                          const std::vector<std::string> & arguments) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    const std::string log = daemon_log(home).native();
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions, STDERR_FILENO + 1);
    // The current folder may be on a disk that somebody wants to unmount.
    posix_spawn_file_actions_addchdir_np(&actions, "/");
    // A session of its own, so that neither Ctrl-C nor the end of the terminal reaches it; and the signals as a shell
    // gives them, not as this program blocks them.
    sigset_t none;
    sigset_t all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

    std::vector<std::string> words = command_line(stratad, home, arguments);
    pid_t pid = -1;
    const int error =
        ::posix_spawn(&pid, stratad.c_str(), &actions, &attributes, argument_vector(words).data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (error != 0) return errno_status(error, "start", stratad.native());
    return pid;
}

std::string how_it_ended(int wait_status) {
    if (WIFSIGNALED(wait_status)) return fmt::format("was ended by signal {}", WTERMSIG(wait_status));
    return fmt::format("ended with exit status {}", WEXITSTATUS(wait_status));
}

} // namespace

absl::StatusOr<fs::path> find_stratad() {
    std::error_code error;
    const fs::path self = fs::read_symlink("/proc/self/exe", error);
    if (!error) {
        const fs::path beside = self.parent_path() / "stratad";
        if (::access(beside.c_str(), X_OK) == 0) return beside;
    }
    const char * path = std::getenv("PATH");
    std::string_view folders = path == nullptr ? "" : path;
    while (!folders.empty()) {
        const size_t end = folders.find(':');
        const fs::path candidate = fs::path(folders.substr(0, end)) / "stratad";
        if (candidate.is_absolute() && ::access(candidate.c_str(), X_OK) == 0) return candidate;
        folders.remove_prefix(end == std::string_view::npos ? folders.size() : end + 1);
    }
    return absl::NotFoundError(fmt::format(
        "the daemon, stratad, is neither in {} nor in $PATH; install it beside strata", self.parent_path().native()));
}

fs::path daemon_log(const Home & home) {
    return home.logs() / "stratad.log";
}

absl::Status start_daemon(const Home & home, const std::vector<std::string> & arguments, const Output & output) {
    STRATA_ASSIGN_OR_RETURN(const fs::path stratad, find_stratad());
    std::error_code error;
    fs::create_directories(home.logs(), error);
    if (error) return errno_status(error.value(), "make the folder", home.logs().native());
    const fs::path log = daemon_log(home);
    uintmax_t log_size = fs::file_size(log, error);
    if (error) log_size = 0;

    STRATA_ASSIGN_OR_RETURN(const pid_t pid, spawn_in_background(stratad, home, arguments));
    Progress progress(output);
    const steady_clock::time_point give_up = steady_clock::now() + kStartTimeout;
    while (steady_clock::now() < give_up) {
        if (daemon_listens(home)) {
            STRATA_ASSIGN_OR_RETURN(Client client, Client::connect(home));
            return client.node().status();
        }
        int wait_status = 0;
        if (::waitpid(pid, &wait_status, WNOHANG) == pid) {
            // Somebody else's daemon won the race for this home; it may need a moment more.
            for (int i = 0; i < 100 && !daemon_listens(home); ++i) std::this_thread::sleep_for(kStartPoll);
            if (daemon_listens(home)) return absl::OkStatus();
            const std::string said = new_lines(log, log_size, kQuotedLines);
            return absl::UnavailableError(said.empty()
                                              ? fmt::format("the daemon {} at once and said nothing; its log is {}",
                                                            how_it_ended(wait_status), log.native())
                                              : fmt::format("the daemon {} at once; the end of {}:\n{}",
                                                            how_it_ended(wait_status), log.native(), said));
        }
        progress.update("starting the daemon", 0, 0, false);
        std::this_thread::sleep_for(kStartPoll);
    }
    return absl::DeadlineExceededError(
        fmt::format("the daemon (process {}) does not answer on {} after {}; its log is {}", pid,
                    home.daemon_socket().native(), human_duration(kStartTimeout), log.native()));
}

absl::Status exec_daemon(const Home & home, const std::vector<std::string> & arguments) {
    STRATA_ASSIGN_OR_RETURN(const fs::path stratad, find_stratad());
    std::vector<std::string> words = command_line(stratad, home, arguments);
    unblock_interrupts();
    ::execve(stratad.c_str(), argument_vector(words).data(), environ);
    return errno_status(errno, "start", stratad.native());
}

absl::Status stop_daemon(const v1::Node & node) {
    const auto pid = static_cast<pid_t>(node.pid());
    if (pid <= 1) return absl::InternalError("the daemon does not tell its process id; end it with kill");
    // The descriptor keeps meaning this process also when its number is used again.
    const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
    if (!process.valid()) {
        return errno == ESRCH ? absl::OkStatus() : errno_status(errno, "find the process", fmt::format("{}", pid));
    }
    if (::syscall(SYS_pidfd_send_signal, process.get(), SIGTERM, nullptr, 0) != 0) {
        return errno_status(errno, "end the process", fmt::format("{}", pid));
    }
    const InterruptScope interrupt([] {}); // leaves; the daemon goes on ending
    pollfd ended{process.get(), POLLIN, 0};
    while (!interrupt.interrupted()) {
        if (::poll(&ended, 1, 100) > 0) return absl::OkStatus();
    }
    return absl::CancelledError("interrupted; the daemon still ends");
}

} // namespace strata::cli
