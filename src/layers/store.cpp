#include "layers/catalog.h"
#include "layers/limits.h"
#include "layers/store_core.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::layers {

namespace {

constexpr size_t kNamesInError = 20;

std::string manifest_label(const oci::Descriptor & manifest) {
    return fmt::format("the manifest {}", manifest.digest.to_string());
}

StoredModel to_stored(ModelName name, const Digest & manifest, const LoadedModel & model) {
    StoredModel stored;
    stored.name = std::move(name);
    stored.manifest = manifest;
    stored.size = model.size;
    stored.blobs = model.blobs;
    stored.index = model.index;
    return stored;
}

// Control characters (a file's name may have them) would be refused when the lineage is read again.
Lineage readable(Lineage lineage) {
    const auto clean = [](std::string & text, size_t limit) {
        std::replace_if(
            text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
        if (text.size() > limit) text.resize(limit);
    };
    clean(lineage.operation, limits::kWordBytes);
    clean(lineage.origin, limits::kOriginBytes / 3); // a byte that is not UTF-8 becomes three
    clean(lineage.engine_build, limits::kWordBytes);
    return lineage;
}

} // namespace

absl::Status no_such_model(const ModelName & name, const oci::Index & index) {
    std::vector<std::string> known;
    for (const ModelName & other : catalog::names(index)) known.push_back(other.to_string());
    if (known.empty()) {
        return absl::NotFoundError(
            fmt::format("there is no model {}; the store is empty: import or pull one", name.to_string()));
    }
    const size_t shown = std::min(known.size(), kNamesInError);
    return absl::NotFoundError(
        fmt::format("there is no model {}; there are {}{}", name.to_string(),
                    fmt::join(known.begin(), known.begin() + static_cast<ptrdiff_t>(shown), ", "),
                    shown < known.size() ? ", ..." : ""));
}

std::string message_of(const absl::Status & status) {
    return std::string(status.message().data(), status.message().size());
}

absl::Status with_context(std::string_view sentence, const absl::Status & status) {
    return {status.code(), fmt::format("{}: {}", sentence, message_of(status))};
}

std::map<Digest, std::vector<ModelName>> models_by_layer(const std::vector<StoredModel> & models) {
    std::map<Digest, std::vector<ModelName>> users;
    for (const StoredModel & model : models) {
        for (const LayerEntry & layer : model.index->layers) {
            std::vector<ModelName> & names = users[layer.digest];
            if (names.empty() || names.back() != model.name) names.push_back(model.name);
        }
    }
    return users;
}

Store::Store(std::unique_ptr<StoreCore> core)
    : core_(std::move(core)) {}
Store::~Store() = default;

absl::StatusOr<std::unique_ptr<Store>> Store::open(const std::filesystem::path & root, Disk & disk) {
    std::error_code error;
    const std::filesystem::path absolute = std::filesystem::absolute(root, error).lexically_normal();
    if (error) return errno_status(error.value(), "find the store", root.native());
    auto core = std::make_unique<StoreCore>(absolute, disk);
    STRATA_RETURN_IF_ERROR(core->files.create());
    return std::unique_ptr<Store>(new Store(std::move(core)));
}

const std::filesystem::path & Store::root() const {
    return core_->files.root();
}
std::filesystem::path Store::blob_path(const Digest & digest) const {
    return core_->files.blob(digest);
}
bool Store::has(const Digest & digest) const {
    return core_->files.blob_size(digest).has_value();
}

absl::StatusOr<BlobWriter> Store::new_blob(Lease * lease) {
    return core_->new_blob(lease);
}

absl::StatusOr<Digest> Store::put(std::string_view bytes, Lease * lease) {
    STRATA_RETURN_IF_ERROR(core_->put_all({bytes}, lease));
    return Digest::of(bytes);
}

absl::StatusOr<std::string> Store::get(const Digest & digest, uint64_t limit) const {
    return core_->files.read_blob(digest, limit);
}

absl::StatusOr<std::shared_ptr<const oci::Index>> StoreCore::read_index() const {
    auto index = index_file.read();
    if (!absl::IsInvalidArgument(index.status()) && !absl::IsNotFound(index.status())) return index;
    return absl::DataLossError(fmt::format(
        "the list of models is damaged ({}): put a backup of {} back, or move it away and import the models again "
        "(layers that are still in the store are not written twice)",
        message_of(index.status()), files.index().native()));
}

absl::StatusOr<std::string> StoreCore::read_document(const oci::Descriptor & descriptor, uint64_t limit) const {
    STRATA_ASSIGN_OR_RETURN(std::string text, files.read_blob(descriptor.digest, limit));
    if (text.size() != descriptor.size) {
        return absl::DataLossError(fmt::format("the blob {} has {} bytes where {} were announced",
                                               descriptor.digest.to_string(), text.size(), descriptor.size));
    }
    return text;
}

absl::StatusOr<std::shared_ptr<const LoadedModel>> StoreCore::load_model(const oci::Descriptor & descriptor) const {
    if (std::shared_ptr<const LoadedModel> cached = cache.find(descriptor.digest)) return cached;

    const std::string what = manifest_label(descriptor);
    STRATA_ASSIGN_OR_RETURN(const std::string text, read_document(descriptor, limits::kManifestBytes));
    STRATA_ASSIGN_OR_RETURN(const oci::Manifest manifest, oci::parse_manifest(text, what));
    STRATA_ASSIGN_OR_RETURN(const oci::Descriptor index_layer, find_index_layer(manifest, what));
    STRATA_ASSIGN_OR_RETURN(const std::string index_text, read_document(index_layer, limits::kModelIndexBytes));
    STRATA_ASSIGN_OR_RETURN(
        ModelIndex index,
        parse_model_index(index_text, fmt::format("the tensor index {}", index_layer.digest.to_string())));
    STRATA_RETURN_IF_ERROR(check_same_layers(manifest, index, what));

    auto model = std::make_shared<LoadedModel>();
    std::set<Digest> seen;
    const auto add = [&model, &seen](const oci::Descriptor & blob) {
        if (!seen.insert(blob.digest).second) return;
        model->blobs.push_back(blob.digest);
        model->size += blob.size;
    };
    add(descriptor);
    add(manifest.config);
    add(index_layer);
    for (const oci::Descriptor & layer : manifest.layers) add(layer);
    model->index = std::make_shared<const ModelIndex>(std::move(index));
    cache.insert(descriptor.digest, model);
    return model;
}

std::optional<Lineage> StoreCore::load_lineage(const oci::Descriptor * referrers, const Digest & manifest) const {
    if (referrers == nullptr) return std::nullopt;
    if (std::optional<Lineage> cached = cache.find_lineage(referrers->digest)) return cached;

    const auto read = [&]() -> absl::StatusOr<Lineage> {
        STRATA_ASSIGN_OR_RETURN(const std::string text, read_document(*referrers, limits::kManifestBytes));
        STRATA_ASSIGN_OR_RETURN(const oci::Index index, oci::parse_index(text, "referrers"));
        for (const oci::Descriptor & referrer : index.manifests) {
            // The type in the list is a hint, which tools that copy lists may drop.
            if (referrer.media_type != oci::kMediaManifest) continue;
            if (!referrer.artifact_type.empty() && referrer.artifact_type != oci::kArtifactLineage) continue;
            STRATA_ASSIGN_OR_RETURN(const std::string own_text, read_document(referrer, limits::kManifestBytes));
            STRATA_ASSIGN_OR_RETURN(const oci::Manifest own, oci::parse_manifest(own_text, "lineage manifest"));
            if (own.artifact_type != oci::kArtifactLineage || !own.subject || own.subject->digest != manifest ||
                own.layers.size() != 1)
                continue;
            STRATA_ASSIGN_OR_RETURN(const std::string lineage, read_document(own.layers[0], limits::kLineageBytes));
            return parse_lineage(lineage, "lineage");
        }
        return absl::NotFoundError("no lineage among the referrers");
    };
    absl::StatusOr<Lineage> lineage = read();
    if (!lineage.ok()) return std::nullopt;
    cache.insert_lineage(referrers->digest, *lineage);
    return *std::move(lineage);
}

absl::StatusOr<std::vector<StoredModel>> Store::list() const {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, core_->files.lock_shared());
    STRATA_ASSIGN_OR_RETURN(const auto index, core_->read_index());
    const auto entries = catalog::by_ref_name(*index);
    const auto entry_of = [&entries](const std::string & ref_name) {
        const auto found = entries.find(ref_name);
        return found == entries.end() ? nullptr : found->second;
    };
    std::vector<StoredModel> models;
    for (ModelName & name : catalog::names(*index)) {
        const oci::Descriptor & entry = *entry_of(name.to_string());
        const auto loaded = core_->load_model(entry);
        if (!loaded.ok()) continue;
        models.push_back(to_stored(std::move(name), entry.digest, **loaded));
        models.back().lineage = core_->load_lineage(entry_of(oci::referrers_tag(entry.digest)), entry.digest);
    }
    return models;
}

absl::StatusOr<StoredModel> Store::find(const ModelName & name) const {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, core_->files.lock_shared());
    STRATA_ASSIGN_OR_RETURN(const auto index, core_->read_index());
    const oci::Descriptor * entry = catalog::find(*index, name.to_string());
    if (entry == nullptr) return no_such_model(name, *index);
    const auto loaded = core_->load_model(*entry);
    if (absl::IsNotFound(loaded.status())) {
        // There is such a model; a caller must not take it for one that was never there.
        return with_context(fmt::format("model {} is damaged, import or pull it again", name.to_string()),
                            absl::DataLossError(message_of(loaded.status())));
    }
    if (!loaded.ok()) return with_context(fmt::format("model {}", name.to_string()), loaded.status());
    StoredModel model = to_stored(name, entry->digest, **loaded);
    const oci::Descriptor * referrers = catalog::find(*index, oci::referrers_tag(entry->digest));
    model.lineage = core_->load_lineage(referrers, entry->digest);
    return model;
}

absl::Status Store::remove(const ModelName & name) {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, core_->files.lock_exclusive());
    STRATA_ASSIGN_OR_RETURN(const auto before, core_->read_index());
    oci::Index index = *before;
    if (!catalog::remove(index, name)) return no_such_model(name, index);
    return core_->files.replace_index(oci::to_json(index), lock);
}

absl::StatusOr<Digest> Store::commit_model(const ModelName & name, const ModelIndex & index, const Lineage & lineage) {
    const std::string index_text = model_index_to_json(index);
    // Read back, so that nothing is ever written that can't be read.
    STRATA_ASSIGN_OR_RETURN(ModelIndex read_back,
                            parse_model_index(index_text, fmt::format("the index of {}", name.to_string())));
    if (index_text.size() > limits::kModelIndexBytes) {
        return absl::ResourceExhaustedError(fmt::format("the tensor index of {} is too large", name.to_string()));
    }

    STRATA_ASSIGN_OR_RETURN(Lease lease, core_->lease("making " + name.to_string()));
    const oci::Descriptor index_layer = oci::describe(index_text, oci::kMediaWeightConfig);
    const std::string config_text = model_config_json(read_back, index_layer.digest);
    const oci::Descriptor config = oci::describe(config_text, oci::kMediaModelConfig);
    const std::string manifest_text = oci::to_json(make_model_manifest(read_back, config, index_layer));
    oci::Descriptor manifest = oci::describe(manifest_text, oci::kMediaManifest);
    manifest.artifact_type = oci::kArtifactModel;
    STRATA_RETURN_IF_ERROR(core_->put_all({index_text, config_text, manifest_text}, &lease));

    LoadedModel model;
    model.index = std::make_shared<const ModelIndex>(std::move(read_back));
    STRATA_RETURN_IF_ERROR(core_->name_manifest(name, manifest, model, lineage, lease));
    return manifest.digest;
}

absl::Status StoreCore::name_manifest(const ModelName & name, oci::Descriptor manifest, const LoadedModel & model,
                                      const Lineage & lineage, Lease & lease) const {
    oci::Manifest lineage_manifest;
    lineage_manifest.artifact_type = oci::kArtifactLineage;
    lineage_manifest.config = oci::describe(oci::kEmptyJson, oci::kMediaEmpty);
    const std::string lineage_text = lineage_to_json(readable(lineage));
    lineage_manifest.layers.push_back(oci::describe(lineage_text, oci::kArtifactLineage));
    lineage_manifest.subject = manifest;
    const std::string referrer_text = oci::to_json(lineage_manifest);
    oci::Descriptor referrer = oci::describe(referrer_text, oci::kMediaManifest);
    referrer.artifact_type = oci::kArtifactLineage;
    STRATA_RETURN_IF_ERROR(put_all({oci::kEmptyJson, lineage_text, referrer_text}, &lease));

    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, files.lock_exclusive());
    for (const LayerEntry & layer : model.index->layers) {
        const std::optional<uint64_t> size = files.blob_size(layer.digest);
        if (size != layer.size) {
            return absl::FailedPreconditionError(
                fmt::format("{} of {}, blob {}, {}", layer_label(layer), name.to_string(), layer.digest.to_string(),
                            size ? fmt::format("has {} bytes instead of {}", *size, layer.size)
                                 : std::string("is not in the store; was it removed while the model was made?")));
        }
    }
    STRATA_ASSIGN_OR_RETURN(const auto before, read_index());
    oci::Index index = *before;

    // The newest lineage replaces an older one; what others have attached to the manifest stays.
    oci::Index referrers;
    if (const oci::Descriptor * tag = catalog::find(index, oci::referrers_tag(manifest.digest)); tag != nullptr) {
        const absl::StatusOr<std::string> text = read_document(*tag, limits::kManifestBytes);
        absl::StatusOr<oci::Index> known = text.ok() ? oci::parse_index(*text, "referrers") : text.status();
        if (known.ok()) referrers = *std::move(known);
    }
    std::erase_if(referrers.manifests,
                  [](const oci::Descriptor & other) { return other.artifact_type == oci::kArtifactLineage; });
    referrers.manifests.insert(referrers.manifests.begin(), std::move(referrer));
    const std::string referrers_text = oci::to_json(referrers);
    STRATA_RETURN_IF_ERROR(put_locked(referrers_text, lease, lock));

    catalog::set(index, name, std::move(manifest), oci::describe(referrers_text, oci::kMediaIndex));
    if (index.manifests.size() > limits::kModels) {
        return absl::ResourceExhaustedError(
            fmt::format("the store has {} names already; remove some", limits::kModels));
    }
    return files.replace_index(oci::to_json(index), lock);
}

} // namespace strata::layers
