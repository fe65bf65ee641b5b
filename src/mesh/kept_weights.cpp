#include "mesh/kept_weights.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

namespace strata::mesh {
namespace {

constexpr uint64_t kPageBytes = 4096;

} // namespace

absl::Status KeptWeights::add(const Digest & digest, std::span<const uint8_t> bytes) {
    if (places_.contains(digest)) return absl::OkStatus();
    if (!file_.valid()) {
        file_.reset(open(folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
        if (!file_.valid()) return errno_status(errno, "cannot make a file in", folder_);
    }
    uint64_t done = 0;
    while (done < bytes.size()) {
        const ssize_t n =
            pwrite(file_.get(), bytes.data() + done, bytes.size() - done, static_cast<off_t>(end_ + done));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno_status(errno, "cannot keep a weight in", folder_);
        done += static_cast<uint64_t>(n);
    }
    places_[digest] = {end_, bytes.size()};
    end_ += (bytes.size() + kPageBytes - 1) / kPageBytes * kPageBytes; // a mapping begins with a page
    return absl::OkStatus();
}

absl::StatusOr<MappedBytes> KeptWeights::get(const Digest & digest) const {
    const auto place = places_.find(digest);
    if (place == places_.end()) return absl::NotFoundError(fmt::format("weight {} was not kept", digest.to_string()));
    return map_file(file_.get(), place->second.offset, place->second.bytes);
}

} // namespace strata::mesh
