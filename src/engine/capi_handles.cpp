#include "engine/capi_handles.h"

namespace strata::engine {

absl::StatusOr<std::filesystem::path> to_path(const char * path, std::string_view name) {
    if (path == nullptr) return std::filesystem::path();
    STRATA_ASSIGN_OR_RETURN(const std::string_view text, bounded_string(path, kMaxPathBytes, name));
    return std::filesystem::path(text);
}

absl::StatusOr<SourceOptions> to_source_options(const char * store, const char * views) {
    SourceOptions options;
    STRATA_ASSIGN_OR_RETURN(options.store, to_path(store, "store"));
    STRATA_ASSIGN_OR_RETURN(options.views, to_path(views, "views"));
    return options;
}

} // namespace strata::engine
