#include "layers/store_core.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::layers {

namespace {

// Folders that are being made, or taken apart, carry it; only under the exclusive lock, so what is found is left over.
constexpr std::string_view kUnfinished = ".unfinished-";

struct Link {
    std::string name;
    std::filesystem::path target;
};

bool has_link(const std::filesystem::path & folder, const Link & link) {
    std::error_code error;
    return std::filesystem::read_symlink(folder / link.name, error) == link.target && !error;
}

// A folder with files in it, not with folders. Never follows links.
absl::Status remove_folder(Disk & disk, const std::filesystem::path & folder) {
    STRATA_RETURN_IF_ERROR(for_each_entry(folder, [&](std::string_view name) { return disk.remove(folder / name); }));
    return disk.remove(folder);
}

absl::Status make_folders(Disk & disk, const std::filesystem::path & folder) {
    std::error_code error;
    if (std::filesystem::is_directory(folder, error)) return absl::OkStatus();
    if (folder.has_relative_path()) STRATA_RETURN_IF_ERROR(make_folders(disk, folder.parent_path()));
    const absl::Status made = disk.make_folder(folder);
    return absl::IsAlreadyExists(made) ? absl::OkStatus() : made;
}

} // namespace

absl::StatusOr<std::filesystem::path> Store::materialise(const StoredModel & model,
                                                         const std::filesystem::path & views) const {
    const StoreFiles & files = core_->files;
    const std::vector<LayerEntry> & layers = model.index->layers;
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, files.lock_exclusive());

    std::error_code error;
    const std::filesystem::path absolute = std::filesystem::absolute(views, error).lexically_normal();
    if (error) return errno_status(error.value(), "find the folder", views.native());
    STRATA_RETURN_IF_ERROR(make_folders(files.disk(), absolute));
    // Canonical, because a relative link that goes up starts from where a folder really is.
    const std::filesystem::path real_views = std::filesystem::canonical(absolute, error);
    if (error) return errno_status(error.value(), "find the folder", views.native());
    const std::filesystem::path real_blobs = std::filesystem::canonical(files.blobs(), error);
    if (error) return errno_status(error.value(), "find the folder", files.blobs().native());

    const std::filesystem::path folder = real_views / model.manifest.hex();
    std::vector<Link> links;
    for (size_t i = 0; i < layers.size(); ++i) {
        const std::optional<uint64_t> size = files.blob_size(layers[i].digest);
        if (size != layers[i].size) {
            return absl::DataLossError(fmt::format(
                "{} of {}, the blob {}, {}; import or pull the model again", layer_label(layers[i]),
                model.name.to_string(), files.blob(layers[i].digest).native(),
                size ? fmt::format("has {} bytes instead of {}", *size, layers[i].size) : std::string("is missing")));
        }
        links.push_back(
            {shard_file_name(i, layers.size()), (real_blobs / layers[i].digest.hex()).lexically_relative(folder)});
    }

    const std::filesystem::path first = folder / links.front().name;
    const bool complete =
        std::all_of(links.begin(), links.end(), [&folder](const Link & link) { return has_link(folder, link); });
    if (complete) return first;

    Disk & disk = files.disk();
    const auto unfinished = [&real_views] { return real_views / fmt::format("{}{}", kUnfinished, unique_file_name()); };
    const std::filesystem::path fresh = unfinished();
    const auto build = [&]() -> absl::Status {
        STRATA_RETURN_IF_ERROR(disk.make_folder(fresh));
        for (const Link & link : links) STRATA_RETURN_IF_ERROR(disk.symlink(link.target, fresh / link.name));
        if (std::filesystem::is_directory(std::filesystem::symlink_status(folder, error))) {
            const std::filesystem::path old = unfinished();
            STRATA_RETURN_IF_ERROR(disk.rename(folder, old));
            STRATA_RETURN_IF_ERROR(remove_folder(disk, old));
        }
        return disk.rename(fresh, folder);
    };
    if (absl::Status built = build(); !built.ok()) {
        remove_folder(disk, fresh).IgnoreError(); // remove_dead_views() finds what stays
        return built;
    }
    return first;
}

absl::Status StoreCore::remove_dead_views(const std::filesystem::path & views, const StoreLock &) const {
    const absl::Status swept = for_each_entry(views, [&](std::string_view name) {
        const absl::StatusOr<Digest> manifest = Digest::parse_hex(name);
        const bool dead = manifest.ok() ? !files.blob_size(*manifest) : name.starts_with(kUnfinished);
        return dead ? remove_folder(files.disk(), views / name) : absl::OkStatus();
    });
    return absl::IsNotFound(swept) ? absl::OkStatus() : swept; // no view was ever made
}

} // namespace strata::layers
