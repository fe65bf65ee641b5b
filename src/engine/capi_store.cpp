#include "engine/capi_handles.h"
#include "engine/transfer.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

using namespace strata::engine;

namespace {

constexpr size_t kMaxNameBytes = 4096; // far above a valid name, which its parser bounds

TransferProgress to_progress(strata_progress_fn progress, void * user) {
    if (progress == nullptr) return {};
    return [=](const char * phase, uint64_t done, uint64_t total) { return progress(phase, done, total, user); };
}

absl::StatusOr<std::string_view> optional_string(const char * text, std::string_view name) {
    if (text == nullptr) return std::string_view();
    return bounded_string(text, kMaxNameBytes, name);
}

} // namespace

strata_status strata_import(const char * store, const char * const * sources, size_t count, const char * name,
                            strata_progress_fn progress, void * user, char ** reference) {
    if (reference != nullptr) *reference = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(sources);
        if (count == 0 || count > kMaxSources) {
            return absl::InvalidArgumentError(
                fmt::format("{} sources; an import has from 1 to {}", count, kMaxSources));
        }
        std::vector<std::string> files;
        for (size_t i = 0; i < count; ++i) {
            STRATA_ASSIGN_OR_RETURN(const auto file, bounded_string(sources[i], kMaxPathBytes, "source"));
            files.emplace_back(file);
        }
        STRATA_ASSIGN_OR_RETURN(const auto root, to_path(store, "store"));
        STRATA_ASSIGN_OR_RETURN(const auto model_name, optional_string(name, "name"));
        STRATA_ASSIGN_OR_RETURN(const Imported imported,
                                import_model(root, files, model_name, to_progress(progress, user)));
        if (reference != nullptr)
            *reference = copy_string(fmt::format("{}@{}", imported.name, imported.manifest.to_string()));
        return absl::OkStatus();
    });
}

strata_status strata_pull(const char * store, const char * url, const char * name, strata_progress_fn progress,
                          void * user, char ** reference) {
    if (reference != nullptr) *reference = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(const auto address, bounded_string(url, kMaxPathBytes, "url"));
        STRATA_ASSIGN_OR_RETURN(const auto root, to_path(store, "store"));
        STRATA_ASSIGN_OR_RETURN(const auto model_name, optional_string(name, "name"));
        STRATA_ASSIGN_OR_RETURN(const Imported imported,
                                pull_model(root, address, model_name, to_progress(progress, user)));
        if (reference != nullptr)
            *reference = copy_string(fmt::format("{}@{}", imported.name, imported.manifest.to_string()));
        return absl::OkStatus();
    });
}

strata_status strata_verify(const char * store, const char * model, strata_progress_fn progress, void * user,
                            char ** problems_json) {
    if (problems_json != nullptr) *problems_json = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_ASSIGN_OR_RETURN(const auto root, to_path(store, "store"));
        STRATA_ASSIGN_OR_RETURN(const auto model_name, optional_string(model, "model"));
        STRATA_ASSIGN_OR_RETURN(const std::vector<std::string> problems,
                                verify_store(root, model_name, to_progress(progress, user)));
        if (problems_json != nullptr) {
            const nlohmann::json list = problems;
            *problems_json = copy_string(list.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
        }
        if (problems.empty()) return absl::OkStatus();
        return absl::DataLossError(
            fmt::format("{} of the stored blobs are not what they should be: {}", problems.size(), problems.front()));
    });
}
