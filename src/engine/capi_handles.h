#pragma once

#include "engine/capi_common.h"
#include "engine/model.h"
#include "engine/session.h"

#include <memory>

// What the opaque handles of the C interface point to.
struct strata_model {
    std::shared_ptr<strata::engine::Model> model; // shared with its sessions
};

struct strata_session {
    std::unique_ptr<strata::engine::Session> session;
};

namespace strata::engine {

// `store` and `views` of an options struct; NULL and "" mean the default.
absl::StatusOr<SourceOptions> to_source_options(const char * store, const char * views);
absl::StatusOr<std::filesystem::path> to_path(const char * path, std::string_view name);

} // namespace strata::engine
