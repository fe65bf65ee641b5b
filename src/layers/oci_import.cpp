#include "base/clock.h"
#include "base/text.h"
#include "layers/catalog.h"
#include "layers/limits.h"
#include "layers/store_core.h"

#include <fmt/format.h>

namespace strata::layers {

namespace {

absl::StatusOr<oci::Descriptor> pick_manifest(const oci::Index & index, std::string_view reference,
                                              const std::filesystem::path & layout) {
    std::vector<std::string> known;
    std::optional<oci::Descriptor> picked;
    size_t matches = 0;
    for (const oci::Descriptor & entry : index.manifests) {
        if (entry.media_type != oci::kMediaManifest) continue; // lists of referrers and of platforms are no models
        const std::string_view name = entry.annotation(oci::kAnnotationRefName);
        known.push_back(name.empty() ? entry.digest.to_string() : printable(name));
        if (!reference.empty() && reference != name && reference != entry.digest.to_string()) continue;
        if (!picked || picked->digest != entry.digest) ++matches;
        picked = entry;
    }
    if (matches == 1) return *std::move(picked);
    if (known.empty())
        return absl::NotFoundError(fmt::format("there is no model in the OCI layout {}", layout.native()));
    if (known.size() > 20) known.resize(20);
    return absl::NotFoundError(fmt::format("{} in the OCI layout {}; name one of: {}",
                                           reference.empty() ? "there are several models"
                                                             : "there is no single \"" + printable(reference) + "\"",
                                           layout.native(), fmt::join(known, ", ")));
}

// strata names files by their place, whatever the manifest says; but it keeps the manifest as it is, and other tools
// that read it from the store would write a layer to a wrong or to any other file.
absl::Status check_file_names(const oci::Manifest & manifest, const ModelIndex & index, std::string_view what) {
    size_t layer = 0;
    for (const oci::Descriptor & blob : manifest.layers) {
        if (blob.media_type != oci::kMediaWeight) continue;
        const std::string expected = shard_file_name(layer++, index.layers.size());
        const std::string_view given = blob.annotation(oci::kAnnotationFilePath);
        if (given == expected) continue;
        return absl::InvalidArgumentError(
            fmt::format("{} calls its layer {} \"{}\" instead of {}; import the model's GGUF file instead", what,
                        layer - 1, printable(given), expected));
    }
    return absl::OkStatus();
}

// Copies a model's blobs, all of which the target keeps by `lease` afterwards.
class Copier {
public:
    Copier(const StoreCore & from, const StoreCore & to, Lease & lease, uint64_t total, const Progress & progress)
        : from_(from)
        , to_(to)
        , lease_(lease)
        , total_(total)
        , progress_(progress) {}

    absl::Status copy(const Digest & digest, uint64_t size) {
        if (to_.files.is_whole(digest, size) && lease_.add({digest}).ok()) return advance(size);
        const std::filesystem::path path = from_.files.blob(digest);
        STRATA_ASSIGN_OR_RETURN(const OpenFile file, open_regular(path));
        if (file.size != size) {
            return absl::DataLossError(
                fmt::format("{} has {} bytes where its manifest says {}", path.native(), file.size, size));
        }
        STRATA_ASSIGN_OR_RETURN(BlobWriter writer, to_.new_blob(&lease_));
        STRATA_RETURN_IF_ERROR(read_range(file, path, 0, size, [&](std::span<const std::byte> piece) {
            STRATA_RETURN_IF_ERROR(writer.append(piece));
            return advance(piece.size());
        }));
        copied_.push_back(digest);
        if (absl::Status finished = writer.finish(digest).status(); !finished.ok()) {
            return with_context(path.native(), finished);
        }
        return absl::OkStatus();
    }

    const std::vector<Digest> & copied() const { return copied_; }

private:
    absl::Status advance(uint64_t bytes) {
        done_ += bytes;
        return !progress_ || progress_(done_, total_) ? absl::OkStatus()
                                                      : absl::CancelledError("the import was cancelled");
    }

    const StoreCore & from_;
    const StoreCore & to_;
    Lease & lease_;
    uint64_t total_;
    uint64_t done_ = 0;
    const Progress & progress_;
    std::vector<Digest> copied_;
};

} // namespace

absl::StatusOr<Digest> Store::import_oci(const std::filesystem::path & layout, std::string_view reference,
                                         const ModelName & name, const Progress & progress, const LayerCheck & check) {
    // Only read: a layout that is not a store has neither lock nor leases.
    const StoreCore source(layout, core_->files.disk());
    if (!open_regular(source.files.root() / "oci-layout").ok()) {
        return absl::NotFoundError(
            fmt::format("{} is not an OCI image layout: it has no file oci-layout", layout.native()));
    }
    STRATA_ASSIGN_OR_RETURN(const auto index, source.index_file.read());
    STRATA_ASSIGN_OR_RETURN(oci::Descriptor manifest, pick_manifest(*index, reference, layout));
    const std::string what = fmt::format("{} in {}", manifest.digest.to_string(), layout.native());

    const auto loaded = source.load_model(manifest);
    if (!loaded.ok()) return with_context(what, loaded.status());
    const LoadedModel & model = **loaded;
    STRATA_ASSIGN_OR_RETURN(const std::string text, source.read_document(manifest, limits::kManifestBytes));
    STRATA_ASSIGN_OR_RETURN(const oci::Manifest parsed, oci::parse_manifest(text, what));
    STRATA_RETURN_IF_ERROR(check_file_names(parsed, *model.index, what));

    std::vector<Digest> copied;
    const auto copy = [&]() -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(Lease lease, core_->lease("import of " + name.to_string()));
        Copier copier(source, *core_, lease, model.size, progress);
        const auto copy_all = [&]() -> absl::Status {
            STRATA_RETURN_IF_ERROR(copier.copy(manifest.digest, manifest.size));
            STRATA_RETURN_IF_ERROR(copier.copy(parsed.config.digest, parsed.config.size));
            for (const oci::Descriptor & layer : parsed.layers) {
                STRATA_RETURN_IF_ERROR(copier.copy(layer.digest, layer.size));
            }
            return absl::OkStatus();
        };
        const absl::Status done = copy_all();
        copied = copier.copied();
        STRATA_RETURN_IF_ERROR(done);
        // Every layer, copied now or not: one that a killed import has left was perhaps never looked at.
        for (const LayerEntry & layer : model.index->layers) {
            if (check) STRATA_RETURN_IF_ERROR(check(layer, core_->files.blob(layer.digest)));
        }
        const oci::Descriptor * referrers = catalog::find(*index, oci::referrers_tag(manifest.digest));
        std::optional<Lineage> lineage = source.load_lineage(referrers, manifest.digest);
        if (!lineage) {
            lineage.emplace();
            lineage->operation = "import";
            lineage->origin =
                fmt::format("oci:{}{}{}", layout.native(), reference.empty() ? "" : ":", printable(reference));
            lineage->created_unix_ms = unix_ms(Clock::real().wall());
        }
        oci::Descriptor named = manifest;
        named.annotations.clear(); // the other layout's name among them
        named.artifact_type = oci::kArtifactModel;
        return core_->name_manifest(name, std::move(named), model, *lineage, lease);
    };
    if (absl::Status done = copy(); !done.ok()) {
        discard(copied).IgnoreError(); // garbage collection finds what stays
        return done;
    }
    return manifest.digest;
}

} // namespace strata::layers
