#include "base/check.h"
#include "layers/store_core.h"

#include <fmt/format.h>

namespace strata::layers {

BlobWriter::BlobWriter(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
BlobWriter::BlobWriter(BlobWriter &&) noexcept = default;
BlobWriter & BlobWriter::operator=(BlobWriter &&) noexcept = default;
BlobWriter::~BlobWriter() = default;

uint64_t BlobWriter::size() const {
    return state_->size;
}

absl::Status BlobWriter::append(std::span<const std::byte> data) {
    STRATA_CHECK(state_->file.has_value()); // not after finish()
    STRATA_RETURN_IF_ERROR(state_->file->append(data));
    state_->hasher.update(data);
    state_->size += data.size();
    return absl::OkStatus();
}

absl::StatusOr<MappedBytes> BlobWriter::map() const {
    STRATA_CHECK(state_->file.has_value());
    return map_file(state_->file->fd(), 0, state_->size);
}

absl::Status BlobWriter::State::place(const Digest & digest, bool keep, const StoreLock & lock) {
    if (lease != nullptr) STRATA_RETURN_IF_ERROR(lease->add({digest}, lock));
    const std::filesystem::path path = files.blob(digest);
    if (keep && files.blob_size(digest) != size) { // garbage collection was there since
        STRATA_RETURN_IF_ERROR(file->sync());
        keep = false;
    }
    absl::Status placed = keep ? files.disk().touch(path) : file->move_to(path);
    file.reset();
    return placed;
}

absl::StatusOr<Digest> BlobWriter::finish(const std::optional<Digest> & expected) {
    STRATA_CHECK(state_->file.has_value());
    const Digest digest = state_->hasher.finish();
    if (expected && digest != *expected) {
        state_->file.reset();
        return absl::DataLossError(
            fmt::format("the bytes have the digest {} instead of {}: what they were read from is "
                        "damaged or another file",
                        digest.to_string(), expected->to_string()));
    }
    // Both without the lock, since they can take long. A blob that is there is touched, since garbage collection spares
    // young blobs; one with other bytes (a bad disk, a lost write) is replaced.
    const bool there = state_->files.is_whole(digest, state_->size);
    if (!there) STRATA_RETURN_IF_ERROR(state_->file->sync());
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, state_->files.lock_shared());
    STRATA_RETURN_IF_ERROR(state_->place(digest, there, lock));
    return digest;
}

absl::StatusOr<BlobWriter> StoreCore::new_blob(Lease * lease) const {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, files.lock_shared());
    STRATA_ASSIGN_OR_RETURN(TempFile file, files.new_temp(lock));
    return BlobWriter(
        std::make_unique<BlobWriter::State>(files, std::move(file), lease == nullptr ? nullptr : lease->state_.get()));
}

absl::Status StoreCore::put_all(const std::vector<std::string_view> & documents, Lease * lease) const {
    std::vector<BlobWriter> writers;
    writers.reserve(documents.size());
    for (const std::string_view bytes : documents) {
        STRATA_ASSIGN_OR_RETURN(BlobWriter writer, new_blob(lease));
        STRATA_RETURN_IF_ERROR(writer.append(std::as_bytes(std::span(bytes.data(), bytes.size()))));
        writers.push_back(std::move(writer));
    }
    // All are written before the first is synced: a file system with a journal then writes its journal once for all of
    // them.
    for (BlobWriter & writer : writers) STRATA_RETURN_IF_ERROR(writer.finish().status());
    return absl::OkStatus();
}

absl::Status StoreCore::put_locked(std::string_view bytes, Lease & lease, const StoreLock & lock) const {
    STRATA_ASSIGN_OR_RETURN(TempFile file, files.new_temp(lock));
    STRATA_RETURN_IF_ERROR(file.append(std::as_bytes(std::span(bytes.data(), bytes.size()))));
    STRATA_RETURN_IF_ERROR(file.sync());
    BlobWriter::State writer(files, std::move(file), lease.state_.get());
    writer.size = bytes.size();
    const Digest digest = Digest::of(bytes);
    return writer.place(digest, files.is_whole(digest, bytes.size()), lock);
}

} // namespace strata::layers
