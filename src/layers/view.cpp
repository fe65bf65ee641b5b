#include "layers/store_core.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::layers {

namespace {

// Folders that are being made, or taken apart, carry it; only under the exclusive lock, so what is found is left over.
constexpr std::string_view kUnfinished = ".unfinished-";
// Between the manifest's digest and which layers are hollow, in the name of a folder.
constexpr std::string_view kHollow = "-hollow-";
constexpr size_t kHollowTagDigits = 16;

// One file of a view: a link, or a hollow layer.
struct ViewFile {
    std::string name;
    std::filesystem::path target; // of a link; empty: hollow
    std::string header;
    uint64_t size = 0;
};

bool is_there(const std::filesystem::path & folder, const ViewFile & file) {
    const std::filesystem::path path = folder / file.name;
    if (!file.target.empty()) {
        std::error_code error;
        return std::filesystem::read_symlink(path, error) == file.target && !error;
    }
    const absl::StatusOr<OpenFile> opened = open_regular(path);
    if (!opened.ok() || opened->size != file.size) return false;
    const absl::StatusOr<std::string> header = read_first(*opened, path, file.header.size());
    return header.ok() && *header == file.header;
}

absl::Status make_hollow(Disk & disk, const std::filesystem::path & path, const ViewFile & file) {
    STRATA_ASSIGN_OR_RETURN(const UniqueFd fd, disk.create(path));
    STRATA_RETURN_IF_ERROR(
        disk.write(fd.get(), std::as_bytes(std::span(file.header.data(), file.header.size())), path));
    return disk.resize(fd.get(), file.size, path);
}

// The bytes of a layer before its first tensor.
absl::StatusOr<std::string> header_in_blob(const std::filesystem::path & blob, const LayerEntry & layer) {
    STRATA_ASSIGN_OR_RETURN(const OpenFile file, open_regular(blob));
    uint64_t length = file.size;
    for (const TensorEntry & tensor : layer.tensors) length = std::min(length, tensor.offset);
    return read_first(file, blob, length);
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

absl::StatusOr<std::filesystem::path> Store::materialise(const StoredModel & model, const std::filesystem::path & views,
                                                         const HollowLayers & hollow) const {
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

    std::string name = model.manifest.hex();
    if (!hollow.layers.empty()) {
        std::string which;
        for (const size_t layer : hollow.layers) which += fmt::format("{} ", layer);
        name += fmt::format("{}{}", kHollow, Digest::of(which).hex().substr(0, kHollowTagDigits));
    }
    const std::filesystem::path folder = real_views / name;
    std::vector<ViewFile> view;
    for (size_t i = 0; i < layers.size(); ++i) {
        ViewFile file{shard_file_name(i, layers.size()), {}, {}, layers[i].size};
        const std::optional<uint64_t> size = files.blob_size(layers[i].digest);
        if (hollow.layers.contains(i)) {
            auto header =
                size == layers[i].size ? header_in_blob(files.blob(layers[i].digest), layers[i]) : hollow.header(i);
            if (!header.ok()) return with_context(layer_label(layers[i]), header.status());
            file.header = *std::move(header);
        } else if (size != layers[i].size) {
            return absl::DataLossError(fmt::format(
                "{} of {}, the blob {}, {}; import or pull the model again", layer_label(layers[i]),
                model.name.to_string(), files.blob(layers[i].digest).native(),
                size ? fmt::format("has {} bytes instead of {}", *size, layers[i].size) : std::string("is missing")));
        } else {
            file.target = (real_blobs / layers[i].digest.hex()).lexically_relative(folder);
        }
        view.push_back(std::move(file));
    }

    const std::filesystem::path first = folder / view.front().name;
    const bool complete =
        std::all_of(view.begin(), view.end(), [&folder](const ViewFile & file) { return is_there(folder, file); });
    if (complete) return first;

    Disk & disk = files.disk();
    const auto unfinished = [&real_views] { return real_views / fmt::format("{}{}", kUnfinished, unique_file_name()); };
    const std::filesystem::path fresh = unfinished();
    const auto build = [&]() -> absl::Status {
        STRATA_RETURN_IF_ERROR(disk.make_folder(fresh));
        for (const ViewFile & file : view) {
            STRATA_RETURN_IF_ERROR(file.target.empty() ? make_hollow(disk, fresh / file.name, file)
                                                       : disk.symlink(file.target, fresh / file.name));
        }
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
        const absl::StatusOr<Digest> manifest = Digest::parse_hex(name.substr(0, name.find('-')));
        const bool dead = manifest.ok() ? !files.blob_size(*manifest) : name.starts_with(kUnfinished);
        return dead ? remove_folder(files.disk(), views / name) : absl::OkStatus();
    });
    return absl::IsNotFound(swept) ? absl::OkStatus() : swept; // no view was ever made
}

} // namespace strata::layers
