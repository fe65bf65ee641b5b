#pragma once

#include "base/digest.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "layers/file_lock.h"

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace strata::layers {

// What the hub states about the content of a file, and how a download is checked against it.
struct StatedContent {
    std::optional<Digest> sha256; // of large files
    std::string git_sha1;         // of the others: the hash of git's blob, 40 hex digits
    uint64_t size = 0;

    std::string id() const { return sha256.has_value() ? sha256->to_string() : "git:" + git_sha1; }
};

// Hashes a stream of bytes the way that the stated content was hashed.
class ContentHash {
public:
    explicit ContentHash(const StatedContent & stated);
    ~ContentHash();
    ContentHash(ContentHash &&) noexcept;
    ContentHash & operator=(ContentHash &&) noexcept;

    void update(std::span<const std::byte> data);
    std::string finish_hex();

private:
    struct Context;
    std::unique_ptr<Context> context_;
};

// A download that is under way: NAME.part in a folder, and NAME.state beside it, which says what the bytes belong to,
// so that a later call can go on. Locked between processes by NAME.lock. Not thread-safe.
class PartFile {
public:
    // Waits while another process downloads the same, asking `keep_going` meanwhile; kCancelled when that says no.
    static absl::StatusOr<PartFile> open(const std::filesystem::path & folder, const std::string & name,
                                         const std::function<bool()> & keep_going);

    // Keeps the bytes that an earlier call left when they belong to `stated`, else begins anew.
    absl::Status begin(const StatedContent & stated);
    absl::Status restart();
    // The validator of the response that the bytes come from; empty: they can't be resumed.
    const std::string & etag() const { return etag_; }
    absl::Status set_etag(const std::string & etag);
    absl::Status append(std::span<const std::byte> data);
    uint64_t size() const { return size_; }
    // Others wait while it lives.
    std::shared_ptr<const FileLock> lock() const { return lock_; }

    // Compares what was written with what was stated, and gives the file its name. kDataLoss when it is something else;
    // the part then is empty again.
    absl::StatusOr<std::filesystem::path> finish();
    // The finished file of an earlier call, when it is there and still what is stated.
    absl::StatusOr<std::optional<std::filesystem::path>> find_finished(const StatedContent & stated) const;

private:
    absl::Status save_state() const;
    std::filesystem::path part() const { return folder_ / (name_ + ".part"); }
    std::filesystem::path state() const { return folder_ / (name_ + ".state"); }
    std::filesystem::path finished() const { return folder_ / (name_ + ".gguf"); }

    std::filesystem::path folder_;
    std::string name_;
    std::shared_ptr<const FileLock> lock_;
    UniqueFd fd_;
    StatedContent stated_;
    std::string etag_;
    uint64_t size_ = 0;
    std::optional<ContentHash> hash_; // of the first size_ bytes, once begun
};

} // namespace strata::layers
