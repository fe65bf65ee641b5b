#include "engine/executor_store.h"

#include <fmt/format.h>
#include <unistd.h>

#include <utility>

namespace strata::engine {

class ExecutorStore::BlobFile : public Writer {
public:
    BlobFile(ExecutorStore & store, layers::BlobWriter writer, const std::optional<Digest> & digest)
        : store_(store)
        , writer_(std::move(writer))
        , digest_(digest) {}

    absl::Status append(std::span<const uint8_t> data) override { return writer_.append(std::as_bytes(data)); }

    absl::StatusOr<MappedBytes> written() override { return writer_.map(); }

    absl::StatusOr<MappedBytes> finish() override {
        STRATA_ASSIGN_OR_RETURN(digest_, writer_.finish(digest_));
        store_.store_->remember_whole(*digest_).IgnoreError(); // then it is hashed once more
        return store_.store_->map(*digest_);
    }

    Digest digest() const override { return *digest_; }

private:
    ExecutorStore & store_;
    layers::BlobWriter writer_;
    std::optional<Digest> digest_;
};

absl::StatusOr<std::shared_ptr<ExecutorStore>> ExecutorStore::open(const std::filesystem::path & root) {
    STRATA_ASSIGN_OR_RETURN(auto store, layers::Store::open(root));
    STRATA_ASSIGN_OR_RETURN(auto lease, store->lease(fmt::format("executor, pid {}", getpid()), {}));
    return std::shared_ptr<ExecutorStore>(new ExecutorStore(std::move(store), std::move(lease)));
}

absl::StatusOr<MappedBytes> ExecutorStore::open(const Digest & digest, uint64_t bytes) {
    STRATA_RETURN_IF_ERROR(lease_.add({digest}));
    STRATA_ASSIGN_OR_RETURN(MappedBytes mapped, store_->map(digest));
    if (bytes != 0 && mapped.bytes.size() != bytes) {
        return absl::NotFoundError(
            fmt::format("blob {} has {} bytes, not {}", digest.to_string(), mapped.bytes.size(), bytes));
    }
    return mapped;
}

absl::StatusOr<std::unique_ptr<executor::BlobStore::Writer>> ExecutorStore::create(const std::optional<Digest> & digest,
                                                                                   uint64_t) {
    STRATA_ASSIGN_OR_RETURN(layers::BlobWriter writer, store_->new_blob(&lease_));
    return std::make_unique<BlobFile>(*this, std::move(writer), digest);
}

} // namespace strata::engine
