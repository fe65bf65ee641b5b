#pragma once

#include "base/runtime.h"
#include "cluster/store.h"

#include <filesystem>
#include <memory>

namespace strata::cluster {

// A store in a SQLite file of this machine, for one process: whoever loses the machine loses it, so it can be backed
// up.
class SqliteStore : public Store {
public:
    static absl::StatusOr<std::unique_ptr<SqliteStore>> open(const std::filesystem::path & file, Runtime & runtime);
    // A copy as it is now, while the store is used.
    virtual absl::Status back_up(const std::filesystem::path & to) = 0;
};

} // namespace strata::cluster
