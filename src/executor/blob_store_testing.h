#pragma once

#include "executor/blobs.h"

namespace strata::executor {

// Blobs in memory.
class MemoryBlobStore : public BlobStore {
public:
    absl::StatusOr<MappedBytes> open(const Digest & digest, uint64_t) override {
        const auto found = blobs_.find(digest);
        if (found == blobs_.end()) return absl::NotFoundError("not on this disk");
        return MappedBytes{*found->second, found->second};
    }
    absl::StatusOr<std::unique_ptr<Writer>> create(const std::optional<Digest> & digest, uint64_t) override {
        return std::make_unique<MemoryWriter>(*this, digest);
    }

private:
    using Bytes = std::vector<uint8_t>;
    class MemoryWriter : public Writer {
    public:
        MemoryWriter(MemoryBlobStore & store, const std::optional<Digest> & digest)
            : store_(store)
            , digest_(digest) {}
        absl::Status append(std::span<const uint8_t> data) override {
            bytes_->insert(bytes_->end(), data.begin(), data.end());
            return absl::OkStatus();
        }
        absl::StatusOr<MappedBytes> written() override { return MappedBytes{*bytes_, bytes_}; }
        absl::StatusOr<MappedBytes> finish() override {
            const Digest made = Digest::of(std::as_bytes(std::span(*bytes_)));
            if (digest_.value_or(made) != made) return absl::DataLossError("other bytes came");
            digest_ = made;
            store_.blobs_[made] = bytes_;
            return MappedBytes{*bytes_, bytes_};
        }
        Digest digest() const override { return digest_.value(); }

    private:
        MemoryBlobStore & store_;
        std::optional<Digest> digest_;
        const std::shared_ptr<Bytes> bytes_ = std::make_shared<Bytes>();
    };

    std::map<Digest, std::shared_ptr<Bytes>> blobs_;
};

} // namespace strata::executor
