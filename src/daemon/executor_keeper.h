#pragma once

#include "base/home.h"
#include "daemon/log_file.h"
#include "daemon/process.h"
#include "daemon/state.h"
#include "daemon/timer.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace strata::daemon {

// The executor of this node: starts it, and again when it ends. It outlives a daemon that is killed; the next one takes
// it over. Used on the loop only, but for running().
class ExecutorKeeper {
public:
    struct Wish {
        std::string listen; // "host:port"
        std::string name;
        std::filesystem::path identity; // folder of certificates
        int threads = 0;                // 0: one for each core
    };

    // `changed` is called on the loop when running() is another than before.
    ExecutorKeeper(boost::asio::io_context & loop, Home home, std::filesystem::path engine_program,
                   std::string engine_build, StateStore & state, std::function<void()> changed);

    // Keeps one running from now on, until shut_down().
    void keep(Wish wish);
    // Ends one that an earlier daemon has left behind, when this node is to have none.
    void end_leftover();
    bool running() const { return running_; } // and listens; thread-safe
    // Ends it; `done` is called when it has ended, at once when there is none.
    void end(std::function<void()> done);
    // The same for good.
    void shut_down(std::function<void()> done);
    void kill_now();

private:
    // What the state store has it under: no model can be called that.
    static constexpr char kSavedAs[] = "@executor";

    void start();
    absl::Status launch();
    bool adopt();
    void watch();
    void set_running(bool running);
    void terminate();
    void ended(ExitStatus exit);
    void again(const std::string & why);

    boost::asio::io_context & loop_;
    const Home home_;
    const std::filesystem::path engine_program_;
    const std::string engine_build_;
    StateStore & state_;
    const std::function<void()> changed_;
    LogFile log_;
    uint64_t log_start_ = 0; // where this executor's part of it begins

    Wish wish_;
    bool wanted_ = false;
    bool shutting_down_ = false;
    std::unique_ptr<Process> process_;
    boost::asio::posix::stream_descriptor says_; // what it writes to stdout: that it listens
    std::atomic<bool> running_{false};
    std::chrono::steady_clock::time_point started_;
    int failures_in_row_ = 0;
    Timer again_timer_;
    Timer kill_timer_;
    std::vector<std::function<void()>> end_waiters_;
};

} // namespace strata::daemon
