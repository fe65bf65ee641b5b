#pragma once

#include "layers/disk.h"

#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace strata::layers::testing {

// The real disk until operation number N, where a fault happens; N counts from 1. A fault in a write leaves half of it.
// Thread-safe.
class FaultyDisk final : public Disk {
public:
    enum class Fault {
        kNone,     // counts only
        kKill,     // the process ends: this operation and all after it fail and do nothing
        kPowerCut, // as kKill; power_cut() then takes away what was not synced
        kFull,     // this operation, when it is one that needs space, fails with ENOSPC; those after it work
    };

    FaultyDisk(Fault fault, int at_operation)
        : fault_(fault)
        , at_(at_operation) {}

    // Operations so far.
    int operations() const;
    // The fault has happened.
    bool struck() const;

    // What a disk may keep of all this when the power goes: files that were not synced are empty, and renames in
    // folders that were not synced have not happened. Call it after everything that writes is gone.
    void power_cut();

    absl::StatusOr<UniqueFd> create(const std::filesystem::path & path) override;
    absl::Status write(int fd, std::span<const std::byte> data, const std::filesystem::path & path) override;
    absl::Status sync(int fd, const std::filesystem::path & path) override;
    absl::Status sync_folder(const std::filesystem::path & path) override;
    absl::Status rename(const std::filesystem::path & from, const std::filesystem::path & to) override;
    absl::Status remove(const std::filesystem::path & path) override;
    absl::Status make_folder(const std::filesystem::path & path) override;
    absl::Status touch(const std::filesystem::path & path) override;
    absl::Status resize(int fd, uint64_t size, const std::filesystem::path & path) override;
    absl::Status symlink(const std::filesystem::path & target, const std::filesystem::path & link) override;

private:
    struct Rename {
        std::filesystem::path from;
        std::filesystem::path to;
        std::optional<std::string> replaced; // the bytes of what `to` was
    };

    // Counts an operation; an error when it must fail.
    absl::Status step(const std::filesystem::path & path, bool needs_space);

    const Fault fault_;
    const int at_;
    mutable std::mutex mutex_;
    int operations_ = 0;
    std::set<std::filesystem::path> unsynced_;
    std::vector<Rename> pending_;
};

} // namespace strata::layers::testing
