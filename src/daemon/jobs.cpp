#include "daemon/jobs.h"

#include "base/text.h"
#include "base/unique_fd.h"
#include "daemon/limits.h"
#include "daemon/timer.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <utility>

namespace strata::daemon {

namespace {

using nlohmann::json;

std::string text_of(const json & object, const char * key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

int64_t number_of(const json & object, const char * key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : 0;
}

absl::StatusCode code_named(std::string_view name) {
    for (int code = 1; code <= static_cast<int>(absl::StatusCode::kUnauthenticated); ++code) {
        const auto candidate = static_cast<absl::StatusCode>(code);
        if (absl::StatusCodeToString(candidate) == name) return candidate;
    }
    return absl::StatusCode::kInternal;
}

// One end of a pipe from the job, read on the loop.
class PipeReader : public std::enable_shared_from_this<PipeReader> {
public:
    using OnBytes = std::function<void(std::string_view)>;

    PipeReader(boost::asio::io_context & loop, UniqueFd fd, OnBytes on_bytes, std::function<void()> on_end)
        : pipe_(loop, fd.release())
        , on_bytes_(std::move(on_bytes))
        , on_end_(std::move(on_end)) {}

    void read() {
        pipe_.async_read_some(boost::asio::buffer(buffer_),
                              [self = shared_from_this()](const boost::system::error_code & error, size_t bytes) {
                                  if (bytes > 0) self->on_bytes_({self->buffer_.data(), bytes});
                                  if (error) {
                                      self->on_end_();
                                      self->on_bytes_ = nullptr; // they hold the job, which holds this
                                      self->on_end_ = nullptr;
                                  } else {
                                      self->read();
                                  }
                              });
    }

private:
    boost::asio::posix::stream_descriptor pipe_;
    std::array<char, 16 << 10> buffer_{};
    OnBytes on_bytes_;
    std::function<void()> on_end_;
};

} // namespace

// Used on the loop only.
class Job : public std::enable_shared_from_this<Job> {
public:
    using Ended = std::function<void(absl::StatusOr<JobResult>)>;

    Job(boost::asio::io_context & loop, JobSpec spec, JobHandlers handlers)
        : loop_(loop)
        , spec_(std::move(spec))
        , handlers_(std::move(handlers))
        , kill_timer_(loop) {}

    const JobSpec & spec() const { return spec_; }
    bool cancelled() const { return cancelled_; }

    absl::Status start(const std::filesystem::path & program, Ended ended) {
        STRATA_ASSIGN_OR_RETURN(Pipe out, make_pipe());
        STRATA_ASSIGN_OR_RETURN(Pipe err, make_pipe());
        SpawnOptions options{program, {spec_.kind}, out.write.get(), err.write.get()};
        options.arguments.insert(options.arguments.end(), spec_.arguments.begin(), spec_.arguments.end());
        STRATA_ASSIGN_OR_RETURN(process_, Process::spawn(loop_, options));
        ended_ = std::move(ended);
        const auto self = shared_from_this();
        process_->on_exit([self](ExitStatus exit) {
            self->exit_ = exit;
            self->part_ended();
        });
        const auto read = [&](UniqueFd fd, PipeReader::OnBytes on_bytes) {
            std::make_shared<PipeReader>(loop_, std::move(fd), std::move(on_bytes), [self] {
                self->part_ended();
            })->read();
        };
        read(std::move(out.read), [self](std::string_view bytes) { self->add_output(bytes); });
        read(std::move(err.read), [self](std::string_view bytes) { self->add_errors(bytes); });
        return absl::OkStatus();
    }

    void cancel() {
        if (std::exchange(cancelled_, true) || !process_) return;
        process_->signal(SIGTERM);
        kill_timer_.after(limits::kTermination, [this] { kill(); });
    }
    void kill() {
        if (process_) process_->signal(SIGKILL);
    }
    void finish(absl::StatusOr<JobResult> result) {
        if (auto done = std::exchange(handlers_, {}).done) done(std::move(result));
    }
    void report(JobStep step) {
        if (handlers_.progress) handlers_.progress(std::move(step));
    }

private:
    void add_output(std::string_view bytes) {
        while (!bytes.empty()) {
            const size_t end = bytes.find('\n');
            const bool whole = end != std::string_view::npos;
            if (line_.size() + std::min(end, bytes.size()) > limits::kJobLineBytes) {
                kill(); // it does not speak our language
                return;
            }
            line_ += bytes.substr(0, end);
            if (!whole) return;
            bytes.remove_prefix(end + 1);
            take_line(std::exchange(line_, {}));
        }
    }

    void take_line(std::string line) {
        const json step = json::parse(line, nullptr, false);
        if (step.is_object() && step.contains("phase")) {
            report({text_of(step, "phase"), number_of(step, "done"), number_of(step, "total")});
        } else {
            last_line_ = std::move(line);
        }
    }

    void add_errors(std::string_view bytes) {
        errors_ += bytes;
        if (errors_.size() > limits::kJobStderrBytes) errors_.erase(0, errors_.size() - limits::kJobStderrBytes);
    }

    // Its exit and the ends of both pipes come in any order.
    void part_ended() {
        if (++parts_ended_ < 3) return;
        kill_timer_.cancel();
        process_.reset();
        if (!errors_.empty()) spdlog::debug("{} of {}: {}", spec_.kind, spec_.subject, printable(errors_, 4096));
        auto ended = std::exchange(ended_, nullptr);
        ended(cancelled_ ? absl::CancelledError(fmt::format("the {} of {} was cancelled", spec_.kind, spec_.subject))
                         : job_result(spec_, last_line_, exit_, errors_));
    }

    boost::asio::io_context & loop_;
    const JobSpec spec_;
    JobHandlers handlers_;
    Ended ended_;
    Timer kill_timer_;
    std::unique_ptr<Process> process_;
    bool cancelled_ = false;
    int parts_ended_ = 0;
    ExitStatus exit_;
    std::string line_; // begun, its end not read yet
    std::string last_line_;
    std::string errors_;
};

absl::StatusOr<JobResult> job_result(const JobSpec & spec, const std::string & last_line, const ExitStatus & exit,
                                     const std::string & errors) {
    const json last = json::parse(last_line, nullptr, false);
    if (last.is_object()) {
        if (const auto error = last.find("error"); error != last.end() && error->is_object()) {
            return absl::Status(code_named(text_of(*error, "code")), text_of(*error, "message"));
        }
        const auto finished = last.find("finished");
        if (finished != last.end() && finished->is_boolean() && finished->get<bool>() && exit.code == 0 &&
            exit.signal == 0) {
            JobResult result;
            result.name = text_of(last, "name");
            result.digest = text_of(last, "digest");
            if (const auto problems = last.find("problems"); problems != last.end() && problems->is_array()) {
                for (const json & problem : *problems) {
                    if (problem.is_string()) result.problems.push_back(problem.get<std::string>());
                }
            }
            return result;
        }
    }
    // It ended without a word: most likely a fault in the reader of a file.
    std::string words = errors;
    while (!words.empty() && (words.back() == '\n' || words.back() == ' ')) words.pop_back();
    const size_t line = words.rfind('\n');
    words = printable(line == std::string::npos ? words : words.substr(line + 1), 300);
    return absl::InternalError(fmt::format("the {} of {} failed: its process ended with {}{}{}", spec.kind,
                                           spec.subject, exit.describe(), words.empty() ? "" : ": ", words));
}

JobRunner::JobRunner(boost::asio::io_context & loop, std::filesystem::path engine_program, Metrics & metrics)
    : loop_(loop)
    , engine_program_(std::move(engine_program))
    , metrics_(metrics) {}

JobRunner::~JobRunner() = default;

std::weak_ptr<Job> JobRunner::run(JobSpec spec, JobHandlers handlers) {
    auto job = std::make_shared<Job>(loop_, std::move(spec), std::move(handlers));
    boost::asio::post(loop_, [this, job] { submit(job); });
    return job;
}

void JobRunner::submit(const std::shared_ptr<Job> & job) {
    if (shutting_down_) {
        job->finish(absl::UnavailableError("the daemon is shutting down"));
    } else if (job->cancelled()) {
        job->finish(absl::CancelledError("cancelled"));
    } else if (waiting_.size() >= limits::kWaitingJobs) {
        job->finish(absl::ResourceExhaustedError(
            fmt::format("{} jobs run and {} wait already; try again later", running_.size(), waiting_.size())));
    } else {
        waiting_.push_back(job);
        if (running_.size() >= limits::kRunningJobs) job->report({"waiting", 0, 0});
        start_next();
    }
}

void JobRunner::start_next() {
    while (!waiting_.empty() && running_.size() < limits::kRunningJobs) {
        const std::shared_ptr<Job> job = waiting_.front();
        waiting_.pop_front();
        running_.insert(job);
        metrics_.job_started();
        spdlog::info("{} of {} begins", job->spec().kind, job->spec().subject);
        const absl::Status failed = job->start(
            engine_program_, [this, job](absl::StatusOr<JobResult> result) { ended(job, std::move(result)); });
        if (!failed.ok()) ended(job, failed);
    }
}

void JobRunner::ended(const std::shared_ptr<Job> & job, absl::StatusOr<JobResult> result) {
    running_.erase(job);
    metrics_.job_ended(job->spec().kind, result.ok());
    if (result.ok()) {
        spdlog::info("{} of {} is done", job->spec().kind, job->spec().subject);
    } else {
        spdlog::warn("{} of {}: {}", job->spec().kind, job->spec().subject, std::string(result.status().message()));
    }
    job->finish(std::move(result));
    if (!shutting_down_) {
        start_next();
    } else if (running_.empty() && shut_down_done_) {
        std::exchange(shut_down_done_, nullptr)();
    }
}

void JobRunner::cancel(std::weak_ptr<Job> job) {
    boost::asio::post(loop_, [this, job = std::move(job)] {
        const std::shared_ptr<Job> target = job.lock();
        if (!target) return;
        target->cancel();
        const auto found = std::find(waiting_.begin(), waiting_.end(), target);
        if (found == waiting_.end()) return;
        waiting_.erase(found);
        target->finish(absl::CancelledError("cancelled"));
    });
}

void JobRunner::shut_down(std::function<void()> done) {
    boost::asio::post(loop_, [this, done = std::move(done)] {
        shutting_down_ = true;
        for (const auto & job : std::exchange(waiting_, {})) {
            job->finish(absl::UnavailableError("the daemon is shutting down"));
        }
        for (const auto & job : running_) job->cancel();
        if (running_.empty()) {
            done();
        } else {
            shut_down_done_ = done;
        }
    });
}

void JobRunner::kill_all() {
    for (const auto & job : running_) job->kill();
}

} // namespace strata::daemon
