#pragma once

#include "base/digest.h"
#include "base/unique_fd.h"
#include "wire/message.h"

#include <absl/container/flat_hash_map.h>
#include <ggml-backend.h>

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace strata::executor {

// The content of one weight tensor, and what devices made of it. Thread-safe.
class Weight {
public:
    Weight(const Digest & digest, std::span<const uint8_t> bytes, std::shared_ptr<const void> owner);
    ~Weight();
    Weight(const Weight &) = delete;
    Weight & operator=(const Weight &) = delete;

    const Digest & digest() const { return digest_; }
    std::span<const uint8_t> bytes() const { return bytes_; } // as in the model's file

    // The weight in a device's own layout (CPU_REPACK), made on first use: a tensor whose data, buffer and extra a
    // graph's tensor takes over. nullptr when `type` gains nothing from it. buft: where to put it.
    const ggml_tensor * repacked(ggml_backend_buffer_type_t buft, ggml_type type, const int64_t * ne);
    uint64_t repacked_bytes() const;

private:
    struct Repacked;

    const Digest digest_;
    const std::span<const uint8_t> bytes_;
    const std::shared_ptr<const void> owner_;
    mutable std::mutex mutex_;
    std::unique_ptr<Repacked> repacked_;
};

// The weights that an executor has, by the hash of their content: one copy for all drivers. A weight that no session
// uses any more stays, within a limit. Thread-safe.
class WeightCache {
public:
    // Where weights that come over the network are kept: files without a name in `folder`. kept_bytes: of unused ones.
    WeightCache(std::string folder, uint64_t kept_bytes)
        : folder_(std::move(folder))
        , kept_bytes_(kept_bytes) {}

    std::shared_ptr<Weight> find(const Digest & digest);

    // Takes the next piece of a weight's bytes from one sender. True when the weight is whole now: its hash was
    // compared, and find() gives it. An error names what is wrong with it, and forgets the bytes.
    class Receiver;
    std::unique_ptr<Receiver> receive(const Digest & digest, uint64_t total_bytes);

    struct Totals {
        uint64_t weights = 0;
        uint64_t bytes = 0;
        uint64_t repacked_bytes = 0;
    };
    Totals totals() const;
    // Called after a weight was added, from any thread.
    void on_added(std::function<void()> listener) { listener_ = std::move(listener); }

private:
    friend class Receiver;
    void add(std::shared_ptr<Weight> weight);
    void trim(); // mutex_ held

    const std::string folder_;
    const uint64_t kept_bytes_;
    std::function<void()> listener_;
    mutable std::mutex mutex_;
    struct Entry {
        std::shared_ptr<Weight> weight;
        uint64_t used = 0; // when it was last asked for
    };
    absl::flat_hash_map<Digest, Entry> weights_;
    uint64_t bytes_ = 0;
    uint64_t uses_ = 0;
};

class WeightCache::Receiver {
public:
    absl::StatusOr<bool> add(uint64_t offset, std::span<const uint8_t> data);

private:
    friend class WeightCache;
    Receiver(WeightCache & cache, const Digest & digest, uint64_t total_bytes)
        : cache_(cache)
        , digest_(digest)
        , total_bytes_(total_bytes) {}
    absl::Status finish();

    WeightCache & cache_;
    const Digest digest_;
    const uint64_t total_bytes_;
    uint64_t received_ = 0;
    UniqueFd file_;
    Sha256 hasher_;
};

} // namespace strata::executor
