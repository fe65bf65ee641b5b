#pragma once

#include "base/unique_fd.h"

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace strata::cli::testing {

// A program under test, on pipes or on a pseudo-terminal. Killed when it goes away.
class Program {
public:
    enum class On { kPipes, kTerminal };

    Program(std::vector<std::string> words, std::map<std::string, std::string> environment, On on,
            std::string_view input = {}) {
        std::vector<std::string> assignments;
        for (const auto & [name, value] : environment) assignments.push_back(name + "=" + value);
        const std::vector<char *> arguments = pointers(words);
        const std::vector<char *> variables = pointers(assignments);

        if (on == On::kTerminal) {
            winsize size{30, 100, 0, 0};
            int terminal = -1;
            pid_ = ::forkpty(&terminal, nullptr, nullptr, &size);
            if (pid_ == 0) run(arguments, variables);
            out_.reset(terminal);
            return;
        }
        int in[2];
        int out[2];
        int err[2];
        if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0 || ::pipe2(err, O_CLOEXEC) != 0) std::abort();
        pid_ = ::fork();
        if (pid_ == 0) {
            ::dup2(in[0], STDIN_FILENO);
            ::dup2(out[1], STDOUT_FILENO);
            ::dup2(err[1], STDERR_FILENO);
            run(arguments, variables);
        }
        for (const int fd : {in[0], out[1], err[1]}) ::close(fd);
        if (::write(in[1], input.data(), input.size()) != static_cast<ssize_t>(input.size())) std::abort();
        ::close(in[1]);
        out_.reset(out[0]);
        err_.reset(err[0]);
    }
    ~Program() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
    }
    Program(const Program &) = delete;
    Program & operator=(const Program &) = delete;

    // Reads until the output since the last call has `needle`; false when that takes too long.
    bool shows(std::string_view needle) {
        const auto end = std::chrono::steady_clock::now() + kPatience;
        while (out.find(needle, seen_) == std::string::npos) {
            if (std::chrono::steady_clock::now() > end || !read_some()) return false;
        }
        seen_ = out.find(needle, seen_) + needle.size();
        return true;
    }
    void type(std::string_view keys) {
        if (::write(out_.get(), keys.data(), keys.size()) != static_cast<ssize_t>(keys.size())) std::abort();
    }
    void send_signal(int signal) { ::kill(pid_, signal); }
    pid_t pid() const { return pid_; }

    // Reads to the end; the exit status, or minus the signal.
    int wait() {
        const auto end = std::chrono::steady_clock::now() + kPatience;
        while (std::chrono::steady_clock::now() < end && read_some()) {
        }
        if (std::chrono::steady_clock::now() >= end) ::kill(pid_, SIGKILL);
        int status = 0;
        ::waitpid(pid_, &status, 0);
        pid_ = -1;
        return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    }

    std::string out; // so far; on a terminal stderr as well
    std::string err;

private:
    static constexpr std::chrono::seconds kPatience{30};

    static std::vector<char *> pointers(std::vector<std::string> & words) {
        std::vector<char *> all;
        for (std::string & word : words) all.push_back(word.data());
        all.push_back(nullptr);
        return all;
    }
    [[noreturn]] static void run(const std::vector<char *> & arguments, const std::vector<char *> & environment) {
        ::execve(arguments[0], arguments.data(), environment.data());
        ::_exit(127);
    }

    // False at the end of all output.
    bool read_some() {
        std::array<pollfd, 2> streams = {{{out_.get(), POLLIN, 0}, {err_.get(), POLLIN, 0}}};
        if (!out_.valid() && !err_.valid()) return false;
        ::poll(streams.data(), streams.size(), 200);
        if (streams[0].revents != 0) take(out_, out);
        if (streams[1].revents != 0) take(err_, err);
        return true;
    }
    static void take(UniqueFd & fd, std::string & text) {
        std::array<char, 65536> piece;
        const ssize_t got = ::read(fd.get(), piece.data(), piece.size());
        if (got > 0) {
            text.append(piece.data(), static_cast<size_t>(got));
        } else if (got == 0 || errno != EINTR) {
            fd.reset(); // a pseudo-terminal ends with EIO
        }
    }

    pid_t pid_ = -1;
    UniqueFd out_;
    UniqueFd err_;
    size_t seen_ = 0;
};

} // namespace strata::cli::testing
