#pragma once

#include "base/digest.h"
#include "base/mapped_bytes.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "layers/disk.h"
#include "layers/model_name.h"

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace strata::layers {

// One tensor of a layer blob.
struct TensorEntry {
    std::string name;
    std::string type;           // ggml's name, e.g. "Q4_1"
    std::vector<int64_t> shape; // ggml's order: fastest dimension first, 1 to 4 numbers
    uint64_t offset = 0;        // bytes from the start of the blob
    uint64_t length = 0;        // bytes
    Digest sha256;
};

enum class LayerKind { kHead, kEmbedding, kBlock, kTail };
const char * to_string(LayerKind kind); // "head", "embedding", "block", "tail"

// One layer of a model: a blob that is itself a GGUF file, a shard of the model.
struct LayerEntry {
    LayerKind kind = LayerKind::kHead;
    int32_t block = -1; // for kBlock
    Digest digest;
    uint64_t size = 0; // bytes of the blob
    std::vector<TensorEntry> tensors;
};

// What the manifest's index layer says about a model. Index 0 is the head, 1 the embedding, the last the tail.
struct ModelIndex {
    std::string architecture; // general.architecture
    std::string quantization; // e.g. "Q4_1"
    uint64_t parameters = 0;
    uint64_t context_tokens = 0;
    std::vector<std::pair<std::string, std::string>> metadata; // of the head as text, long arrays shortened
    std::vector<LayerEntry> layers;
};

struct Lineage {
    std::string operation;               // "import"
    std::string origin;                  // file name or URL
    std::optional<Digest> origin_sha256; // of the source file, when it was one file and known
    int64_t created_unix_ms = 0;
    std::string engine_build;
};

struct StoredModel {
    ModelName name;
    Digest manifest;
    uint64_t size = 0;         // bytes of all its blobs
    std::vector<Digest> blobs; // manifest, config, index layer and layers, each once: what a lease must name
    std::shared_ptr<const ModelIndex> index; // never null; shared with the store's cache, so that copies are cheap
    std::optional<Lineage> lineage;
};

// Which of `models` refer to each layer blob, in the order of `models`: what a model shares, and what is its own.
std::map<Digest, std::vector<ModelName>> models_by_layer(const std::vector<StoredModel> & models);

// Layers of a view whose data is elsewhere: their files have the header, and a hole for the tensors.
struct HollowLayers {
    std::set<size_t> layers; // by their place in the index
    // The header of a layer that is not in the store.
    std::function<absl::StatusOr<std::string>(size_t layer)> header;
};

class StoreCore;

// Writes one blob: a temporary file that gets its digest's name when all of it is on the disk, and is removed when the
// writer goes away before. Not thread-safe; many writers may be open at once. Must not outlive its store.
class BlobWriter {
public:
    BlobWriter(BlobWriter &&) noexcept;
    BlobWriter & operator=(BlobWriter &&) noexcept;
    ~BlobWriter();

    absl::Status append(std::span<const std::byte> data);
    // Hashed while written, fsync, rename. A blob that is there already and whole is left as it is. `expected`, when
    // given, is compared before the rename: kDataLoss when the bytes are others.
    absl::StatusOr<Digest> finish(const std::optional<Digest> & expected = std::nullopt);
    uint64_t size() const;
    // What was appended, before finish().
    absl::StatusOr<MappedBytes> map() const;

private:
    friend class Store;
    friend class StoreCore;
    struct State;
    explicit BlobWriter(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

// Keeps blobs from garbage collection while it lives; also across processes (a lock on a file, so that the lease of a
// killed process ends with it). Thread-safe. Must not outlive its store.
class Lease {
public:
    Lease(Lease &&) noexcept;
    Lease & operator=(Lease &&) noexcept;
    ~Lease();
    // kNotFound, and nothing is added, when one of the blobs is not in the store.
    absl::Status add(const std::vector<Digest> & digests);

private:
    friend class Store;
    friend class StoreCore;
    friend class BlobWriter;
    struct State;
    explicit Lease(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

struct GcOptions {
    bool dry_run = false;
    // A blob younger than this stays: it may belong to a model that is being written.
    std::chrono::milliseconds grace = std::chrono::hours(1);
    // When set: views (see materialise) of models that are gone are removed there as well.
    std::filesystem::path views;
};
struct GcResult {
    int64_t removed_blobs = 0;
    int64_t freed_bytes = 0;
    int64_t kept_blobs = 0;
};

struct BlobProblem {
    Digest digest;
    std::string sentence; // names the blob, the model and layer that it belongs to, and what is wrong
};

// Progress of a long operation: done and total bytes; return false to cancel (the operation then ends with kCancelled).
using Progress = std::function<bool(uint64_t done, uint64_t total)>;

// The content-addressed store of a node: an OCI image layout of ModelPack manifests. Thread-safe, and safe against
// other processes on the same folder: every change of index.json is made under a file lock and by rename. A kill at any
// moment leaves it valid; what a killed writer left is removed by the next garbage collection.
class Store {
public:
    // Opens the store in `root`, creating it when there is none. Never reads blobs. `disk` must outlive the store.
    static absl::StatusOr<std::unique_ptr<Store>> open(const std::filesystem::path & root, Disk & disk = Disk::real());
    ~Store();

    const std::filesystem::path & root() const;
    std::filesystem::path blob_path(const Digest & digest) const;
    bool has(const Digest & digest) const;

    // `lease`, when given, keeps the blob from the moment that it is in its place; it must live until finish()
    // returned. Without one only the grace time of the garbage collection keeps a blob that no model refers to yet.
    absl::StatusOr<BlobWriter> new_blob(Lease * lease = nullptr);
    absl::StatusOr<Digest> put(std::string_view bytes, Lease * lease = nullptr);
    // Removes those of the blobs that no model and no lease refers to, at any age: for a writer that gives up, after it
    // let go of its lease.
    absl::Status discard(const std::vector<Digest> & digests);
    // A small blob (manifest, index, lineage) whole, its digest checked. kResourceExhausted above `limit`.
    absl::StatusOr<std::string> get(const Digest & digest, uint64_t limit) const;

    // Writes index layer, config, manifest and lineage of a model whose layer blobs are in the store, and names it.
    // Returns the manifest's digest. An equal model gets an equal digest; a name that exists now names the new model.
    absl::StatusOr<Digest> commit_model(const ModelName & name, const ModelIndex & index, const Lineage & lineage);

    // All models by name. One whose manifest or index can't be read is left out; verify() names it.
    absl::StatusOr<std::vector<StoredModel>> list() const;
    // By name; kNotFound says which names there are. kDataLoss when the manifest or index does not match its digest.
    absl::StatusOr<StoredModel> find(const ModelName & name) const;
    absl::Status remove(const ModelName & name);

    // Looks into a copied layer, which is untrusted, before the model is committed.
    using LayerCheck = std::function<absl::Status(const LayerEntry & layer, const std::filesystem::path & blob)>;
    // Names one manifest of another OCI layout that is a ModelPack model of ours: copies what is missing, verified, and
    // commits it. `reference` (a name, or a manifest's digest) picks the manifest when the layout has several. The
    // bytes of a layer are compared with their digests only; `check`, when given, may refuse what is in them.
    absl::StatusOr<Digest> import_oci(const std::filesystem::path & layout, std::string_view reference,
                                      const ModelName & name, const Progress & progress,
                                      const LayerCheck & check = nullptr);

    // Hashes every blob of the model (or of the whole store) and returns what is wrong; an error only when it could not
    // look.
    absl::StatusOr<std::vector<BlobProblem>> verify(const std::optional<ModelName> & name,
                                                    const Progress & progress) const;
    // The same before a model is used, in the time of a look at its files: a blob that was whole when it was hashed
    // last, and whose file was not changed since, is not hashed again.
    absl::StatusOr<std::vector<BlobProblem>> verify_for_use(const ModelName & name, const Progress & progress) const;

    // `holder` is for people: who keeps the blobs. kNotFound when one of them is not in the store.
    absl::StatusOr<Lease> lease(std::string_view holder, const std::vector<Digest> & digests);
    absl::StatusOr<GcResult> collect_garbage(const GcOptions & options);

    // A folder of symlinks into the blobs, named so that llama.cpp loads it as a split model; the path of its first
    // file. Idempotent; equal models have equal views. The folder is `views`/<manifest digest>, and more when layers
    // are hollow.
    absl::StatusOr<std::filesystem::path> materialise(const StoredModel & model, const std::filesystem::path & views,
                                                      const HollowLayers & hollow = {}) const;

    // A blob's bytes in place. It is hashed first, unless it was whole when it was hashed last and its file was not
    // changed since. kNotFound; kDataLoss, when the bytes have another digest.
    absl::StatusOr<MappedBytes> map(const Digest & digest) const;
    // Says that a blob was written from hashed bytes just now.
    absl::Status remember_whole(const Digest & digest) const;

    // Bytes of all blobs on disk.
    absl::StatusOr<uint64_t> size_bytes() const;

private:
    explicit Store(std::unique_ptr<StoreCore> core);
    std::unique_ptr<StoreCore> core_;
};

} // namespace strata::layers
