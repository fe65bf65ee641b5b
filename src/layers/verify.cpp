#include "base/text.h"
#include "layers/catalog.h"
#include "layers/limits.h"
#include "layers/store_core.h"
#include "layers/verified_blobs.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <thread>

namespace strata::layers {

namespace {

constexpr unsigned kThreads = 2;
constexpr size_t kTensorsNamed = 3;

struct Job {
    Digest digest;
    std::optional<uint64_t> size;     // that its manifest says
    std::string owner;                // "block 3 of m:latest"
    bool owned = true;                // a model refers to it
    std::vector<TensorEntry> tensors; // of a layer
};

// Everything that is to be hashed, each blob once, and what is wrong with the documents themselves.
class Plan {
public:
    explicit Plan(const StoreCore & state)
        : core_(state) {}

    // One entry of index.json with all that it reaches.
    void add_entry(const oci::Index & index, const oci::Descriptor & entry, const std::string & name) {
        add_blob(entry, fmt::format("the manifest of {}", name));
        if (const auto model = core_.load_model(entry); model.ok()) {
            for (const LayerEntry & layer : (*model)->index->layers) {
                oci::Descriptor blob;
                blob.digest = layer.digest;
                blob.size = layer.size;
                add_blob(blob, fmt::format("{} of {}", layer_label(layer), name), &layer.tensors);
            }
        } else if (entry.artifact_type == oci::kArtifactModel) {
            add_sentence(entry.digest, with_context(fmt::format("model {}", name), model.status()));
        }
        add_documents(entry, name, 0);
        if (const oci::Descriptor * tag = catalog::find(index, oci::referrers_tag(entry.digest)); tag != nullptr) {
            add_blob(*tag, fmt::format("the referrers of {}", name));
            add_documents(*tag, "the lineage of " + name, 0);
        }
    }

    void add_blob(const oci::Descriptor & blob, std::string owner, const std::vector<TensorEntry> * tensors = nullptr) {
        Job & job = jobs_[blob.digest];
        if (!job.owner.empty()) return;
        job = {blob.digest, blob.size, std::move(owner), true, {}};
        if (tensors != nullptr) job.tensors = *tensors;
    }

    void add_unowned(const Digest & digest) {
        Job & job = jobs_[digest];
        if (job.owner.empty()) job = {digest, std::nullopt, "of no model", false, {}};
    }

    // The largest first, so that the threads end together.
    std::vector<Job> take_jobs() {
        std::vector<Job> jobs;
        for (auto & [digest, job] : jobs_) {
            if (!job.size) job.size = core_.files.blob_size(digest);
            jobs.push_back(std::move(job));
        }
        std::sort(jobs.begin(), jobs.end(), [](const Job & a, const Job & b) { return a.size > b.size; });
        return jobs;
    }

    std::vector<BlobProblem> take_problems() { return std::move(problems_); }

private:
    void add_sentence(const Digest & digest, const absl::Status & status) {
        // A blob that is missing or damaged gets its sentence when it is hashed.
        if (absl::IsDataLoss(status) || absl::IsNotFound(status)) return;
        problems_.push_back({digest, message_of(status)});
    }

    // What a manifest or an index that may not be a model of ours refers to.
    void add_documents(const oci::Descriptor & entry, const std::string & name, size_t depth) {
        const bool is_index = entry.media_type == oci::kMediaIndex;
        if (depth >= limits::kManifestDepth || (!is_index && entry.media_type != oci::kMediaManifest)) return;
        const absl::StatusOr<std::string> text = core_.read_document(entry, limits::kManifestBytes);
        if (!text.ok()) return;
        if (is_index) {
            const auto index = oci::parse_index(*text, name);
            if (!index.ok()) return add_sentence(entry.digest, index.status());
            for (const oci::Descriptor & child : index->manifests) {
                add_blob(child, fmt::format("a manifest of {}", name));
                add_documents(child, name, depth + 1);
            }
            return;
        }
        const auto manifest = oci::parse_manifest(*text, name);
        if (!manifest.ok()) return add_sentence(entry.digest, manifest.status());
        add_blob(manifest->config, fmt::format("the config of {}", name));
        for (const oci::Descriptor & layer : manifest->layers) {
            add_blob(layer,
                     fmt::format("{} of {}",
                                 layer.media_type == oci::kMediaWeightConfig ? "the tensor index" : "a layer", name));
        }
    }

    const StoreCore & core_;
    std::map<Digest, Job> jobs_;
    std::vector<BlobProblem> problems_;
};

// Progress of several threads as calls of one at a time.
class SharedProgress {
public:
    SharedProgress(const Progress & progress, uint64_t total)
        : progress_(progress)
        , total_(total) {}

    absl::Status advance(uint64_t bytes) {
        if (!progress_) return absl::OkStatus();
        const std::lock_guard lock(mutex_);
        done_ += bytes;
        cancelled_ = cancelled_ || !progress_(std::min(done_, total_), total_);
        return cancelled_ ? absl::CancelledError("the check was cancelled") : absl::OkStatus();
    }

private:
    std::mutex mutex_;
    const Progress & progress_;
    const uint64_t total_;
    uint64_t done_ = 0;
    bool cancelled_ = false;
};

// Where in a blob with a wrong digest the damage is, by the hashes of its tensors.
std::string damaged_tensors(const OpenFile & file, const std::filesystem::path & path,
                            const std::vector<TensorEntry> & tensors) {
    std::vector<std::string> damaged;
    for (const TensorEntry & tensor : tensors) {
        const absl::StatusOr<Digest> found = hash_range(file, path, tensor.offset, tensor.length);
        if (!found.ok() || *found != tensor.sha256) damaged.push_back(tensor.name);
    }
    if (tensors.empty()) return {};
    if (damaged.empty()) return "; its tensors are whole, the damage is in its header or padding";
    const size_t more = damaged.size() - std::min(damaged.size(), kTensorsNamed);
    damaged.resize(damaged.size() - more);
    return fmt::format("; damaged: {}{}", fmt::join(damaged, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

// What came out, from several threads.
class Findings {
public:
    void add_problem(const Job & job, std::string_view what) {
        const std::lock_guard lock(mutex_);
        problems_.push_back({job.digest, fmt::format("blob {} ({}) {}", job.digest.to_string(), job.owner, what)});
    }
    void add_whole(const Digest & digest, const FileStamp & stamp) {
        const std::lock_guard lock(mutex_);
        whole_.insert(digest, stamp);
        any_whole_ = true;
    }
    std::vector<BlobProblem> take_problems() { return std::move(problems_); }
    // Null when there is nothing to remember.
    const VerifiedBlobs * whole() const { return any_whole_ ? &whole_ : nullptr; }

private:
    std::mutex mutex_;
    std::vector<BlobProblem> problems_;
    VerifiedBlobs whole_;
    bool any_whole_ = false;
};

// An error only when cancelled.
absl::Status check_blob(const StoreFiles & files, const Job & job, SharedProgress & progress, Findings & findings) {
    const std::filesystem::path path = files.blob(job.digest);
    const auto blame = [&](std::string_view what) { findings.add_problem(job, what); };
    const absl::StatusOr<OpenFile> file = open_regular(path);
    if (!file.ok()) {
        if (absl::IsNotFound(file.status())) {
            blame("is missing; import or pull the model again");
        } else {
            blame(fmt::format("can't be read: {}", message_of(file.status())));
        }
        return progress.advance(job.size.value_or(0));
    }
    const std::string cure = job.owned ? "; import or pull the model again" : fmt::format("; remove {}", path.native());
    if (job.size && file->size != *job.size) {
        blame(fmt::format("has {} bytes instead of {}{}", file->size, *job.size, cure));
        return progress.advance(*job.size);
    }
#ifdef __linux__
    ::posix_fadvise(file->fd.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
#endif
    const std::optional<FileStamp> before = FileStamp::of(*file);
    const bool settled = before && !before->is_fresh();
    const absl::StatusOr<Digest> digest =
        hash_range(*file, path, 0, file->size, [&progress](uint64_t bytes) { return progress.advance(bytes); });
    if (absl::IsCancelled(digest.status())) return digest.status();
    if (!digest.ok()) {
        blame(fmt::format("can't be read: {}{}", message_of(digest.status()), cure));
        return absl::OkStatus();
    }
    if (*digest != job.digest) {
        blame(fmt::format("is damaged: its bytes have the digest {}{}{}", digest->to_string(),
                          damaged_tensors(*file, path, job.tensors), cure));
    } else if (settled && FileStamp::of(*file) == before) {
        findings.add_whole(job.digest, *before);
    }
    return absl::OkStatus();
}

// Hashes in a few threads. An error only when cancelled.
absl::Status check_blobs(const StoreFiles & files, const std::vector<Job> & jobs, const Progress & progress,
                         Findings & findings) {
    uint64_t total = 0;
    for (const Job & job : jobs) total += job.size.value_or(0);
    SharedProgress shared(progress, total);
    std::mutex mutex; // of failure
    absl::Status failure;
    std::atomic<size_t> next = 0;
    const auto work = [&] {
        for (size_t i = next++; i < jobs.size(); i = next++) {
            const absl::Status checked = check_blob(files, jobs[i], shared, findings);
            if (checked.ok()) continue;
            const std::lock_guard lock(mutex);
            failure = checked;
            next = jobs.size();
        }
    };
    std::vector<std::thread> threads;
    for (unsigned i = 1; i < std::min(kThreads, std::thread::hardware_concurrency()); ++i) threads.emplace_back(work);
    work();
    for (std::thread & thread : threads) thread.join();
    return failure;
}

} // namespace

absl::StatusOr<std::vector<BlobProblem>> Store::verify(const std::optional<ModelName> & name,
                                                       const Progress & progress) const {
    return core_->verify(name, nullptr, progress);
}

absl::StatusOr<std::vector<BlobProblem>> Store::verify_for_use(const ModelName & name,
                                                               const Progress & progress) const {
    const VerifiedBlobs known = VerifiedBlobs::read(core_->files);
    return core_->verify(name, &known, progress);
}

absl::StatusOr<MappedBytes> Store::map(const Digest & digest) const {
    const StoreFiles & files = core_->files;
    STRATA_ASSIGN_OR_RETURN(const OpenFile file, open_regular(files.blob(digest)));
    const std::optional<FileStamp> stamp = FileStamp::of(file);
    if (!VerifiedBlobs::read(files).contains(files, digest)) {
        STRATA_ASSIGN_OR_RETURN(const Digest found, hash_range(file, files.blob(digest), 0, file.size));
        if (found != digest) {
            return absl::DataLossError(
                fmt::format("blob {} is damaged: its bytes have the digest {}", digest.to_string(), found.to_string()));
        }
        if (stamp && !stamp->is_fresh() && FileStamp::of(file) == stamp) remember_whole(digest).IgnoreError();
    }
    return map_file(file.fd.get(), 0, file.size);
}

absl::Status Store::remember_whole(const Digest & digest) const {
    const StoreFiles & files = core_->files;
    STRATA_ASSIGN_OR_RETURN(const OpenFile file, open_regular(files.blob(digest)));
    const std::optional<FileStamp> stamp = FileStamp::of(file);
    if (!stamp) return absl::UnavailableError("the file says nothing of itself");
    VerifiedBlobs whole;
    whole.insert(digest, *stamp);
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, files.lock_exclusive());
    return whole.merge_into(files, lock);
}

absl::StatusOr<std::vector<BlobProblem>>
StoreCore::verify(const std::optional<ModelName> & name, const VerifiedBlobs * known, const Progress & progress) const {
    Plan plan(*this);
    std::vector<Job> jobs;
    std::optional<Lease> lease; // what is being looked at must not be collected meanwhile
    {
        STRATA_ASSIGN_OR_RETURN(const StoreLock lock, files.lock_shared());
        STRATA_ASSIGN_OR_RETURN(const auto listed, read_index());
        const oci::Index & index = *listed;
        if (name) {
            const oci::Descriptor * entry = catalog::find(index, name->to_string());
            if (entry == nullptr) return no_such_model(*name, index);
            plan.add_entry(index, *entry, name->to_string());
        } else {
            for (const oci::Descriptor & entry : index.manifests) {
                const std::string_view ref = entry.annotation(oci::kAnnotationRefName);
                if (ref.starts_with("sha256-")) continue; // comes with its subject
                plan.add_entry(index, entry, ref.empty() ? entry.digest.to_string() : printable(ref));
            }
            STRATA_RETURN_IF_ERROR(for_each_entry(files.blobs(), [&plan](std::string_view file_name) {
                if (const auto digest = Digest::parse_hex(file_name); digest.ok()) plan.add_unowned(*digest);
                return absl::OkStatus();
            }));
        }
        jobs = plan.take_jobs();
        std::vector<Digest> digests;
        digests.reserve(jobs.size());
        for (const Job & job : jobs) digests.push_back(job.digest);
        // A full disk, which has no place for a lease, must not keep anybody from looking.
        if (auto held = Lease::State::create(files, "verify", lock); held.ok()) {
            (*held)->add(digests, lock).IgnoreError();
            lease = Lease(*std::move(held));
        }
    }
    if (known != nullptr) std::erase_if(jobs, [&](const Job & job) { return known->contains(files, job.digest); });

    Findings findings;
    STRATA_RETURN_IF_ERROR(check_blobs(files, jobs, progress, findings));
    if (const VerifiedBlobs * whole = findings.whole(); whole != nullptr) {
        // What can't be remembered (a full disk) is hashed again.
        if (const auto lock = files.lock_exclusive(); lock.ok()) whole->merge_into(files, *lock).IgnoreError();
    }
    std::vector<BlobProblem> problems = plan.take_problems();
    for (BlobProblem & problem : findings.take_problems()) problems.push_back(std::move(problem));
    std::sort(problems.begin(), problems.end(),
              [](const BlobProblem & a, const BlobProblem & b) { return a.sentence < b.sentence; });
    return problems;
}

} // namespace strata::layers
