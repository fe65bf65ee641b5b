#include "daemon/executor_keeper.h"

#include "daemon/limits.h"

#include <boost/asio/buffer.hpp>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <csignal>
#include <utility>

namespace strata::daemon {

using Clock = std::chrono::steady_clock;

ExecutorKeeper::ExecutorKeeper(boost::asio::io_context & loop, Home home, std::filesystem::path engine_program,
                               std::string engine_build, StateStore & state, std::function<void()> changed)
    : loop_(loop)
    , home_(std::move(home))
    , engine_program_(std::move(engine_program))
    , engine_build_(std::move(engine_build))
    , state_(state)
    , changed_(std::move(changed))
    , log_(home_.logs() / "executor.log")
    , says_(loop)
    , again_timer_(loop)
    , kill_timer_(loop) {}

void ExecutorKeeper::keep(Wish wish) {
    if (shutting_down_) return;
    wish_ = std::move(wish);
    wanted_ = true;
    again_timer_.cancel();
    if (process_) {
        terminate(); // ended() starts the one that is wanted now
    } else if (!adopt()) {
        start();
    }
}

void ExecutorKeeper::start() {
    log_.rotate_when_large();
    if (const absl::Status status = launch(); !status.ok()) again(std::string(status.message()));
}

absl::Status ExecutorKeeper::launch() {
    STRATA_ASSIGN_OR_RETURN(const UniqueFd log, log_.open_for_append());
    log_start_ = log_.size();
    SpawnOptions options;
    options.program = engine_program_;
    options.arguments = {"executor",
                         "--listen",
                         wish_.listen,
                         "--name",
                         wish_.name,
                         "--store",
                         home_.store(),
                         "--tls",
                         wish_.identity,
                         "--threads",
                         fmt::format("{}", wish_.threads)};
    STRATA_ASSIGN_OR_RETURN(Pipe out, make_pipe());
    options.out = out.write.get();
    options.err = log.get();
    STRATA_ASSIGN_OR_RETURN(process_, Process::spawn(loop_, options));
    says_ = boost::asio::posix::stream_descriptor(loop_, out.read.release());
    says_.async_wait(boost::asio::posix::stream_descriptor::wait_read, [this](const auto & error) {
        if (error) return;
        char first = 0;
        boost::system::error_code failed;
        if (says_.read_some(boost::asio::buffer(&first, 1), failed) == 1) set_running(true);
        says_.close(failed);
    });
    SavedEngine saved;
    saved.model = kSavedAs;
    saved.process = process_->id();
    saved.socket = wish_.listen;
    saved.build = engine_build_;
    if (const absl::Status status = state_.save(saved); !status.ok()) {
        spdlog::error("the executor is not remembered: {}", std::string(status.message()));
    }
    spdlog::info("executor {} on {} (process {})", wish_.name, wish_.listen, process_->id().pid);
    watch();
    return absl::OkStatus();
}

// Takes over the one of an earlier daemon. False: there is none, or it had to be ended.
bool ExecutorKeeper::adopt() {
    const auto engines = state_.engines();
    if (!engines.ok()) return false;
    for (const SavedEngine & saved : *engines) {
        if (saved.model != kSavedAs) continue;
        auto process = Process::adopt(loop_, saved.process);
        if (!process.ok()) return false;
        process_ = *std::move(process);
        const bool fits = saved.build == engine_build_ && saved.socket == wish_.listen;
        spdlog::info("executor on {} (process {}) is {}", saved.socket, saved.process.pid,
                     fits ? "adopted" : "replaced");
        watch();
        set_running(fits);
        if (!fits) terminate(); // ended() starts the other one
        return true;
    }
    return false;
}

void ExecutorKeeper::set_running(bool running) {
    if (running_.exchange(running) != running) changed_();
}

void ExecutorKeeper::watch() {
    started_ = Clock::now();
    process_->on_exit([this](ExitStatus exit) { ended(exit); });
}

void ExecutorKeeper::ended(ExitStatus exit) {
    kill_timer_.cancel();
    process_.reset();
    boost::system::error_code ignored;
    says_.close(ignored);
    set_running(false);
    if (const absl::Status status = state_.forget_engine(kSavedAs); !status.ok()) {
        spdlog::error("{}", std::string(status.message()));
    }
    for (const auto & done : std::exchange(end_waiters_, {})) done();
    if (!wanted_) return;
    if (Clock::now() - started_ >= limits::kHealthy) failures_in_row_ = 0;
    const std::string reason = log_.reason_since(log_start_);
    again(fmt::format("it ended: {}{}{}", exit.describe(), reason.empty() ? "" : ": ", reason));
}

void ExecutorKeeper::again(const std::string & why) {
    const auto pause = limits::backoff_after(++failures_in_row_);
    spdlog::error("the executor of this node does not run ({}); again in {:.1f} s", why, pause.count() / 1000.0);
    again_timer_.after(pause, [this] { start(); });
}

void ExecutorKeeper::end_leftover() {
    if (!process_ && adopt()) terminate();
}

void ExecutorKeeper::terminate() {
    process_->signal(SIGTERM);
    kill_timer_.after(limits::kTermination, [this] { kill_now(); });
}

void ExecutorKeeper::end(std::function<void()> done) {
    wanted_ = false;
    again_timer_.cancel();
    if (!process_) {
        done();
        return;
    }
    end_waiters_.push_back(std::move(done));
    terminate();
}

void ExecutorKeeper::shut_down(std::function<void()> done) {
    shutting_down_ = true;
    end(std::move(done));
}

void ExecutorKeeper::kill_now() {
    if (process_) process_->signal(SIGKILL);
}

} // namespace strata::daemon
