#include "layers/faulty_disk.h"

#include "layers/store_testing.h"

#include <fmt/format.h>

#include <cerrno>

namespace strata::layers::testing {

namespace fs = std::filesystem;

int FaultyDisk::operations() const {
    const std::lock_guard lock(mutex_);
    return operations_;
}

bool FaultyDisk::struck() const {
    return fault_ != Fault::kNone && operations() >= at_;
}

absl::Status FaultyDisk::step(const fs::path & path, bool needs_space) {
    const std::lock_guard lock(mutex_);
    ++operations_;
    switch (fault_) {
    case Fault::kNone:
        return absl::OkStatus();
    case Fault::kKill:
    case Fault::kPowerCut:
        return operations_ < at_ ? absl::OkStatus() : absl::AbortedError("killed");
    case Fault::kFull:
        return operations_ == at_ && needs_space ? errno_status(ENOSPC, "write", path.native()) : absl::OkStatus();
    }
    return absl::OkStatus();
}

absl::StatusOr<UniqueFd> FaultyDisk::create(const fs::path & path) {
    STRATA_RETURN_IF_ERROR(step(path, true));
    const std::lock_guard lock(mutex_);
    unsynced_.insert(path);
    return real().create(path);
}

absl::Status FaultyDisk::write(int fd, std::span<const std::byte> data, const fs::path & path) {
    const bool was_struck = struck();
    if (absl::Status failed = step(path, true); !failed.ok()) {
        if (!was_struck) real().write(fd, data.first(data.size() / 2), path).IgnoreError();
        return failed;
    }
    const std::lock_guard lock(mutex_);
    unsynced_.insert(path);
    return real().write(fd, data, path);
}

absl::Status FaultyDisk::sync(int fd, const fs::path & path) {
    STRATA_RETURN_IF_ERROR(step(path, true));
    const std::lock_guard lock(mutex_);
    unsynced_.erase(path);
    return real().sync(fd, path);
}

absl::Status FaultyDisk::sync_folder(const fs::path & path) {
    STRATA_RETURN_IF_ERROR(step(path, true));
    const std::lock_guard lock(mutex_);
    std::erase_if(pending_, [&path](const Rename & rename) { return rename.to.parent_path() == path; });
    return real().sync_folder(path);
}

absl::Status FaultyDisk::rename(const fs::path & from, const fs::path & to) {
    STRATA_RETURN_IF_ERROR(step(to, true));
    const std::lock_guard lock(mutex_);
    if (unsynced_.erase(from) > 0) unsynced_.insert(to);
    if (fs::is_regular_file(from)) {
        Rename rename{from, to, std::nullopt};
        if (fs::exists(to)) rename.replaced = read_file(to);
        pending_.push_back(std::move(rename));
    }
    return real().rename(from, to);
}

absl::Status FaultyDisk::remove(const fs::path & path) {
    STRATA_RETURN_IF_ERROR(step(path, false));
    const std::lock_guard lock(mutex_);
    unsynced_.erase(path);
    // A removal is taken as done at once: what else it could have been is a file that garbage collection finds again.
    std::erase_if(pending_, [&path](const Rename & rename) { return rename.to == path; });
    return real().remove(path);
}

absl::Status FaultyDisk::make_folder(const fs::path & path) {
    STRATA_RETURN_IF_ERROR(step(path, true));
    return real().make_folder(path);
}

absl::Status FaultyDisk::touch(const fs::path & path) {
    STRATA_RETURN_IF_ERROR(step(path, false));
    return real().touch(path);
}

absl::Status FaultyDisk::resize(int fd, uint64_t size, const fs::path & path) {
    STRATA_RETURN_IF_ERROR(step(path, true));
    return real().resize(fd, size, path);
}

absl::Status FaultyDisk::symlink(const fs::path & target, const fs::path & link) {
    STRATA_RETURN_IF_ERROR(step(link, true));
    return real().symlink(target, link);
}

void FaultyDisk::power_cut() {
    const std::lock_guard lock(mutex_);
    for (const fs::path & path : unsynced_) {
        if (fs::is_regular_file(path)) write_file(path, "");
    }
    for (auto rename = pending_.rbegin(); rename != pending_.rend(); ++rename) {
        if (!fs::exists(rename->to)) continue;
        fs::rename(rename->to, rename->from);
        if (rename->replaced) write_file(rename->to, *rename->replaced);
    }
    pending_.clear();
    unsynced_.clear();
}

} // namespace strata::layers::testing
