#include "engine/engine_service.h"

#include "engine/serve_stream.h"

#include <algorithm>
#include <memory>

namespace strata::engine {

using std::chrono::milliseconds;

namespace {

constexpr size_t kControlThreads = 2;
constexpr size_t kMaxWaitingControls = 16;
constexpr int64_t kMaxDrainMs = 24LL * 3600 * 1000;

grpc::Status busy() {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too many control calls are waiting");
}

// Loads on a control thread and writes the latest progress whenever the last message is out.
class LoadStream : public grpc::ServerWriteReactor<v1::LoadProgress>, public std::enable_shared_from_this<LoadStream> {
public:
    static grpc::ServerWriteReactor<v1::LoadProgress> * begin(DriverSlot & slot, ControlThreads & threads,
                                                              const v1::LoadRequest & request) {
        const auto stream = std::make_shared<LoadStream>();
        stream->self_ = stream;
        if (!threads.run([stream, &slot, request] { stream->load(slot, request); })) stream->end(busy());
        return stream.get();
    }

    void OnWriteDone(bool) override {
        const std::lock_guard lock(mutex_);
        writing_ = false;
        write_next();
    }
    void OnCancel() override { cancelled_ = true; }
    void OnDone() override { self_.reset(); }

private:
    void load(DriverSlot & slot, const v1::LoadRequest & request) {
        const grpc::Status status = slot.load(request, [this](float fraction) {
            v1::LoadProgress progress;
            progress.set_fraction(fraction);
            tell(std::move(progress));
            return !cancelled_;
        });
        if (status.ok()) {
            v1::LoadProgress progress;
            progress.set_fraction(1);
            progress.set_ready(true);
            *progress.mutable_status() = slot.status();
            tell(std::move(progress));
        }
        end(status);
    }

    void tell(v1::LoadProgress progress) {
        const std::lock_guard lock(mutex_);
        next_ = std::move(progress); // replaces one that was not sent yet
        has_next_ = true;
        write_next();
    }

    void end(const grpc::Status & status) {
        const std::lock_guard lock(mutex_);
        ended_ = true;
        status_ = status;
        write_next();
    }

    void write_next() { // mutex_ held
        if (writing_ || finished_) return;
        if (has_next_) {
            current_ = std::move(next_);
            has_next_ = false;
            writing_ = true;
            StartWrite(&current_);
        } else if (ended_) {
            finished_ = true;
            Finish(status_);
        }
    }

    std::shared_ptr<LoadStream> self_; // until OnDone
    std::atomic<bool> cancelled_ = false;
    std::mutex mutex_;
    v1::LoadProgress current_; // with gRPC while writing_
    v1::LoadProgress next_;
    bool has_next_ = false;
    bool writing_ = false;
    bool ended_ = false;
    bool finished_ = false;
    grpc::Status status_;
};

// A unary call that a control thread answers.
class UnaryCall : public grpc::ServerUnaryReactor, public std::enable_shared_from_this<UnaryCall> {
public:
    static grpc::ServerUnaryReactor * begin(ControlThreads & threads, std::function<grpc::Status(UnaryCall &)> work) {
        const auto call = std::make_shared<UnaryCall>();
        call->self_ = call;
        const bool taken = threads.run([call, work = std::move(work)] { call->Finish(work(*call)); });
        if (!taken) call->Finish(busy());
        return call.get();
    }
    bool cancelled() const { return cancelled_; }

    void OnCancel() override { cancelled_ = true; }
    void OnDone() override { self_.reset(); }

private:
    std::shared_ptr<UnaryCall> self_; // until OnDone
    std::atomic<bool> cancelled_ = false;
};

} // namespace

ControlThreads::ControlThreads() {
    for (size_t i = 0; i < kControlThreads; ++i) threads_.emplace_back([this] { loop(); });
}

ControlThreads::~ControlThreads() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread & thread : threads_) thread.join();
}

bool ControlThreads::run(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= kMaxWaitingControls) return false;
    waiting_.push_back(std::move(work));
    changed_.notify_one();
    return true;
}

void ControlThreads::loop() {
    std::unique_lock lock(mutex_);
    while (true) {
        changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
        if (waiting_.empty()) return;
        const auto work = std::move(waiting_.front());
        waiting_.pop_front();
        lock.unlock();
        work();
        lock.lock();
    }
}

EngineService::Clock::duration EngineService::quiet() const {
    const v1::EngineStatus status = slot_.status();
    if (status.active_requests() + status.waiting_requests() > 0) return {};
    if (status.state() == v1::EngineStatus::STATE_LOADING) return {};
    return Clock::now() - Clock::time_point(Clock::duration(last_call_));
}

grpc::ServerWriteReactor<v1::LoadProgress> * EngineService::Load(grpc::CallbackServerContext *,
                                                                 const v1::LoadRequest * request) {
    touch();
    return LoadStream::begin(slot_, control_, *request);
}

grpc::ServerUnaryReactor * EngineService::GetStatus(grpc::CallbackServerContext * context,
                                                    const v1::GetEngineStatusRequest *, v1::EngineStatus * response) {
    touch();
    *response = slot_.status();
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
}

grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> * EngineService::Serve(grpc::CallbackServerContext *) {
    touch();
    return new_serve_stream(slot_);
}

grpc::ServerUnaryReactor * EngineService::Cancel(grpc::CallbackServerContext * context,
                                                 const v1::CancelRequest * request, v1::CancelResponse * response) {
    touch();
    response->set_found(slot_.cancel(request->request_id()));
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
}

grpc::ServerUnaryReactor * EngineService::Drain(grpc::CallbackServerContext *, const v1::DrainRequest * request,
                                                v1::DrainResponse * response) {
    touch();
    const milliseconds timeout(std::clamp<int64_t>(request->timeout_ms(), 0, kMaxDrainMs));
    return UnaryCall::begin(control_, [this, timeout, response](UnaryCall & call) {
        response->set_drained(slot_.drain(timeout, [&call] { return call.cancelled(); }));
        if (response->drained()) return grpc::Status::OK;
        const v1::EngineStatus status = slot_.status();
        response->set_still_running(status.active_requests() + status.waiting_requests());
        return grpc::Status::OK;
    });
}

grpc::ServerUnaryReactor * EngineService::Unload(grpc::CallbackServerContext *, const v1::UnloadRequest *,
                                                 v1::UnloadResponse *) {
    touch();
    return UnaryCall::begin(control_, [this](UnaryCall &) {
        slot_.unload();
        return grpc::Status::OK;
    });
}

grpc::ServerUnaryReactor * EngineService::Bind(grpc::CallbackServerContext *, const v1::BindRequest * request,
                                               v1::BindResponse * response) {
    touch();
    return UnaryCall::begin(control_, [this, request, response](UnaryCall &) {
        const Clock::time_point begin = Clock::now();
        grpc::Status bound = slot_.bind(*request);
        *response->mutable_parts() = slot_.status().parts();
        response->set_elapsed_ms(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
        return bound;
    });
}

} // namespace strata::engine
