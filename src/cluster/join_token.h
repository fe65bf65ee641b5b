#pragma once

#include "base/digest.h"
#include "base/status.h"

#include <string>
#include <string_view>

namespace strata::cluster {

// What lets a machine into a cluster, and tells it which cluster that is: "ID.SECRET.PIN", in hexadecimal digits.
struct JoinToken {
    static constexpr size_t kIdBytes = 4, kSecretBytes = 16;

    std::string id;     // names the token to people; no secret
    std::string secret; // the cluster knows its hash only
    Digest pin;         // of the CA's public key: whoever else answers is not the cluster

    static absl::StatusOr<JoinToken> parse(std::string_view text);
    std::string to_string() const;
};

} // namespace strata::cluster
