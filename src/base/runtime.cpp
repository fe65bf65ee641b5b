#include "base/runtime.h"

#include "base/check.h"

#include <openssl/rand.h>

#include <thread>

namespace strata {

namespace {

class Thread : public Runtime::Worker {
public:
    explicit Thread(std::function<bool()> work)
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
        while (true) {
            {
                std::unique_lock lock(mutex_);
                changed_.wait(lock, [&] { return stopping_ || awake_; });
                if (stopping_) return;
                awake_ = false;
            }
            if (!work_()) continue;
            const std::lock_guard lock(mutex_);
            awake_ = true;
        }
    }

    const std::function<bool()> work_;
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
    std::unique_ptr<Worker> start(std::function<bool()> work) override {
        return std::make_unique<Thread>(std::move(work));
    }
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
