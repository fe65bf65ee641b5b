#pragma once

#include "base/address.h"
#include "base/digest.h"
#include "base/status.h"

#include <chrono>
#include <string>

namespace strata::cluster {

struct FirstContact {
    std::string ca_certificate; // PEM; its key is the pinned one
    std::string own_address;    // of this machine, on the way there, without a port
};

// Asks a node for its cluster's CA, of which only the hash of its key is known yet. Nothing is told to whoever answers.
// kUnauthenticated: it is not that cluster. Waits for the network.
absl::StatusOr<FirstContact> fetch_ca(const Address & address, const Digest & pin, std::chrono::milliseconds timeout);

} // namespace strata::cluster
