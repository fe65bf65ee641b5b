#include "layers/hub_part.h"

#include "base/check.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <utility>
#include <vector>

namespace strata::layers {

namespace {

constexpr size_t kReadBytes = 1u << 20;

// Feeds the first `size` bytes of a file to the hash.
absl::Status hash_file(int fd, const std::filesystem::path & path, uint64_t size, ContentHash & hash) {
    std::vector<std::byte> buffer(kReadBytes);
    for (uint64_t done = 0; done < size;) {
        const size_t want = std::min<uint64_t>(buffer.size(), size - done);
        const ssize_t got = ::pread(fd, buffer.data(), want, static_cast<off_t>(done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno_status(errno, "read", path.native());
        if (got == 0) return absl::DataLossError(fmt::format("{} has become shorter", path.native()));
        hash.update(std::span(buffer).first(static_cast<size_t>(got)));
        done += static_cast<uint64_t>(got);
    }
    return absl::OkStatus();
}

std::string expected_hex(const StatedContent & stated) {
    return stated.sha256.has_value() ? stated.sha256->hex() : stated.git_sha1;
}

absl::StatusOr<uint64_t> file_size(int fd, const std::filesystem::path & path) {
    struct stat info = {};
    if (::fstat(fd, &info) != 0) return errno_status(errno, "look at", path.native());
    if (!S_ISREG(info.st_mode))
        return absl::FailedPreconditionError(fmt::format("{} is not a regular file", path.native()));
    return static_cast<uint64_t>(info.st_size);
}

} // namespace

struct ContentHash::Context {
    EVP_MD_CTX * evp = EVP_MD_CTX_new();
    ~Context() { EVP_MD_CTX_free(evp); }
};

ContentHash::ContentHash(const StatedContent & stated)
    : context_(std::make_unique<Context>()) {
    const EVP_MD * kind = stated.sha256.has_value() ? EVP_sha256() : EVP_sha1();
    STRATA_CHECK(context_->evp != nullptr && EVP_DigestInit_ex(context_->evp, kind, nullptr) == 1);
    if (!stated.sha256.has_value()) {
        const std::string prefix = fmt::format("blob {}", stated.size);
        update(std::as_bytes(std::span(prefix.c_str(), prefix.size() + 1))); // git's form, with the zero
    }
}
ContentHash::~ContentHash() = default;
ContentHash::ContentHash(ContentHash &&) noexcept = default;
ContentHash & ContentHash::operator=(ContentHash &&) noexcept = default;

void ContentHash::update(std::span<const std::byte> data) {
    STRATA_CHECK(EVP_DigestUpdate(context_->evp, data.data(), data.size()) == 1);
}

std::string ContentHash::finish_hex() {
    std::array<uint8_t, EVP_MAX_MD_SIZE> bytes{};
    unsigned size = 0;
    STRATA_CHECK(EVP_DigestFinal_ex(context_->evp, bytes.data(), &size) == 1);
    return fmt::format("{:02x}", fmt::join(bytes.begin(), bytes.begin() + size, ""));
}

absl::StatusOr<PartFile> PartFile::open(const std::filesystem::path & folder, const std::string & name,
                                        const std::function<bool()> & keep_going) {
    STRATA_ASSIGN_OR_RETURN(FileLock lock, FileLock::take(folder / (name + ".lock"), keep_going));
    PartFile file;
    file.folder_ = folder;
    file.name_ = name;
    file.lock_ = std::make_shared<const FileLock>(std::move(lock));
    const std::filesystem::path path = file.part();
    file.fd_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (!file.fd_.valid()) return errno_status(errno, "open", path.native());
    return file;
}

absl::Status PartFile::begin(const StatedContent & stated) {
    if (hash_.has_value() && stated.id() == stated_.id()) return absl::OkStatus();
    stated_ = stated;
    STRATA_ASSIGN_OR_RETURN(size_, file_size(fd_.get(), part()));
    std::string id;
    std::ifstream in(state());
    std::getline(in, id);
    std::getline(in, etag_);
    if (id != stated.id() || size_ > stated.size || etag_.empty()) return restart();
    hash_.emplace(stated_);
    return hash_file(fd_.get(), part(), size_, *hash_);
}

absl::Status PartFile::restart() {
    if (::ftruncate(fd_.get(), 0) != 0) return errno_status(errno, "empty", part().native());
    size_ = 0;
    hash_.emplace(stated_);
    return set_etag("");
}

absl::Status PartFile::set_etag(const std::string & etag) {
    etag_ = etag;
    return save_state();
}

absl::Status PartFile::save_state() const {
    std::ofstream out(state(), std::ios::trunc);
    out << stated_.id() << '\n' << etag_ << '\n';
    out.close();
    return out ? absl::OkStatus() : errno_status(errno, "write", state().native());
}

absl::Status PartFile::append(std::span<const std::byte> data) {
    STRATA_CHECK(hash_.has_value());
    hash_->update(data);
    while (!data.empty()) {
        const ssize_t written = ::pwrite(fd_.get(), data.data(), data.size(), static_cast<off_t>(size_));
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) {
            hash_.reset(); // it is ahead of the file now
            return errno_status(errno, "write", part().native());
        }
        size_ += static_cast<uint64_t>(written);
        data = data.subspan(static_cast<size_t>(written));
    }
    return absl::OkStatus();
}

absl::StatusOr<std::filesystem::path> PartFile::finish() {
    STRATA_CHECK(hash_.has_value() && size_ == stated_.size);
    const std::string hex = hash_->finish_hex();
    if (hex != expected_hex(stated_)) {
        STRATA_RETURN_IF_ERROR(restart());
        return absl::DataLossError(
            fmt::format("what was downloaded has the hash {} instead of {}, which the hub states; it was "
                        "thrown away",
                        hex, expected_hex(stated_)));
    }
    if (::rename(part().c_str(), finished().c_str()) != 0)
        return errno_status(errno, "rename a file to", finished().native());
    std::error_code ignored; // a state without its part is of no consequence
    std::filesystem::remove(state(), ignored);
    return finished();
}

absl::StatusOr<std::optional<std::filesystem::path>> PartFile::find_finished(const StatedContent & stated) const {
    const UniqueFd fd(::open(finished().c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd.valid()) {
        return errno == ENOENT ? absl::StatusOr<std::optional<std::filesystem::path>>(std::nullopt)
                               : errno_status(errno, "open", finished().native());
    }
    STRATA_ASSIGN_OR_RETURN(const uint64_t size, file_size(fd.get(), finished()));
    if (size != stated.size) return std::nullopt;
    ContentHash hash(stated);
    STRATA_RETURN_IF_ERROR(hash_file(fd.get(), finished(), size, hash));
    if (hash.finish_hex() != expected_hex(stated)) return std::nullopt;
    // The empty part was made for the lock only.
    std::error_code ignored;
    if (size_ == 0) std::filesystem::remove(part(), ignored);
    return finished();
}

} // namespace strata::layers
