#include "base/digest.h"

#include "base/check.h"
#include "base/text.h"

#include <fmt/format.h>
#include <openssl/evp.h>

namespace strata {

namespace {
constexpr std::string_view kPrefix = "sha256:";
} // namespace

absl::StatusOr<Digest> Digest::parse(std::string_view text) {
    if (!text.starts_with(kPrefix)) {
        return absl::InvalidArgumentError(
            fmt::format("\"{}\" is not a digest: it must begin with sha256:", printable(text)));
    }
    return parse_hex(text.substr(kPrefix.size()));
}

absl::StatusOr<Digest> Digest::parse_hex(std::string_view hex) {
    const auto value_of = [](char c) {
        return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    };
    Digest digest;
    bool valid = hex.size() == 2 * kBytes;
    for (size_t i = 0; valid && i < kBytes; ++i) {
        const int high = value_of(hex[2 * i]);
        const int low = value_of(hex[2 * i + 1]);
        valid = high >= 0 && low >= 0;
        digest.bytes_[i] = static_cast<uint8_t>(high << 4 | low);
    }
    if (!valid) {
        return absl::InvalidArgumentError(
            fmt::format("\"{}\" is not a SHA-256 digest of 64 lower-case hex digits", printable(hex)));
    }
    return digest;
}

Digest Digest::of(std::span<const std::byte> data) {
    Sha256 hasher;
    hasher.update(data);
    return hasher.finish();
}

std::string Digest::hex() const {
    return fmt::format("{:02x}", fmt::join(bytes_, ""));
}

std::string Digest::to_string() const {
    return std::string(kPrefix) + hex();
}

struct Sha256::Context {
    EVP_MD_CTX * evp = EVP_MD_CTX_new();

    Context() { start(); }
    ~Context() { EVP_MD_CTX_free(evp); }
    Context(const Context &) = delete;
    Context & operator=(const Context &) = delete;

    void start() { STRATA_CHECK(evp != nullptr && EVP_DigestInit_ex(evp, EVP_sha256(), nullptr) == 1); }
};

Sha256::Sha256()
    : context_(std::make_unique<Context>()) {}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256 &&) noexcept = default;
Sha256 & Sha256::operator=(Sha256 &&) noexcept = default;

void Sha256::update(std::span<const std::byte> data) {
    STRATA_CHECK(EVP_DigestUpdate(context_->evp, data.data(), data.size()) == 1);
}

Digest Sha256::finish() {
    std::array<uint8_t, Digest::kBytes> bytes{};
    STRATA_CHECK(EVP_DigestFinal_ex(context_->evp, bytes.data(), nullptr) == 1);
    context_->start();
    return Digest(bytes);
}

} // namespace strata
