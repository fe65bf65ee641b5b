#include "executor/device.h"

#include "base/check.h"
#include "executor/limits.h"

#include <ggml-cpu.h>

#include <algorithm>

namespace strata::executor {
namespace {

template <typename Function>
Function lookup(ggml_backend_dev_t device, const char * name) {
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name));
}

void set_threads(ggml_backend_t backend, int threads) {
    const auto set =
        lookup<ggml_backend_set_n_threads_t>(ggml_backend_get_device(backend), "ggml_backend_set_n_threads");
    if (set != nullptr) set(backend, threads);
}

} // namespace

Device::Device(ggml_backend_dev_t device, int threads, Runtime & runtime)
    : runtime_(runtime) {
    traits_.device = device;
    traits_.threads = threads;
    backend_.reset(ggml_backend_dev_init(device, nullptr));
    STRATA_CHECK(backend_ != nullptr);
    if (const auto extra = lookup<ggml_backend_dev_get_extra_bufts_t>(device, "ggml_backend_dev_get_extra_bufts")) {
        for (ggml_backend_buffer_type_t * at = extra(device); at != nullptr && *at != nullptr; ++at) {
            traits_.extra_bufts.push_back(*at);
        }
    }
    set_threads(backend_.get(), threads);
    ggml_backend_buffer_type_t memory = ggml_backend_dev_buffer_type(device);
    if (!ggml_backend_buft_is_host(memory)) {
        host_.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
        STRATA_CHECK(host_ != nullptr);
        set_threads(host_.get(), threads);
        traits_.memory = memory;
        traits_.host = host_.get();
    }
    // Without a pool of its own ggml makes and ends threads for each graph.
    const auto make = lookup<decltype(&ggml_threadpool_new)>(device, "ggml_threadpool_new");
    const auto use = lookup<decltype(&ggml_backend_cpu_set_threadpool)>(device, "ggml_backend_cpu_set_threadpool");
    const auto end = lookup<decltype(&ggml_threadpool_free)>(device, "ggml_threadpool_free");
    if (threads > 1 && make != nullptr && use != nullptr && end != nullptr) {
        ggml_threadpool_params params = ggml_threadpool_params_default(threads);
        threadpool_ =
            std::shared_ptr<void>(make(&params), [end](void * pool) { end(static_cast<ggml_threadpool_t>(pool)); });
        use(backend_.get(), static_cast<ggml_threadpool_t>(threadpool_.get()));
    }
}

Device::~Device() {
    stop();
    backend_.reset(); // before the threads it uses
}

uint64_t Device::free_bytes() const {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(traits_.device, &free, &total);
    return free;
}

uint64_t Device::memory_bytes() const {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(traits_.device, &free, &total);
    return total;
}

void Device::start() {
    auto worker = runtime_.start([this] { return work_once() ? Runtime::kMore : Runtime::kUntilWoken; });
    const std::lock_guard lock(mutex_);
    worker_ = std::move(worker);
}

void Device::stop() {
    std::unique_ptr<Runtime::Worker> worker; // ends when mutex_ is free
    const std::lock_guard lock(mutex_);
    worker.swap(worker_);
}

void Device::wake() {
    const std::lock_guard lock(mutex_);
    if (worker_ != nullptr) worker_->wake();
}

void Device::add(const std::shared_ptr<Work> & work) {
    const std::lock_guard lock(mutex_);
    entries_.push_back({work, served_ns(*work), false});
}

void Device::remove(const Work * work) {
    const std::lock_guard lock(mutex_);
    std::erase_if(entries_, [&](const Entry & entry) { return entry.work.get() == work; });
}

void Device::ready(const Work * work) {
    {
        const std::lock_guard lock(mutex_);
        const auto entry = std::ranges::find_if(entries_, [&](const Entry & e) { return e.work.get() == work; });
        if (entry == entries_.end() || entry->ready) return;
        entry->used_ns = std::max(entry->used_ns, served_ns(*work)); // who was idle does not save up time
        entry->ready = true;
    }
    wake();
}

Device::Entry * Device::next() {
    Entry *driver = nullptr, *background = nullptr;
    for (Entry & entry : entries_) {
        Entry *& least = entry.work->background() ? background : driver;
        if (entry.ready && (least == nullptr || entry.used_ns < least->used_ns)) least = &entry;
    }
    if (driver == nullptr || background == nullptr) return driver != nullptr ? driver : background;
    return runtime_.clock().now() - background_ran_ < kMaxBackgroundWait ? driver : background;
}

bool Device::work_once() {
    std::shared_ptr<Work> work;
    {
        const std::lock_guard lock(mutex_);
        Entry * entry = next();
        if (entry == nullptr) return false;
        entry->ready = false;
        served_ns(*entry->work) = std::max(served_ns(*entry->work), entry->used_ns);
        work = entry->work;
    }
    const auto begin = runtime_.clock().now();
    const Work::Outcome outcome = work->work();
    const auto end = runtime_.clock().now();
    const std::lock_guard lock(mutex_);
    if (work->background()) background_ran_ = end;
    const auto entry = std::ranges::find_if(entries_, [&](const Entry & e) { return e.work == work; });
    if (entry == entries_.end()) return true;
    entry->used_ns += std::chrono::nanoseconds(end - begin).count();
    if (outcome == Work::Outcome::kMore) entry->ready = true;
    return true;
}

} // namespace strata::executor
