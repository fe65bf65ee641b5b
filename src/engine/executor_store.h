#pragma once

#include "executor/blobs.h"
#include "layers/store.h"

#include <filesystem>
#include <memory>
#include <optional>

namespace strata::engine {

// The layer store of the machine as an executor sees it. Layers that it used stay there while the process lives.
class ExecutorStore : public executor::BlobStore {
public:
    static absl::StatusOr<std::shared_ptr<ExecutorStore>> open(const std::filesystem::path & root);

    absl::StatusOr<MappedBytes> open(const Digest & digest, uint64_t bytes) override;
    absl::StatusOr<std::unique_ptr<Writer>> create(const std::optional<Digest> & digest, uint64_t bytes) override;

private:
    class BlobFile;

    ExecutorStore(std::unique_ptr<layers::Store> store, layers::Lease lease)
        : store_(std::move(store))
        , lease_(std::move(lease)) {}

    const std::unique_ptr<layers::Store> store_; // outlives the lease
    layers::Lease lease_;
};

} // namespace strata::engine
