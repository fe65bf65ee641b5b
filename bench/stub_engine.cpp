// An engine without a model, for tests and benchmarks of what lies around one. Takes the command line of strata-engine:
//
//   strata-stub-engine driver --socket PATH      serves strata.v1.Engine: streams scripted tokens at a fixed pace
//   strata-stub-engine import|pull|verify ...    plays a job: some progress, then the end that the last argument asks
//   for
//
// Every event carries the time at which it was made ("sent_ns", of CLOCK_MONOTONIC), so that a client can tell how late
// it is. Words in a request's body, or in a job's last argument, make it misbehave:
//   __abort__   fails like an assertion of ggml        __hang__     never answers
//   __refuse__  answers 429 (a job: an error)          __break__    ends without an end
// Environment: STRATA_STUB_TOKENS, STRATA_STUB_INTERVAL_MS, STRATA_STUB_LOAD_MS, STRATA_STUB_LOAD_ERROR (a load fails
// with this message), STRATA_STUB_LOAD_ABORT (a load aborts), STRATA_STUB_BUILD (pretends to be of this build).
#include "base/version.h"
#include "strata/v1/engine.grpc.pb.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>

namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
namespace v1 = strata::v1;

std::string text_from_environment(const char * name, std::string otherwise) {
    const char * value = std::getenv(name);
    return value == nullptr ? std::move(otherwise) : std::string(value);
}
int number_from_environment(const char * name, int otherwise) {
    const char * value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoi(value);
}

bool contains(std::string_view text, std::string_view word) {
    return text.find(word) != std::string_view::npos;
}

[[noreturn]] void abort_like_ggml() {
    std::fprintf(stderr,
                 "stub_engine.cpp:1: GGML_ASSERT(prompt != \"__abort__\") failed\n[New LWP 1]\n#0 a backtrace\n");
    std::abort();
}

// What all streams share. The counters belong to the loop.
struct Engine {
    boost::asio::io_context loop{1};
    const int tokens = number_from_environment("STRATA_STUB_TOKENS", 100);
    const milliseconds interval{number_from_environment("STRATA_STUB_INTERVAL_MS", 100)};

    std::atomic<Clock::time_point> last_call{Clock::now()};
    std::mutex mutex;
    v1::EngineStatus status; // state, deployment, model, options
    std::set<std::string> running;
    int64_t requests_total = 0;
    int64_t generated_total = 0;
    Clock::time_point idle_since = Clock::now();
};

class ServeStream final : public grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> {
public:
    explicit ServeStream(Engine & engine)
        : engine_(engine)
        , timer_(engine.loop) {
        StartRead(&request_);
    }

    void OnReadDone(bool ok) override {
        if (!ok || !request_.has_head()) {
            const std::lock_guard lock(mutex_);
            if (!std::exchange(ended_, true)) Finish({grpc::StatusCode::INVALID_ARGUMENT, "no head"});
            return;
        }
        const std::string & body = request_.head().body();
        if (contains(body, "__abort__")) abort_like_ggml();
        {
            const std::lock_guard lock(engine_.mutex);
            engine_.running.insert(request_.head().request_id());
            ++engine_.requests_total;
        }
        if (contains(body, "__hang__")) return; // until it is cancelled
        if (contains(body, "__refuse__")) {
            send_head(429, "application/json");
            send_data(R"({"error":{"message":"refused by the stub","type":"rate_limit_error","code":429}})");
            send_end();
            return;
        }
        breaks_ = contains(body, "__break__");
        streams_ = contains(body, "\"stream\":true") || contains(body, "\"stream\": true");
        if (streams_) send_head(200, "text/event-stream");
        next_ = Clock::now();
        boost::asio::post(engine_.loop, [this] { wait_for_token(); });
    }

    void OnWriteDone(bool ok) override {
        const std::lock_guard lock(mutex_);
        queue_.pop_front();
        if (!ok) queue_.clear();
        if (!queue_.empty()) {
            StartWrite(&queue_.front());
        } else if (ended_) {
            Finish(grpc::Status::OK);
        }
    }

    void OnCancel() override {
        boost::asio::post(engine_.loop, [this] {
            timer_.cancel();
            const std::lock_guard lock(mutex_);
            if (std::exchange(ended_, true)) return;
            if (queue_.empty()) Finish(grpc::Status::CANCELLED);
        });
    }

    void OnDone() override {
        {
            const std::lock_guard lock(engine_.mutex);
            engine_.running.erase(request_.head().request_id());
            engine_.generated_total += sent_;
            if (engine_.running.empty()) engine_.idle_since = Clock::now();
        }
        // A timer that fired is still queued there.
        boost::asio::post(engine_.loop, [this] { delete this; });
    }

private:
    void wait_for_token() {
        next_ += engine_.interval;
        timer_.expires_at(next_);
        timer_.async_wait([this](const auto & error) {
            if (!error) token();
        });
    }

    void token() {
        {
            const std::lock_guard lock(mutex_);
            if (ended_) return;
        }
        ++sent_;
        if (streams_) {
            const auto now =
                std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
            send_data(
                fmt::format("data: {{\"object\":\"chat.completion.chunk\",\"sent_ns\":{},\"choices\":[{{\"index\":0,"
                            "\"delta\":{{\"content\":\"token {} \"}}}}]}}\n\n",
                            now, sent_));
        }
        if (sent_ < engine_.tokens) {
            wait_for_token();
        } else if (breaks_) {
            const std::lock_guard lock(mutex_);
            ended_ = true;
            if (queue_.empty()) Finish(grpc::Status::OK);
        } else {
            if (streams_) {
                send_data("data: [DONE]\n\n");
            } else {
                send_head(200, "application/json");
                send_data(R"({"object":"chat.completion","choices":[{"index":0,"message":{"content":"done"}}]})");
            }
            send_end();
        }
    }

    void send_head(int status, const char * type) {
        v1::ServeResponse part;
        part.mutable_head()->set_status(status);
        part.mutable_head()->set_content_type(type);
        send(std::move(part), false);
    }
    void send_data(std::string data) {
        v1::ServeResponse part;
        part.set_data(std::move(data));
        send(std::move(part), false);
    }
    void send_end() {
        v1::ServeResponse part;
        part.mutable_end()->set_prompt_tokens(1);
        part.mutable_end()->set_generated_tokens(sent_);
        send(std::move(part), true);
    }
    void send(v1::ServeResponse part, bool last) {
        const std::lock_guard lock(mutex_);
        if (ended_) return;
        ended_ = last;
        queue_.push_back(std::move(part));
        if (queue_.size() == 1) StartWrite(&queue_.front());
    }

    Engine & engine_;
    v1::ServeRequest request_;
    bool streams_ = false;
    bool breaks_ = false;
    boost::asio::steady_timer timer_;
    Clock::time_point next_;
    int sent_ = 0;

    std::mutex mutex_;
    std::deque<v1::ServeResponse> queue_; // the front is being sent
    bool ended_ = false;
};

class LoadStream final : public grpc::ServerWriteReactor<v1::LoadProgress> {
public:
    LoadStream(Engine & engine, v1::LoadRequest request)
        : engine_(engine)
        , request_(std::move(request))
        , timer_(engine.loop)
        , step_time_(milliseconds(number_from_environment("STRATA_STUB_LOAD_MS", 50)) / kSteps) {
        boost::asio::post(engine_.loop, [this] { wait(); });
    }
    void OnWriteDone(bool ok) override {
        if (!ok || progress_.ready()) {
            Finish(ok ? grpc::Status::OK : grpc::Status::CANCELLED);
        } else {
            boost::asio::post(engine_.loop, [this] { wait(); });
        }
    }
    void OnDone() override { delete this; }

private:
    static constexpr int kSteps = 5;

    void wait() {
        timer_.expires_after(step_time_);
        timer_.async_wait([this](const auto &) { step(); });
    }
    void step() {
        if (std::getenv("STRATA_STUB_LOAD_ABORT") != nullptr) abort_like_ggml();
        if (const char * error = std::getenv("STRATA_STUB_LOAD_ERROR")) {
            Finish({grpc::StatusCode::INVALID_ARGUMENT, error});
            return;
        }
        if (request_.options().context_tokens() < 0) {
            Finish({grpc::StatusCode::INVALID_ARGUMENT, "context_tokens is negative"});
            return;
        }
        progress_.set_fraction(static_cast<float>(++step_) / kSteps);
        if (step_ == kSteps) {
            const std::lock_guard lock(engine_.mutex);
            engine_.status.set_state(v1::EngineStatus::STATE_READY);
            engine_.status.set_model(request_.model());
            engine_.status.set_deployment(request_.deployment());
            *engine_.status.mutable_options() = request_.options();
            progress_.set_ready(true);
            *progress_.mutable_status() = engine_.status;
        }
        StartWrite(&progress_);
    }

    Engine & engine_;
    const v1::LoadRequest request_;
    boost::asio::steady_timer timer_;
    const milliseconds step_time_;
    v1::LoadProgress progress_;
    int step_ = 0;
};

class Service final : public v1::Engine::CallbackService {
public:
    explicit Service(Engine & engine)
        : engine_(engine) {
        engine_.status.set_state(v1::EngineStatus::STATE_EMPTY);
        engine_.status.set_pid(::getpid());
        engine_.status.set_build(text_from_environment("STRATA_STUB_BUILD", STRATA_ENGINE_BUILD_STRING));
    }

    grpc::ServerWriteReactor<v1::LoadProgress> * Load(grpc::CallbackServerContext *,
                                                      const v1::LoadRequest * request) override {
        return new LoadStream(engine_, *request);
    }
    grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> * Serve(grpc::CallbackServerContext *) override {
        return new ServeStream(engine_);
    }
    grpc::ServerUnaryReactor * GetStatus(grpc::CallbackServerContext * context, const v1::GetEngineStatusRequest *,
                                         v1::EngineStatus * status) override {
        engine_.last_call = Clock::now();
        const std::lock_guard lock(engine_.mutex);
        *status = engine_.status;
        const auto active = static_cast<int>(engine_.running.size());
        status->set_active_requests(active);
        status->set_requests_total(engine_.requests_total);
        status->set_generated_tokens_total(engine_.generated_total);
        for (int i = 0; i < std::max(active, 4); ++i) {
            v1::SlotStatus & slot = *status->add_slots();
            slot.set_id(i);
            slot.set_busy(i < active);
        }
        const auto idle = std::chrono::duration_cast<milliseconds>(Clock::now() - engine_.idle_since);
        status->set_idle_ms(active > 0 ? 0 : idle.count());
        grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
        reactor->Finish(grpc::Status::OK);
        return reactor;
    }

private:
    Engine & engine_;
};

// Like the real engine: ends when the process that started it is gone and no daemon asks for its status.
void end_when_orphaned(Engine & engine, boost::asio::steady_timer & timer, pid_t parent) {
    static constexpr auto kOrphanTimeout = 60s;
    timer.expires_after(5s);
    timer.async_wait([&engine, &timer, parent](const auto &) {
        if (::getppid() != parent && Clock::now() - engine.last_call.load() > kOrphanTimeout) std::_Exit(0);
        end_when_orphaned(engine, timer, parent);
    });
}

int run_driver(const std::string & socket) {
    Engine engine;
    Service service(engine);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    builder.RegisterService(&service);
    const auto server = builder.BuildAndStart();
    if (!server) return 1;
    boost::asio::signal_set signals(engine.loop, SIGTERM, SIGINT);
    signals.async_wait([&](const auto &, int) { std::_Exit(0); });
    boost::asio::steady_timer orphan_timer(engine.loop);
    end_when_orphaned(engine, orphan_timer, ::getppid());
    engine.loop.run();
    return 0;
}

int run_job(std::string_view kind, std::string_view subject) {
    const milliseconds step{number_from_environment("STRATA_STUB_INTERVAL_MS", 20)};
    const auto say = [](const std::string & line) {
        std::printf("%s\n", line.c_str());
        std::fflush(stdout);
    };
    for (int done = 1; done <= 4; ++done) {
        std::this_thread::sleep_for(step);
        say(fmt::format(R"({{"phase":"{}ing","done":{},"total":4}})", kind, done));
        while (contains(subject, "__hang__")) std::this_thread::sleep_for(1s);
    }
    if (contains(subject, "__abort__")) abort_like_ggml();
    if (contains(subject, "__break__")) return 0;
    if (contains(subject, "__refuse__")) {
        say(R"({"error":{"code":"INVALID_ARGUMENT","message":"refused by the stub"}})");
        return 1;
    }
    say(kind == "verify"
            ? R"({"finished":true,"problems":["a problem"]})"
            : fmt::format(R"({{"finished":true,"name":"stub:latest","digest":"sha256:{}"}})", std::string(64, '0')));
    return 0;
}

} // namespace

int main(int argc, char ** argv) {
    const std::string_view command = argc > 1 ? argv[1] : "";
    if (command == "driver" && argc >= 4 && std::string_view(argv[2]) == "--socket") return run_driver(argv[3]);
    if (command == "import" || command == "pull" || command == "verify") return run_job(command, argv[argc - 1]);
    std::fprintf(stderr, "usage: strata-stub-engine driver --socket PATH | import|pull|verify ...\n");
    return 2;
}
