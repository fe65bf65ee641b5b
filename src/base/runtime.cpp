#include "base/runtime.h"

#include "base/check.h"

#include <openssl/rand.h>

#include <thread>

namespace strata {

namespace {

class Thread : public Runtime::Worker {
public:
    explicit Thread(Runtime::Work work)
        : work_(std::move(work))
        , thread_([this] { run(); }) {}

    ~Thread() override {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
        }
        changed_.notify_one();
        thread_.join();
    }

    void wake() override {
        {
            const std::lock_guard lock(mutex_);
            awake_ = true;
        }
        changed_.notify_one();
    }

private:
    void run() {
        std::chrono::nanoseconds next = Runtime::kUntilWoken;
        while (true) {
            {
                std::unique_lock lock(mutex_);
                if (next != Runtime::kMore) changed_.wait_for(lock, next, [&] { return stopping_ || awake_; });
                if (stopping_) return;
                awake_ = false;
            }
            next = work_();
        }
    }

    const Runtime::Work work_;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool awake_ = false;
    bool stopping_ = false;
    std::thread thread_; // uses all of the above
};

class RealRuntime final : public Runtime {
public:
    const Clock & clock() const override { return Clock::real(); }
    void random_bytes(std::span<uint8_t> out) override {
        STRATA_CHECK(RAND_bytes(out.data(), static_cast<int>(out.size())) == 1);
    }
    std::unique_ptr<Worker> start(Work work) override { return std::make_unique<Thread>(std::move(work)); }
    bool wait_for(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
                  std::chrono::nanoseconds timeout, absl::FunctionRef<bool()> done) override {
        return changed.wait_for(lock, timeout, done);
    }
    void wait(std::unique_lock<std::mutex> & lock, std::condition_variable & changed,
              absl::FunctionRef<bool()> done) override {
        changed.wait(lock, done);
    }
};

} // namespace

Runtime & Runtime::real() {
    static RealRuntime runtime;
    return runtime;
}

} // namespace strata
