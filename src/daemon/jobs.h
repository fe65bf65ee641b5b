#pragma once

#include "base/status.h"
#include "daemon/metrics.h"
#include "daemon/process.h"

#include <boost/asio/io_context.hpp>

#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace strata::daemon {

// A run of `strata-engine import|pull|verify`: untrusted files are read there, not here.
struct JobSpec {
    std::string kind;                   // the engine's subcommand
    std::vector<std::string> arguments; // after it
    std::string subject;                // what it works on, for messages
};

struct JobStep {
    std::string phase;
    int64_t done_bytes = 0;
    int64_t total_bytes = 0;
};

struct JobResult {
    std::string name;                  // of an import or a pull: NAME:TAG
    std::string digest;                // and the manifest
    std::vector<std::string> problems; // of a verification
};

struct JobHandlers {
    std::function<void(JobStep)> progress;
    std::function<void(absl::StatusOr<JobResult>)> done; // once, last
};

class Job;

// Runs job processes: a few at once, some more wait, the rest is refused. No job has a thread.
// run() and cancel() are thread-safe; handlers are called on the loop.
class JobRunner {
public:
    JobRunner(boost::asio::io_context & loop, std::filesystem::path engine_program, Metrics & metrics);
    ~JobRunner();

    // A handle for cancel(); dropping it changes nothing.
    std::weak_ptr<Job> run(JobSpec spec, JobHandlers handlers);
    // Ends the job: `done` follows with kCancelled when its process has ended.
    void cancel(std::weak_ptr<Job> job);
    // Cancels everything and refuses what comes; `done` is called when no job is left.
    void shut_down(std::function<void()> done);
    void kill_all(); // on the loop

private:
    void submit(const std::shared_ptr<Job> & job);
    void start_next();
    void ended(const std::shared_ptr<Job> & job, absl::StatusOr<JobResult> result);

    boost::asio::io_context & loop_;
    const std::filesystem::path engine_program_;
    Metrics & metrics_;
    std::set<std::shared_ptr<Job>> running_;
    std::deque<std::shared_ptr<Job>> waiting_;
    bool shutting_down_ = false;
    std::function<void()> shut_down_done_;
};

// The last line of a job process, and how it ended, made into the job's result. Exposed for tests.
absl::StatusOr<JobResult> job_result(const JobSpec & spec, const std::string & last_line, const ExitStatus & exit,
                                     const std::string & errors);

} // namespace strata::daemon
