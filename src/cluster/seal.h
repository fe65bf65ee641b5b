#pragma once

#include "base/status.h"

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace strata::cluster {

// Encrypts what may be read by others where it is kept: AES-256-GCM with a key that is kept apart from it. Immutable.
class Seal {
public:
    static constexpr size_t kKeyBytes = 32;

    // Reads the key's file; makes one that only its owner may read when there is none.
    static absl::StatusOr<Seal> open(const std::filesystem::path & file);
    explicit Seal(const std::array<uint8_t, kKeyBytes> & key)
        : key_(key) {}

    // `place` is where the text is kept; it can't be opened as the text of another place.
    absl::StatusOr<std::string> close(std::string_view text, std::string_view place) const;
    // kDataLoss: it was closed with another key or for another place, or was changed since.
    absl::StatusOr<std::string> open(std::string_view sealed, std::string_view place) const;

private:
    std::array<uint8_t, kKeyBytes> key_;
};

} // namespace strata::cluster
