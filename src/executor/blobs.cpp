#include "executor/blobs.h"

#include "base/unique_fd.h"
#include "executor/limits.h"
#include "executor/memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

namespace strata::executor {
namespace {

constexpr uintptr_t kPageBytes = 4096; // madvise takes whole pages
#ifdef MADV_PAGEOUT
constexpr int kGiveBack = MADV_PAGEOUT;
#else
constexpr int kGiveBack = MADV_DONTNEED; // where that is a hint
#endif

class UnnamedWriter : public BlobStore::Writer {
public:
    UnnamedWriter(UniqueFd file, std::string folder, const std::optional<Digest> & digest)
        : file_(std::move(file))
        , folder_(std::move(folder))
        , digest_(digest) {}

    absl::Status append(std::span<const uint8_t> data) override {
        hasher_.update(std::as_bytes(data));
        while (!data.empty()) {
            const ssize_t written = write(file_.get(), data.data(), data.size());
            if (written < 0 && errno == EINTR) continue;
            if (written < 0) return errno_status(errno, "cannot write a blob to", folder_);
            data = data.subspan(static_cast<size_t>(written));
            bytes_ += static_cast<uint64_t>(written);
        }
        return absl::OkStatus();
    }

    absl::StatusOr<MappedBytes> written() override { return map_file(file_.get(), 0, bytes_); }

    absl::StatusOr<MappedBytes> finish() override {
        const Digest found = hasher_.finish();
        if (digest_ && found != *digest_) {
            return absl::DataLossError(
                fmt::format("blob {} arrived with other bytes, of {}", digest_->to_string(), found.to_string()));
        }
        digest_ = found;
        return written();
    }

    Digest digest() const override { return *digest_; }

private:
    const UniqueFd file_;
    const std::string folder_;
    std::optional<Digest> digest_;
    uint64_t bytes_ = 0;
    Sha256 hasher_;
};

} // namespace

absl::StatusOr<MappedBytes> UnnamedBlobs::open(const Digest & digest, uint64_t) {
    return absl::NotFoundError(fmt::format("there is no blob {}", digest.to_string()));
}

absl::StatusOr<std::unique_ptr<BlobStore::Writer>> UnnamedBlobs::create(const std::optional<Digest> & digest,
                                                                        uint64_t) {
    UniqueFd file(::open(folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (!file.valid()) return errno_status(errno, "cannot make a file in", folder_);
    return std::make_unique<UnnamedWriter>(std::move(file), folder_, digest);
}

struct Blob::Copy {
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * tensor = nullptr;
};

Blob::Blob(const Digest & digest, MappedBytes mapped)
    : digest_(digest)
    , mapped_(std::move(mapped)) {}

Blob::~Blob() {
    ggml_backend_buffer_free(buffer_);
}

ggml_backend_buffer_t Blob::buffer() {
    const std::lock_guard lock(mutex_);
    if (buffer_ == nullptr) {
        // Only read, and where it begins does not matter: ggml wants it aligned.
        auto * data = const_cast<uint8_t *>(mapped_.bytes.data());
        const size_t beyond = reinterpret_cast<uintptr_t>(data) % kPageBytes;
        buffer_ = ggml_backend_cpu_buffer_from_ptr(data - beyond, mapped_.bytes.size() + beyond);
    }
    return buffer_;
}

const ggml_tensor * Blob::in(ggml_backend_buffer_type_t buft, uint64_t offset, ggml_type type, const int64_t * ne) {
    const std::lock_guard lock(mutex_);
    if (const auto found = copies_.find(key(buft, offset, type, ne)); found != copies_.end())
        return found->second->tensor;
    auto made = std::make_unique<Copy>();
    made->context.reset(ggml_init({2 * ggml_tensor_overhead(), nullptr, true}));
    made->tensor = ggml_new_tensor(made->context.get(), type, GGML_MAX_DIMS, ne);
    const uint64_t bytes = ggml_nbytes(made->tensor);
    if (offset > mapped_.bytes.size() || bytes > mapped_.bytes.size() - offset) return nullptr;
    const bool of_cpu = ggml_backend_dev_type(ggml_backend_buft_get_device(buft)) == GGML_BACKEND_DEVICE_TYPE_CPU;
    if (copied_bytes_ + bytes > kMaxCopiesOfBlob * mapped_.bytes.size() || (!of_cpu && !has_room(buft, bytes)))
        return nullptr;
    made->buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(made->context.get(), buft));
    if (made->buffer == nullptr) return nullptr;
    if (of_cpu && made->tensor->extra == nullptr) return nullptr; // it would be as it is
    ggml_backend_buffer_set_usage(made->buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    const uint8_t * begin = mapped_.bytes.data() + offset;
    ggml_backend_tensor_set(made->tensor, begin, 0, bytes);
    // The file's pages are read again only when a peer asks for the blob; others need the memory now.
    const auto first = reinterpret_cast<uintptr_t>(begin) / kPageBytes * kPageBytes;
    // NOLINTNEXTLINE(performance-no-int-to-ptr): a page's begin
    madvise(reinterpret_cast<void *>(first), reinterpret_cast<uintptr_t>(begin) + bytes - first, kGiveBack);
    copied_bytes_ += ggml_backend_buffer_get_size(made->buffer.get());
    return (copies_[key(buft, offset, type, ne)] = std::move(made))->tensor;
}

Blob::CopyKey Blob::key(ggml_backend_buffer_type_t buft, uint64_t offset, ggml_type type, const int64_t * ne) {
    CopyKey key{buft, offset, type, {}};
    std::copy_n(ne, GGML_MAX_DIMS, std::get<3>(key).begin());
    return key;
}

bool Blob::has(ggml_backend_buffer_type_t buft, uint64_t offset, ggml_type type, const int64_t * ne) const {
    const std::lock_guard lock(mutex_);
    return copies_.contains(key(buft, offset, type, ne));
}

uint64_t Blob::copied_bytes() const {
    const std::lock_guard lock(mutex_);
    return copied_bytes_;
}

std::shared_ptr<Blob> BlobCache::find(const Digest & digest) {
    const std::lock_guard lock(mutex_);
    const auto entry = blobs_.find(digest);
    if (entry == blobs_.end()) return nullptr;
    entry->second.used = ++uses_;
    return entry->second.blob;
}

std::shared_ptr<Blob> BlobCache::add(const Digest & digest, MappedBytes mapped) {
    const std::lock_guard lock(mutex_);
    Entry & entry = blobs_[digest];
    if (entry.blob == nullptr) {
        bytes_ += mapped.bytes.size();
        entry.blob = std::make_shared<Blob>(digest, std::move(mapped));
    }
    entry.used = ++uses_;
    auto blob = entry.blob;
    trim_locked(kept_bytes_);
    return blob;
}

void BlobCache::trim(uint64_t kept_bytes) {
    const std::lock_guard lock(mutex_);
    trim_locked(kept_bytes);
}

void BlobCache::trim_locked(uint64_t kept_bytes) {
    const auto unused = [](const auto & item) { return item.second.blob.use_count() == 1; };
    while (bytes_ > kept_bytes) {
        auto oldest = blobs_.end();
        for (auto at = blobs_.begin(); at != blobs_.end(); ++at) {
            if (unused(*at) && (oldest == blobs_.end() || at->second.used < oldest->second.used)) oldest = at;
        }
        if (oldest == blobs_.end()) return;
        bytes_ -= oldest->second.blob->bytes().size();
        blobs_.erase(oldest);
    }
}

BlobCache::Totals BlobCache::totals() const {
    const std::lock_guard lock(mutex_);
    Totals totals;
    for (const auto & [digest, entry] : blobs_) {
        ++totals.blobs;
        totals.bytes += entry.blob->bytes().size();
        totals.copied_bytes += entry.blob->copied_bytes();
    }
    return totals;
}

BlobReceiver::BlobReceiver(std::unique_ptr<BlobStore::Writer> writer, uint64_t bytes, std::vector<wire::BlobPart> parts)
    : writer_(std::move(writer))
    , bytes_(bytes)
    , parts_(std::move(parts)) {}

absl::Status BlobReceiver::add(uint64_t offset, std::span<const uint8_t> data) {
    if (offset != received_ || data.size() > bytes_ - received_) {
        return absl::InvalidArgumentError("a piece of a blob out of order");
    }
    STRATA_RETURN_IF_ERROR(writer_->append(data));
    received_ += data.size();
    return absl::OkStatus();
}

absl::StatusOr<MappedBytes> BlobReceiver::finish() {
    STRATA_ASSIGN_OR_RETURN(const MappedBytes written, writer_->written());
    auto finished = writer_->finish();
    if (!absl::IsDataLoss(finished.status())) return finished;
    for (const wire::BlobPart & part : parts_) {
        const Digest found = Digest::of(std::as_bytes(written.bytes.subspan(part.offset, part.bytes)));
        if (found == part.digest) continue;
        return absl::DataLossError(fmt::format("bytes {} to {} have the digest {} instead of {}", part.offset,
                                               part.offset + part.bytes, found.to_string(), part.digest.to_string()));
    }
    return finished;
}

} // namespace strata::executor
