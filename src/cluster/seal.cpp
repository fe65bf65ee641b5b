#include "cluster/seal.h"

#include "base/unique_fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

namespace strata::cluster {

namespace {

constexpr size_t kNonceBytes = 12, kTagBytes = 16; // NIST SP 800-38D
constexpr std::string_view kForm = "aes-256-gcm:";

struct FreeCipher {
    void operator()(EVP_CIPHER_CTX * context) const { EVP_CIPHER_CTX_free(context); }
};
using Cipher = std::unique_ptr<EVP_CIPHER_CTX, FreeCipher>;

const unsigned char * bytes_of(std::string_view text) {
    return reinterpret_cast<const unsigned char *>(text.data());
}

std::string to_base64(const std::vector<unsigned char> & bytes) {
    std::string text(4 * ((bytes.size() + 2) / 3) + 1, '\0');
    const int size =
        EVP_EncodeBlock(reinterpret_cast<unsigned char *>(text.data()), bytes.data(), static_cast<int>(bytes.size()));
    text.resize(static_cast<size_t>(size));
    return text;
}

// Empty for what is not base64.
std::vector<unsigned char> from_base64(std::string_view text) {
    std::vector<unsigned char> bytes(3 * text.size() / 4 + 3);
    const int size = EVP_DecodeBlock(bytes.data(), bytes_of(text), static_cast<int>(text.size()));
    const size_t padding = text.ends_with("==") ? 2 : text.ends_with('=') ? 1 : 0;
    if (size < 0 || static_cast<size_t>(size) < padding) return {};
    bytes.resize(static_cast<size_t>(size) - padding);
    return bytes;
}

absl::Status not_ours() {
    return absl::DataLossError("a sealed text can't be opened: it was closed with another key, or was changed since");
}

} // namespace

absl::StatusOr<Seal> Seal::open(const std::filesystem::path & file) {
    std::array<uint8_t, kKeyBytes> key{};
    // Made under another name, so that a file that is there is whole.
    UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid() && errno == ENOENT) {
        const std::string unfinished = fmt::format("{}.{}", file.native(), ::getpid());
        {
            const UniqueFd out(::open(unfinished.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, S_IRUSR | S_IWUSR));
            if (!out.valid()) return errno_status(errno, "make", unfinished);
            if (RAND_bytes(key.data(), static_cast<int>(key.size())) != 1) {
                return absl::InternalError("there are no random numbers to be had");
            }
            if (::write(out.get(), key.data(), key.size()) != static_cast<ssize_t>(key.size()) ||
                ::fsync(out.get()) != 0) {
                return errno_status(errno, "write", unfinished);
            }
        }
        // The first one to make it wins.
        const bool linked = ::link(unfinished.c_str(), file.c_str()) == 0;
        const int error = errno;
        ::unlink(unfinished.c_str());
        if (!linked && error != EEXIST) return errno_status(error, "make", file.native());
        fd = UniqueFd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    }
    if (!fd.valid()) return errno_status(errno, "read", file.native());
    struct stat info {};
    if (::fstat(fd.get(), &info) != 0) return errno_status(errno, "read", file.native());
    if ((info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
        return absl::PermissionDeniedError(
            fmt::format("others than its owner have access to {0}: chmod 600 {0}", file.native()));
    }
    if (info.st_size != static_cast<off_t>(key.size()) ||
        ::read(fd.get(), key.data(), key.size()) != static_cast<ssize_t>(key.size())) {
        return absl::DataLossError(
            fmt::format("{} is not a key of {} bytes; put it back from a backup", file.native(), kKeyBytes));
    }
    return Seal(key);
}

absl::StatusOr<std::string> Seal::close(std::string_view text, std::string_view place) const {
    std::vector<unsigned char> out(kNonceBytes + text.size() + kTagBytes);
    unsigned char * const body = out.data() + kNonceBytes;
    const Cipher cipher(EVP_CIPHER_CTX_new());
    int size = 0;
    const bool done =
        cipher != nullptr && RAND_bytes(out.data(), kNonceBytes) == 1 &&
        EVP_EncryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, key_.data(), out.data()) == 1 &&
        EVP_EncryptUpdate(cipher.get(), nullptr, &size, bytes_of(place), static_cast<int>(place.size())) == 1 &&
        EVP_EncryptUpdate(cipher.get(), body, &size, bytes_of(text), static_cast<int>(text.size())) == 1 &&
        EVP_EncryptFinal_ex(cipher.get(), body + size, &size) == 1 &&
        EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_GET_TAG, kTagBytes, body + text.size()) == 1;
    if (!done) return absl::InternalError("cannot encrypt");
    return std::string(kForm) + to_base64(out);
}

absl::StatusOr<std::string> Seal::open(std::string_view sealed, std::string_view place) const {
    if (!sealed.starts_with(kForm)) return not_ours();
    std::vector<unsigned char> in = from_base64(sealed.substr(kForm.size()));
    if (in.size() < kNonceBytes + kTagBytes) return not_ours();
    const size_t length = in.size() - kNonceBytes - kTagBytes;
    unsigned char * const body = in.data() + kNonceBytes;
    std::string text(length, '\0');
    auto * const to = reinterpret_cast<unsigned char *>(text.data());
    const Cipher cipher(EVP_CIPHER_CTX_new());
    int size = 0;
    const bool done =
        cipher != nullptr &&
        EVP_DecryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, key_.data(), in.data()) == 1 &&
        EVP_DecryptUpdate(cipher.get(), nullptr, &size, bytes_of(place), static_cast<int>(place.size())) == 1 &&
        EVP_DecryptUpdate(cipher.get(), to, &size, body, static_cast<int>(length)) == 1 &&
        EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_SET_TAG, kTagBytes, body + length) == 1 &&
        EVP_DecryptFinal_ex(cipher.get(), to + size, &size) == 1;
    if (!done) return not_ours();
    return text;
}

} // namespace strata::cluster
