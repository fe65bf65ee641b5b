#include "layers/import.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/text.h"
#include "layers/gguf.h"
#include "layers/gguf_model.h"
#include "layers/shard.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

namespace strata::layers {

namespace {

// Small enough to stay in a core's cache between reading, the two hashes and writing.
constexpr size_t kChunkBytes = 128u << 10;
// What the index repeats of the metadata, for people; all of it is in the head.
constexpr size_t kMaxIndexedKeys = 1000;
constexpr size_t kMaxIndexedTextBytes = 1000;
constexpr int kMaxThreads = 64;

// Runs `work(i)` for each number below `count` on `threads` threads, the calling one among them, in order of `count`;
// ends at the first error and returns it.
template <typename Work>
absl::Status run_parallel(size_t count, int threads, Work work) {
    std::atomic<size_t> next = 0;
    std::atomic<bool> failed = false;
    std::mutex mutex;
    absl::Status first_error;
    const auto loop = [&] {
        while (!failed) {
            const size_t i = next++;
            if (i >= count) return;
            if (absl::Status status = work(i); !status.ok()) {
                const std::lock_guard lock(mutex);
                if (first_error.ok()) first_error = std::move(status);
                failed = true;
            }
        }
    };
    {
        std::vector<std::jthread> others;
        const size_t most = std::min<size_t>(count, static_cast<size_t>(std::clamp(threads, 1, kMaxThreads)));
        for (size_t i = 1; i < most; ++i) others.emplace_back(loop);
        loop();
    }
    return first_error;
}

class Importer {
public:
    Importer(Store & store, const std::vector<GgufFile> & files, const GgufModel & model, const ModelName & name,
             const ImportOptions & options)
        : store_(store)
        , files_(files)
        , model_(model)
        , name_(name)
        , options_(options)
        , shards_(make_shards(model))
        , entries_(shards_.size())
        , writers_(shards_.size())
        , finished_(shards_.size()) {
        for (const Shard & shard : shards_) total_bytes_ += shard.size;
    }

    absl::StatusOr<Digest> run();

private:
    absl::Status write_shard(size_t i, Lease & lease);
    absl::Status write_tensor(const ShardTensor & tensor, BlobWriter & writer, TensorEntry & entry);
    absl::StatusOr<Digest> write_and_commit();
    absl::Status report(uint64_t bytes);
    ModelIndex make_index();

    Store & store_;
    const std::vector<GgufFile> & files_;
    const GgufModel & model_;
    const ModelName & name_;
    const ImportOptions & options_;
    const std::vector<Shard> shards_;
    std::vector<LayerEntry> entries_;
    std::vector<std::optional<BlobWriter>> writers_;
    std::vector<std::optional<Digest>> finished_; // of the blobs that have their names

    uint64_t total_bytes_ = 0;
    std::mutex mutex_; // guards done_bytes_ and the callback
    uint64_t done_bytes_ = 0;
};

absl::Status Importer::report(uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    done_bytes_ += bytes;
    if (options_.progress && !options_.progress(done_bytes_, total_bytes_)) {
        return absl::CancelledError(fmt::format("the import of {} was cancelled", name_.to_string()));
    }
    return absl::OkStatus();
}

// Both hashes and the write work on one cached chunk, so that the data crosses the memory bus once each way.
absl::Status Importer::write_tensor(const ShardTensor & tensor, BlobWriter & writer, TensorEntry & entry) {
    constexpr uint64_t kReportBytes = 4u << 20;
    thread_local std::array<std::byte, kChunkBytes> buffer;
    const GgufTensor & source = *tensor.source.tensor;
    const GgufFile & file = files_[tensor.source.part];

    entry.name = source.name;
    entry.type = type_name(source.type);
    entry.shape.assign(source.shape.begin(), source.shape.begin() + source.dimensions);
    entry.offset = tensor.offset;
    entry.length = source.length;

    Sha256 hasher;
    uint64_t unreported = 0;
    for (uint64_t done = 0; done < source.length;) {
        const auto chunk = std::span(buffer).first(std::min<uint64_t>(kChunkBytes, source.length - done));
        STRATA_RETURN_IF_ERROR(file.read(source.offset + done, chunk));
        hasher.update(chunk);
        STRATA_RETURN_IF_ERROR(writer.append(chunk));
        done += chunk.size();
        unreported += chunk.size();
        if (unreported >= kReportBytes) STRATA_RETURN_IF_ERROR(report(std::exchange(unreported, 0)));
    }
    entry.sha256 = hasher.finish();
    return report(unreported);
}

absl::Status Importer::write_shard(size_t i, Lease & lease) {
    const Shard & shard = shards_[i];
    LayerEntry & entry = entries_[i];
    entry.kind = shard.kind;
    entry.block = shard.block;
    entry.size = shard.size;

    STRATA_ASSIGN_OR_RETURN(writers_[i], store_.new_blob(&lease));
    BlobWriter & writer = *writers_[i];
    STRATA_RETURN_IF_ERROR(writer.append(std::as_bytes(std::span(shard.header))));
    for (const ShardTensor & tensor : shard.tensors) {
        STRATA_RETURN_IF_ERROR(write_tensor(tensor, writer, entry.tensors.emplace_back()));
        const uint64_t end = &tensor == &shard.tensors.back() ? shard.size : (&tensor + 1)->offset;
        constexpr std::array<std::byte, GGUF_DEFAULT_ALIGNMENT> kZeros{};
        STRATA_RETURN_IF_ERROR(writer.append(std::span(kZeros).first(end - writer.size())));
    }
    STRATA_CHECK(writer.size() == shard.size);
    uint64_t tensor_bytes = 0; // reported already
    for (const TensorEntry & tensor : entry.tensors) tensor_bytes += tensor.length;
    return report(shard.size - tensor_bytes);
}

ModelIndex Importer::make_index() {
    ModelIndex index;
    index.architecture = model_.architecture;
    index.quantization = model_.quantization;
    index.parameters = model_.parameters;
    index.context_tokens = model_.context_tokens;
    for (const GgufValue * value : std::span(model_.values).first(std::min(model_.values.size(), kMaxIndexedKeys))) {
        index.metadata.emplace_back(value->key, value->as_text(kMaxIndexedTextBytes));
    }
    for (size_t i = 0; i < entries_.size(); ++i) entries_[i].digest = *finished_[i];
    index.layers = std::move(entries_);
    return index;
}

absl::StatusOr<Digest> Importer::write_and_commit() {
    STRATA_ASSIGN_OR_RETURN(Lease lease, store_.lease(fmt::format("import of {}", name_.to_string()), {}));

    // The largest first, so that the threads end at about the same time.
    std::vector<size_t> order(shards_.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return shards_[a].size > shards_[b].size; });
    // No blob gets its name before all are written, so that an import that ends early leaves nothing.
    STRATA_RETURN_IF_ERROR(
        run_parallel(order.size(), options_.threads, [&](size_t i) { return write_shard(order[i], lease); }));
    STRATA_RETURN_IF_ERROR(run_parallel(order.size(), options_.threads, [&](size_t i) -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(finished_[order[i]], writers_[order[i]]->finish());
        return absl::OkStatus();
    }));

    Lineage lineage;
    lineage.operation = "import";
    lineage.origin = options_.origin.empty() ? files_.front().path().filename().string() : options_.origin;
    lineage.origin_sha256 = options_.origin_sha256;
    lineage.created_unix_ms = unix_ms(Clock::real().wall());
    lineage.engine_build = options_.engine_build;
    return store_.commit_model(name_, make_index(), lineage);
}

absl::StatusOr<Digest> Importer::run() {
    absl::StatusOr<Digest> manifest = write_and_commit();
    writers_.clear();
    if (!manifest.ok()) {
        // The disk may have become full between two blobs. What others use as well stays.
        std::vector<Digest> orphans;
        for (const std::optional<Digest> & digest : finished_) {
            if (digest.has_value()) orphans.push_back(*digest);
        }
        // What can't be removed now is left to the garbage collection; the first error is the one to tell.
        if (!orphans.empty()) store_.discard(orphans).IgnoreError();
    }
    return manifest;
}

} // namespace

absl::StatusOr<Digest> import_gguf(Store & store, const std::vector<std::filesystem::path> & files,
                                   const ModelName & name, const ImportOptions & options) {
    std::vector<GgufFile> opened;
    std::vector<GgufHeader> headers;
    for (const std::filesystem::path & path : files) {
        STRATA_ASSIGN_OR_RETURN(GgufFile file, GgufFile::open(path));
        headers.push_back(file.header());
        opened.push_back(std::move(file));
    }
    STRATA_ASSIGN_OR_RETURN(const GgufModel model, make_model(headers));
    return Importer(store, opened, model, name, options).run();
}

} // namespace strata::layers
