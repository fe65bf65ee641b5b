#pragma once

#include "base/digest.h"
#include "base/mapped_bytes.h"
#include "base/status.h"
#include "wire/message.h"

#include <absl/container/flat_hash_map.h>
#include <ggml-backend.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

namespace strata::executor {

// Where blobs lie that are to outlive an executor. Its functions may take long. Thread-safe.
class BlobStore {
public:
    virtual ~BlobStore() = default;
    // A blob whose bytes were compared with its digest since they were written. kNotFound.
    virtual absl::StatusOr<MappedBytes> open(const Digest & digest, uint64_t bytes) = 0;

    // Not thread-safe.
    class Writer {
    public:
        virtual ~Writer() = default;
        virtual absl::Status append(std::span<const uint8_t> data) = 0;
        // What was appended, also of a blob that turns out to be wrong.
        virtual absl::StatusOr<MappedBytes> written() = 0;
        // kDataLoss when the bytes have another digest than was said; then nothing is left of them.
        virtual absl::StatusOr<MappedBytes> finish() = 0;
        // The digest of the bytes, once they are finished.
        virtual Digest digest() const = 0;
    };
    // digest: nullopt when the bytes are still to be made.
    virtual absl::StatusOr<std::unique_ptr<Writer>> create(const std::optional<Digest> & digest, uint64_t bytes) = 0;
};

// Files without a name, which end with their last user: for blobs that nobody wants to keep.
class UnnamedBlobs : public BlobStore {
public:
    explicit UnnamedBlobs(std::string folder)
        : folder_(std::move(folder)) {}
    absl::StatusOr<MappedBytes> open(const Digest & digest, uint64_t bytes) override;
    absl::StatusOr<std::unique_ptr<Writer>> create(const std::optional<Digest> & digest, uint64_t bytes) override;

private:
    const std::string folder_;
};

// The bytes of a blob, and what devices made of the weights in it. Thread-safe.
class Blob {
public:
    Blob(const Digest & digest, MappedBytes mapped);
    ~Blob();
    Blob(const Blob &) = delete;
    Blob & operator=(const Blob &) = delete;

    const Digest & digest() const { return digest_; }
    std::span<const uint8_t> bytes() const { return mapped_.bytes; }

    // The bytes as a buffer of the host, for tensors that lie in them.
    ggml_backend_buffer_t buffer();
    // The weight at `offset` in memory of another type, made on first use: a device's, or one with a layout of its own
    // (CPU_REPACK). Its data, buffer and extra are for a graph's tensor to take over. nullptr when there is no room, or
    // when `type` gains nothing from it.
    const ggml_tensor * in(ggml_backend_buffer_type_t buft, uint64_t offset, ggml_type type, const int64_t * ne);
    bool has(ggml_backend_buffer_type_t buft, uint64_t offset, ggml_type type, const int64_t * ne) const;
    // Of these.
    uint64_t copied_bytes() const;

private:
    struct Copy;

    const Digest digest_;
    const MappedBytes mapped_;
    mutable std::mutex mutex_;
    ggml_backend_buffer_t buffer_ = nullptr;
    // Whoever says something else of a weight than others do gets a copy of his own.
    using CopyKey = std::tuple<ggml_backend_buffer_type_t, uint64_t, ggml_type, std::array<int64_t, GGML_MAX_DIMS>>;
    static CopyKey key(ggml_backend_buffer_type_t buft, uint64_t offset, ggml_type type, const int64_t * ne);
    std::map<CopyKey, std::unique_ptr<Copy>> copies_;
    uint64_t copied_bytes_ = 0;
};

// The blobs that an executor has in memory, by digest: one copy for all drivers. A blob that no session uses any more
// stays, within a limit. Thread-safe.
class BlobCache {
public:
    // kept_bytes: of blobs that nobody uses.
    explicit BlobCache(uint64_t kept_bytes)
        : kept_bytes_(kept_bytes) {}

    std::shared_ptr<Blob> find(const Digest & digest);
    // Blobs that nobody uses go, with what devices have of them.
    void forget_unused() { trim(0); }
    // What find() gives from now on: the one that was there first.
    std::shared_ptr<Blob> add(const Digest & digest, MappedBytes mapped);

    struct Totals {
        uint64_t blobs = 0;
        uint64_t bytes = 0;
        uint64_t copied_bytes = 0; // repacked, or in the memory of devices
    };
    Totals totals() const;

private:
    void trim(uint64_t kept_bytes);
    void trim_locked(uint64_t kept_bytes);

    const uint64_t kept_bytes_;
    mutable std::mutex mutex_;
    struct Entry {
        std::shared_ptr<Blob> blob;
        uint64_t used = 0; // when it was last asked for
    };
    absl::flat_hash_map<Digest, Entry> blobs_;
    uint64_t bytes_ = 0;
    uint64_t uses_ = 0;
};

// Takes a blob's bytes from one sender, in order. Not thread-safe.
class BlobReceiver {
public:
    // parts: by offset, inside of the blob, without overlaps.
    BlobReceiver(std::unique_ptr<BlobStore::Writer> writer, uint64_t bytes, std::vector<wire::BlobPart> parts);

    absl::Status add(uint64_t offset, std::span<const uint8_t> data);
    uint64_t received() const { return received_; }
    bool whole() const { return received_ == bytes_; }
    // kDataLoss: says which part has other bytes, when the parts tell.
    absl::StatusOr<MappedBytes> finish();

private:
    const std::unique_ptr<BlobStore::Writer> writer_;
    const uint64_t bytes_;
    const std::vector<wire::BlobPart> parts_;
    uint64_t received_ = 0;
};

} // namespace strata::executor
