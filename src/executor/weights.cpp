#include "executor/weights.h"

#include "base/text.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <ggml-cpp.h>
#include <sys/mman.h>

#include <algorithm>

namespace strata::executor {
namespace {

struct Mapping {
    void * data = nullptr;
    size_t bytes = 0;
    ~Mapping() {
        if (data != nullptr) munmap(data, bytes);
    }
};

} // namespace

struct Weight::Repacked {
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * tensor = nullptr;
};

Weight::Weight(const Digest & digest, std::span<const uint8_t> bytes, std::shared_ptr<const void> owner)
    : digest_(digest)
    , bytes_(bytes)
    , owner_(std::move(owner)) {}

Weight::~Weight() = default;

const ggml_tensor * Weight::repacked(ggml_backend_buffer_type_t buft, ggml_type type, const int64_t * ne) {
    const std::lock_guard lock(mutex_);
    if (repacked_ != nullptr) {
        const ggml_tensor * tensor = repacked_->tensor;
        return tensor->type == type && std::equal(ne, ne + GGML_MAX_DIMS, tensor->ne) ? tensor : nullptr;
    }
    auto made = std::make_unique<Repacked>();
    made->context.reset(ggml_init({2 * ggml_tensor_overhead(), nullptr, true}));
    made->tensor = ggml_new_tensor(made->context.get(), type, GGML_MAX_DIMS, ne);
    if (ggml_nbytes(made->tensor) != bytes_.size()) return nullptr;
    made->buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(made->context.get(), buft));
    if (made->buffer == nullptr || made->tensor->extra == nullptr) return nullptr;
    ggml_backend_buffer_set_usage(made->buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_set(made->tensor, bytes_.data(), 0, bytes_.size());
    // The file's pages are read again only when a peer asks for the weight.
    auto * begin = const_cast<uint8_t *>(bytes_.data());
    begin -= reinterpret_cast<uintptr_t>(begin) % 4096; // madvise takes whole pages
    madvise(begin, bytes_.size(), MADV_DONTNEED);
    repacked_ = std::move(made);
    return repacked_->tensor;
}

uint64_t Weight::repacked_bytes() const {
    const std::lock_guard lock(mutex_);
    return repacked_ == nullptr ? 0 : ggml_backend_buffer_get_size(repacked_->buffer.get());
}

std::shared_ptr<Weight> WeightCache::find(const Digest & digest) {
    const std::lock_guard lock(mutex_);
    const auto entry = weights_.find(digest);
    if (entry == weights_.end()) return nullptr;
    entry->second.used = ++uses_;
    return entry->second.weight;
}

void WeightCache::add(std::shared_ptr<Weight> weight) {
    {
        const std::lock_guard lock(mutex_);
        Entry & entry = weights_[weight->digest()];
        if (entry.weight == nullptr) {
            bytes_ += weight->bytes().size();
            entry = {std::move(weight), ++uses_};
            trim();
        }
    }
    if (listener_) listener_();
}

void WeightCache::trim() {
    const auto unused = [](const auto & item) { return item.second.weight.use_count() == 1; };
    while (bytes_ > kept_bytes_) {
        auto oldest = weights_.end();
        for (auto at = weights_.begin(); at != weights_.end(); ++at) {
            if (unused(*at) && at->second.used != uses_ &&
                (oldest == weights_.end() || at->second.used < oldest->second.used)) {
                oldest = at;
            }
        }
        if (oldest == weights_.end()) return;
        bytes_ -= oldest->second.weight->bytes().size();
        weights_.erase(oldest);
    }
}

WeightCache::Totals WeightCache::totals() const {
    const std::lock_guard lock(mutex_);
    Totals totals;
    for (const auto & [digest, entry] : weights_) {
        ++totals.weights;
        totals.bytes += entry.weight->bytes().size();
        totals.repacked_bytes += entry.weight->repacked_bytes();
    }
    return totals;
}

std::unique_ptr<WeightCache::Receiver> WeightCache::receive(const Digest & digest, uint64_t total_bytes) {
    return std::unique_ptr<Receiver>(new Receiver(*this, digest, total_bytes));
}

absl::StatusOr<bool> WeightCache::Receiver::add(uint64_t offset, std::span<const uint8_t> data) {
    if (offset != received_ || data.size() > total_bytes_ - received_) {
        return absl::InvalidArgumentError(fmt::format("weight {}: bytes out of order", digest_.to_string()));
    }
    if (!file_.valid()) {
        file_.reset(open(cache_.folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
        if (!file_.valid()) return errno_status(errno, "cannot make a file in", cache_.folder_);
    }
    hasher_.update(std::as_bytes(data));
    while (!data.empty()) {
        const ssize_t written = write(file_.get(), data.data(), data.size());
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return errno_status(errno, "cannot write a weight to", cache_.folder_);
        data = data.subspan(static_cast<size_t>(written));
        received_ += static_cast<uint64_t>(written);
    }
    if (received_ < total_bytes_) return false;
    STRATA_RETURN_IF_ERROR(finish());
    return true;
}

absl::Status WeightCache::Receiver::finish() {
    const Digest found = hasher_.finish();
    if (found != digest_) {
        return absl::DataLossError(
            fmt::format("weight {} arrived with other bytes, of {}", digest_.to_string(), found.to_string()));
    }
    auto mapping = std::make_shared<Mapping>();
    void * data = mmap(nullptr, total_bytes_, PROT_READ, MAP_PRIVATE, file_.get(), 0);
    if (data == MAP_FAILED) return errno_status(errno, "cannot map a weight in", cache_.folder_);
    mapping->data = data;
    mapping->bytes = total_bytes_;
    const std::span<const uint8_t> bytes(static_cast<const uint8_t *>(data), total_bytes_);
    cache_.add(std::make_shared<Weight>(digest_, bytes, std::move(mapping)));
    return absl::OkStatus();
}

} // namespace strata::executor
