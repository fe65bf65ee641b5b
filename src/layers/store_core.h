#pragma once

#include "layers/index_file.h"
#include "layers/model_cache.h"
#include "layers/model_json.h"
#include "layers/oci.h"
#include "layers/store.h"
#include "layers/store_files.h"

#include <mutex>
#include <set>
#include <string>

namespace strata::layers {
class VerifiedBlobs;
}

// The inside of the store, shared by the files that implement it; nobody else includes this.
namespace strata::layers {

struct Lease::State {
    State(const StoreFiles & files, UniqueFd fd, std::filesystem::path path)
        : files(files)
        , fd(std::move(fd))
        , path(std::move(path)) {}
    State(const State &) = delete;
    ~State();

    // Makes the lease's file. The lock keeps garbage collection away until it is locked itself.
    static absl::StatusOr<std::unique_ptr<State>> create(const StoreFiles & files, std::string_view holder,
                                                         const StoreLock & lock);
    // Does not ask whether the blobs are there.
    absl::Status add(const std::vector<Digest> & digests, const StoreLock & lock);

    const StoreFiles & files;
    std::mutex mutex; // one writer of the file at a time
    UniqueFd fd;
    std::filesystem::path path;
};

struct BlobWriter::State {
    State(const StoreFiles & files, TempFile file, Lease::State * lease)
        : files(files)
        , file(std::move(file))
        , lease(lease) {}

    // Moves the file, which is on the disk already, to its place; or drops it, to `keep` the blob that is there.
    absl::Status place(const Digest & digest, bool keep, const StoreLock & lock);

    const StoreFiles & files;
    std::optional<TempFile> file;
    Lease::State * lease;
    Sha256 hasher;
    uint64_t size = 0;
};

class StoreCore {
public:
    StoreCore(const std::filesystem::path & root, Disk & disk)
        : files(root, disk)
        , index_file(files.index()) {}

    absl::StatusOr<Lease> lease(std::string_view holder) const;
    absl::StatusOr<BlobWriter> new_blob(Lease * lease) const;
    absl::Status put_all(const std::vector<std::string_view> & documents, Lease * lease) const;
    // For a caller that has the lock already.
    absl::Status put_locked(std::string_view bytes, Lease & lease, const StoreLock & lock) const;

    absl::StatusOr<std::shared_ptr<const oci::Index>> read_index() const;
    absl::StatusOr<std::string> read_document(const oci::Descriptor & descriptor, uint64_t limit) const;
    // The model behind a manifest, from the cache or the disk.
    absl::StatusOr<std::shared_ptr<const LoadedModel>> load_model(const oci::Descriptor & manifest) const;
    // Of the model `manifest`, by its entry of referrers in index.json, which may be null. Nothing when there is none
    // or it can't be read: a model is of use without its lineage.
    std::optional<Lineage> load_lineage(const oci::Descriptor * referrers, const Digest & manifest) const;

    // The last step of making a model, when all its blobs but the lineage's are in the store and `lease` keeps them.
    absl::Status name_manifest(const ModelName & name, oci::Descriptor manifest, const LoadedModel & model,
                               const Lineage & lineage, Lease & lease) const;

    // See Store::verify; without the blobs that are `known` to be whole.
    absl::StatusOr<std::vector<BlobProblem>> verify(const std::optional<ModelName> & name, const VerifiedBlobs * known,
                                                    const Progress & progress) const;

    // All blobs that index.json or a living lease reaches. Removes the files of leases whose holders are gone. An error
    // when a manifest can't be read, since what it refers to is then unknown.
    absl::StatusOr<std::set<Digest>> reachable(const StoreLock & exclusive) const;

    absl::Status remove_dead_views(const std::filesystem::path & views, const StoreLock & exclusive) const;

    StoreFiles files;
    IndexFile index_file;
    mutable ModelCache cache;
};

// kNotFound with the names that there are.
absl::Status no_such_model(const ModelName & name, const oci::Index & index);

std::string message_of(const absl::Status & status);

// The status with `sentence` before its message.
absl::Status with_context(std::string_view sentence, const absl::Status & status);

} // namespace strata::layers
