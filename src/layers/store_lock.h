#pragma once

#include "base/status.h"
#include "base/unique_fd.h"

#include <filesystem>

namespace strata::layers {

// The lock of a store folder, between threads and processes: flock on a file, so that it ends with its holder's
// process. Shared: adds files, and uses files that must not go away meanwhile. Exclusive: removes files, or changes
// index.json. Functions that need a lock take a reference to it as the proof. Not recursive: a thread that holds one
// must not ask again.
class StoreLock {
public:
    enum class Mode { kShared, kExclusive };
    // Waits for at most limits::kLockWaitMs, then kUnavailable.
    static absl::StatusOr<StoreLock> take(const std::filesystem::path & file, Mode mode);

    Mode mode() const { return mode_; }

private:
    StoreLock(UniqueFd fd, Mode mode)
        : fd_(std::move(fd))
        , mode_(mode) {}

    UniqueFd fd_;
    Mode mode_;
};

} // namespace strata::layers
