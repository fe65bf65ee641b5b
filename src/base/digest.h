#pragma once

#include "base/status.h"

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace strata {

// A SHA-256 digest: the name of a blob.
class Digest {
public:
    static constexpr size_t kBytes = 32;

    Digest() = default;
    explicit Digest(const std::array<uint8_t, kBytes> & bytes)
        : bytes_(bytes) {}

    // Takes exactly "sha256:" and 64 lower-case hexadecimal digits, so that a digest is always safe in a path.
    static absl::StatusOr<Digest> parse(std::string_view text);
    // The 64 digits alone.
    static absl::StatusOr<Digest> parse_hex(std::string_view hex);
    static Digest of(std::span<const std::byte> data);
    static Digest of(std::string_view data) { return of(std::as_bytes(std::span(data.data(), data.size()))); }

    std::string hex() const;
    std::string to_string() const; // "sha256:…"
    const std::array<uint8_t, kBytes> & bytes() const { return bytes_; }

    auto operator<=>(const Digest &) const = default;

    template <typename H>
    friend H AbslHashValue(H h, const Digest & digest) {
        return H::combine(std::move(h), digest.bytes_);
    }

private:
    std::array<uint8_t, kBytes> bytes_{};
};

// Hashes a stream of bytes. Not thread-safe.
class Sha256 {
public:
    Sha256();
    ~Sha256();
    Sha256(Sha256 &&) noexcept;
    Sha256 & operator=(Sha256 &&) noexcept;

    void update(std::span<const std::byte> data);
    void update(std::string_view data) { update(std::as_bytes(std::span(data.data(), data.size()))); }
    // The digest of all bytes so far; the hasher starts anew.
    Digest finish();

private:
    struct Context;
    std::unique_ptr<Context> context_;
};

} // namespace strata
