#include "base/text.h"
#include "layers/catalog.h"
#include "layers/limits.h"
#include "layers/store_core.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <chrono>

namespace strata::layers {

namespace {

// Marks what a descriptor of index.json reaches: the blob itself, and what a manifest or index refers to. A manifest's
// subject is not followed: a signature does not keep the model that it is about.
absl::Status mark(const StoreCore & state, const oci::Descriptor & descriptor, size_t depth,
                  std::set<Digest> & marked) {
    if (!marked.insert(descriptor.digest).second) return absl::OkStatus();
    const bool is_index = descriptor.media_type == oci::kMediaIndex;
    if (!is_index && descriptor.media_type != oci::kMediaManifest) {
        if (depth > 0) return absl::OkStatus();
        return absl::InvalidArgumentError(
            fmt::format("strata does not know the type \"{}\"", printable(descriptor.media_type)));
    }
    if (depth >= limits::kManifestDepth) {
        return absl::InvalidArgumentError("indexes are nested too deeply");
    }
    const std::string what = fmt::format("the manifest {}", descriptor.digest.to_string());
    STRATA_ASSIGN_OR_RETURN(const std::string text, state.read_document(descriptor, limits::kManifestBytes));
    if (is_index) {
        STRATA_ASSIGN_OR_RETURN(const oci::Index index, oci::parse_index(text, what));
        for (const oci::Descriptor & entry : index.manifests) {
            STRATA_RETURN_IF_ERROR(mark(state, entry, depth + 1, marked));
        }
        return absl::OkStatus();
    }
    STRATA_ASSIGN_OR_RETURN(const oci::Manifest manifest, oci::parse_manifest(text, what));
    marked.insert(manifest.config.digest);
    for (const oci::Descriptor & layer : manifest.layers) marked.insert(layer.digest);
    return absl::OkStatus();
}

// Whether the process that holds the lock of a file under tmp/ or leases/ is gone. Needs the exclusive store lock:
// files get their lock under the shared one.
bool is_abandoned(const std::filesystem::path & path, UniqueFd & fd) {
    fd.reset(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    return fd.valid() && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0;
}

absl::Status read_lease(const std::filesystem::path & path, std::set<Digest> & marked) {
    absl::StatusOr<std::string> text = read_regular(path, limits::kLeaseBytes);
    if (absl::IsNotFound(text.status())) return absl::OkStatus(); // given back just now
    STRATA_RETURN_IF_ERROR(text.status());
    std::string_view rest = *text;
    while (!rest.empty()) {
        const std::string_view line = rest.substr(0, rest.find('\n'));
        rest.remove_prefix(std::min(rest.size(), line.size() + 1));
        // Anything else is the holder's name, or what a write that failed has left: its add() failed as well.
        if (const absl::StatusOr<Digest> digest = Digest::parse(line); digest.ok()) marked.insert(*digest);
    }
    return absl::OkStatus();
}

// Removes files under tmp/ whose writers are gone.
absl::Status sweep_temporary(const StoreFiles & files, bool dry_run, GcResult & result) {
    return for_each_entry(files.temporary(), [&](std::string_view name) {
        const std::filesystem::path path = files.temporary() / name;
        UniqueFd lock;
        if (!is_abandoned(path, lock)) return absl::OkStatus();
        struct stat info {};
        if (::fstat(lock.get(), &info) == 0) result.freed_bytes += info.st_size;
        return dry_run ? absl::OkStatus() : files.disk().remove(path);
    });
}

bool is_young(const struct stat & info, std::chrono::milliseconds grace) {
    using namespace std::chrono;
    const auto changed = seconds(info.st_mtim.tv_sec) + nanoseconds(info.st_mtim.tv_nsec);
    return system_clock::now().time_since_epoch() - changed < grace; // the future is young, too
}

absl::Status sweep_blobs(const StoreFiles & files, const std::set<Digest> & marked, const GcOptions & options,
                         GcResult & result) {
    return for_each_entry(files.blobs(), [&](std::string_view name) {
        const absl::StatusOr<Digest> digest = Digest::parse_hex(name);
        struct stat info {};
        // What is no blob was not put there by strata, and is left alone.
        if (!digest.ok() || ::lstat(files.blob(*digest).c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
            return absl::OkStatus();
        }
        if (marked.contains(*digest) || is_young(info, options.grace)) {
            ++result.kept_blobs;
            return absl::OkStatus();
        }
        if (!options.dry_run) STRATA_RETURN_IF_ERROR(files.disk().remove(files.blob(*digest)));
        ++result.removed_blobs;
        result.freed_bytes += info.st_size;
        return absl::OkStatus();
    });
}

} // namespace

absl::StatusOr<std::set<Digest>> StoreCore::reachable(const StoreLock &) const {
    std::set<Digest> marked;
    STRATA_ASSIGN_OR_RETURN(const auto index, read_index());
    for (const oci::Descriptor & entry : index->manifests) {
        const absl::Status status = mark(*this, entry, 0, marked);
        if (status.ok()) continue;
        const std::string_view name = entry.annotation(oci::kAnnotationRefName);
        // Referrers are extras; that they can't be read must not keep the store from being cleaned.
        if (entry.media_type == oci::kMediaIndex && name.starts_with("sha256-")) continue;
        return absl::FailedPreconditionError(fmt::format(
            "nothing was removed, since it can't be known what the model {} needs ({}); remove that model, or "
            "import or pull it again",
            printable(name), message_of(status)));
    }
    STRATA_RETURN_IF_ERROR(for_each_entry(files.leases(), [&](std::string_view name) {
        const std::filesystem::path path = files.leases() / name;
        UniqueFd lock;
        return is_abandoned(path, lock) ? files.disk().remove(path) : read_lease(path, marked);
    }));
    return marked;
}

absl::StatusOr<GcResult> Store::collect_garbage(const GcOptions & options) {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, core_->files.lock_exclusive());
    STRATA_ASSIGN_OR_RETURN(const std::set<Digest> marked, core_->reachable(lock));
    GcResult result;
    STRATA_RETURN_IF_ERROR(sweep_temporary(core_->files, options.dry_run, result));
    STRATA_RETURN_IF_ERROR(sweep_blobs(core_->files, marked, options, result));
    if (!options.views.empty() && !options.dry_run) {
        STRATA_RETURN_IF_ERROR(core_->remove_dead_views(options.views, lock));
    }
    return result;
}

absl::Status Store::discard(const std::vector<Digest> & digests) {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, core_->files.lock_exclusive());
    STRATA_ASSIGN_OR_RETURN(const std::set<Digest> marked, core_->reachable(lock));
    for (const Digest & digest : digests) {
        if (marked.contains(digest) || !core_->files.blob_size(digest)) continue;
        STRATA_RETURN_IF_ERROR(core_->files.disk().remove(core_->files.blob(digest)));
    }
    return absl::OkStatus();
}

absl::StatusOr<uint64_t> Store::size_bytes() const {
    uint64_t bytes = 0;
    STRATA_RETURN_IF_ERROR(for_each_entry(core_->files.blobs(), [&](std::string_view name) {
        if (const absl::StatusOr<Digest> digest = Digest::parse_hex(name); digest.ok()) {
            bytes += core_->files.blob_size(*digest).value_or(0);
        }
        return absl::OkStatus();
    }));
    return bytes;
}

} // namespace strata::layers
