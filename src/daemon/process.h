#pragma once

#include "base/status.h"
#include "base/unique_fd.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace strata::daemon {

// How a process ended. The kernel tells only its parent; of an adopted process nothing is known.
struct ExitStatus {
    bool known = false;
    int code = 0;
    int signal = 0; // 0: it ended by itself

    std::string describe() const; // "signal 6 (Aborted)", "exit code 1", "for an unknown reason"
};

// Names a process for good: a pid alone may be another process later.
struct ProcessId {
    pid_t pid = 0;
    uint64_t start_ticks = 0; // since boot, from /proc
    std::string boot_id;
};

struct SpawnOptions {
    std::filesystem::path program;
    std::vector<std::string> arguments; // without the program's name
    int out = -1;                       // descriptor that becomes stdout; not closed
    int err = -1;                       // descriptor that becomes stderr; not closed
};

// For what a process writes: its end goes into SpawnOptions.
struct Pipe {
    UniqueFd read;
    UniqueFd write;
};
absl::StatusOr<Pipe> make_pipe();

// A process in a session of its own, watched through a pidfd. It outlives this object and this program. Used on the
// thread of its event loop only.
class Process {
public:
    static absl::StatusOr<std::unique_ptr<Process>> spawn(boost::asio::io_context & loop, const SpawnOptions & options);
    // Takes over a process that another parent started; kNotFound when it is gone or the pid means another one now.
    static absl::StatusOr<std::unique_ptr<Process>> adopt(boost::asio::io_context & loop, const ProcessId & id);

    const ProcessId & id() const { return id_; }
    // Called once, on the loop, when the process has ended. Not called after this object is gone.
    void on_exit(std::function<void(ExitStatus)> handler);
    // Does nothing when the process has ended.
    void signal(int number);
    // Whether a debugger holds it.
    bool traced() const;

private:
    Process(boost::asio::io_context & loop, ProcessId id, UniqueFd pidfd);

    ProcessId id_;
    boost::asio::posix::stream_descriptor pidfd_;
    std::shared_ptr<const Process *> alive_; // lets a queued handler see that this object is gone
};

} // namespace strata::daemon
