#include "base/text.h"
#include "layers/store_core.h"

#include <fmt/format.h>
#include <sys/file.h>

#include <cerrno>

namespace strata::layers {

Lease::Lease(std::unique_ptr<State> state)
    : state_(std::move(state)) {}
Lease::Lease(Lease &&) noexcept = default;
Lease & Lease::operator=(Lease &&) noexcept = default;
Lease::~Lease() = default;

Lease::State::~State() {
    files.disk().remove(path).IgnoreError();
} // garbage collection finds what stays

absl::StatusOr<std::unique_ptr<Lease::State>> Lease::State::create(const StoreFiles & files, std::string_view holder,
                                                                   const StoreLock &) {
    const std::filesystem::path path = files.leases() / unique_file_name();
    STRATA_ASSIGN_OR_RETURN(UniqueFd fd, files.disk().create(path));
    auto state = std::make_unique<State>(files, std::move(fd), path);
    if (::flock(state->fd.get(), LOCK_EX | LOCK_NB) != 0) return errno_status(errno, "lock", path.native());
    const std::string title = fmt::format("# {}\n", printable(holder));
    STRATA_RETURN_IF_ERROR(
        files.disk().write(state->fd.get(), std::as_bytes(std::span(title.data(), title.size())), path));
    return state;
}

absl::Status Lease::State::add(const std::vector<Digest> & digests, const StoreLock &) {
    std::string lines;
    // A write that failed may have left half a line; the line break in front keeps it from spoiling this one.
    for (const Digest & digest : digests) lines += fmt::format("\n{}", digest.to_string());
    lines += "\n";
    // Not synced: a lease does not outlive its process.
    const std::lock_guard guard(mutex);
    return files.disk().write(fd.get(), std::as_bytes(std::span(lines.data(), lines.size())), path);
}

absl::Status Lease::add(const std::vector<Digest> & digests) {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, state_->files.lock_shared());
    for (const Digest & digest : digests) {
        if (!state_->files.blob_size(digest)) {
            return absl::NotFoundError(fmt::format("the blob {} is not in the store {}; import or pull its model again",
                                                   digest.to_string(), state_->files.root().native()));
        }
    }
    return state_->add(digests, lock);
}

absl::StatusOr<Lease> StoreCore::lease(std::string_view holder) const {
    STRATA_ASSIGN_OR_RETURN(const StoreLock lock, files.lock_shared());
    STRATA_ASSIGN_OR_RETURN(auto state, Lease::State::create(files, holder, lock));
    return Lease(std::move(state));
}

absl::StatusOr<Lease> Store::lease(std::string_view holder, const std::vector<Digest> & digests) {
    STRATA_ASSIGN_OR_RETURN(Lease lease, core_->lease(holder));
    STRATA_RETURN_IF_ERROR(lease.add(digests));
    return lease;
}

} // namespace strata::layers
