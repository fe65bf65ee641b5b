#include "engine/transfer.h"

#include "base/home.h"
#include "base/version.h"
#include "layers/hub.h"
#include "layers/import.h"
#include "layers/model_name.h"
#include "layers/store.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <thread>

namespace strata::engine {

namespace {

constexpr std::string_view kOciPrefix = "oci:";
constexpr unsigned kMaxImportThreads = 8; // more than any disk keeps busy

layers::Progress in_phase(const TransferProgress & progress, const char * phase) {
    if (!progress) return {};
    return [&progress, phase](uint64_t done, uint64_t total) { return progress(phase, done, total); };
}

std::filesystem::path or_default(const std::filesystem::path & store) {
    return store.empty() ? Home::find().store() : store;
}

// A name that was given must be valid; one that is made from a file always is.
absl::StatusOr<layers::ModelName> name_or(std::string_view given, std::string_view file) {
    return given.empty() ? absl::StatusOr<layers::ModelName>(layers::ModelName::from_file(file))
                         : layers::ModelName::parse(given);
}

absl::StatusOr<Imported> import_files(layers::Store & store, const std::vector<std::filesystem::path> & files,
                                      const layers::ModelName & name, layers::ImportOptions options,
                                      const TransferProgress & progress) {
    options.engine_build = STRATA_ENGINE_BUILD_STRING;
    options.threads = static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, kMaxImportThreads));
    options.progress = in_phase(progress, "importing");
    STRATA_ASSIGN_OR_RETURN(const Digest manifest, layers::import_gguf(store, files, name, options));
    return Imported{name.to_string(), manifest};
}

absl::StatusOr<Imported> import_layout(layers::Store & store, std::string_view source, std::string_view name,
                                       const TransferProgress & progress) {
    source.remove_prefix(kOciPrefix.size());
    const size_t colon = source.find(':');
    const std::string_view folder = source.substr(0, colon);
    const std::string_view reference = colon == std::string_view::npos ? "" : source.substr(colon + 1);
    if (folder.empty()) return absl::InvalidArgumentError("oci: names no folder; write oci:DIR or oci:DIR:REF");
    absl::StatusOr<layers::ModelName> model_name =
        name.empty() && !reference.empty() ? layers::ModelName::parse(reference) : name_or(name, folder);
    // A reference that is no name of ours still names a model; its text does for a file's name.
    if (!model_name.ok() && name.empty()) model_name = layers::ModelName::from_file(reference);
    STRATA_RETURN_IF_ERROR(model_name.status());
    STRATA_ASSIGN_OR_RETURN(const Digest manifest,
                            store.import_oci(std::filesystem::path(folder), reference, *model_name,
                                             in_phase(progress, "importing"), &layers::check_layer));
    return Imported{model_name->to_string(), manifest};
}

absl::StatusOr<std::vector<layers::HubFile>> download(const layers::HubUrl & url, const std::filesystem::path & folder,
                                                      const TransferProgress & progress) {
    layers::HubOptions options;
    options.progress = in_phase(progress, "downloading");
    std::vector<layers::HubFile> files;
    for (const layers::HubUrl & part : url.parts()) {
        STRATA_ASSIGN_OR_RETURN(layers::HubFile file, layers::hub_download(part, folder, options));
        files.push_back(std::move(file));
    }
    return files;
}

} // namespace

absl::StatusOr<Imported> import_model(const std::filesystem::path & store, const std::vector<std::string> & sources,
                                      std::string_view name, const TransferProgress & progress) {
    if (sources.empty()) return absl::InvalidArgumentError("there is nothing to import");
    const bool layout = sources.front().starts_with(kOciPrefix);
    if (layout && sources.size() > 1) return absl::InvalidArgumentError("an OCI layout is imported alone");
    STRATA_ASSIGN_OR_RETURN(const layers::ModelName model_name, name_or(name, sources.front()));
    STRATA_ASSIGN_OR_RETURN(const auto opened, layers::Store::open(or_default(store)));
    if (layout) return import_layout(*opened, sources.front(), name, progress);
    return import_files(*opened, {sources.begin(), sources.end()}, model_name, {}, progress);
}

absl::StatusOr<Imported> pull_model(const std::filesystem::path & store, std::string_view url, std::string_view name,
                                    const TransferProgress & progress) {
    STRATA_ASSIGN_OR_RETURN(const layers::HubUrl parsed, layers::HubUrl::parse(url));
    STRATA_ASSIGN_OR_RETURN(const layers::ModelName model_name, name_or(name, parsed.file));
    const auto root = or_default(store);
    STRATA_ASSIGN_OR_RETURN(const auto opened, layers::Store::open(root));
    STRATA_ASSIGN_OR_RETURN(const auto downloaded, download(parsed, root.parent_path() / "downloads", progress));
    layers::ImportOptions options;
    options.origin = parsed.to_string();
    if (downloaded.size() == 1) options.origin_sha256 = downloaded.front().sha256;
    std::vector<std::filesystem::path> files;
    for (const layers::HubFile & file : downloaded) files.push_back(file.path);
    STRATA_ASSIGN_OR_RETURN(Imported imported, import_files(*opened, files, model_name, options, progress));
    for (const auto & file : files) {
        std::error_code ignored; // the model is in; a file that stays is found again by the next pull
        std::filesystem::remove(file, ignored);
    }
    return imported;
}

absl::StatusOr<std::vector<std::string>> verify_store(const std::filesystem::path & store, std::string_view name,
                                                      const TransferProgress & progress) {
    std::optional<layers::ModelName> model_name;
    if (!name.empty()) {
        STRATA_ASSIGN_OR_RETURN(model_name, layers::ModelName::parse(name));
    }
    const auto root = or_default(store);
    std::error_code error;
    if (!std::filesystem::is_directory(root, error)) {
        return absl::NotFoundError(fmt::format("there is no layer store in {}", root.string()));
    }
    STRATA_ASSIGN_OR_RETURN(const auto opened, layers::Store::open(root));
    STRATA_ASSIGN_OR_RETURN(const auto problems, opened->verify(model_name, in_phase(progress, "verifying")));
    std::vector<std::string> sentences;
    for (const layers::BlobProblem & problem : problems) sentences.push_back(problem.sentence);
    return sentences;
}

} // namespace strata::engine
