#pragma once

#include "cluster/store.h"

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace strata::cluster {

struct EtcdOptions {
    std::vector<std::string> endpoints; // "host:port" of the members
    std::filesystem::path tls;          // folder with ca.pem, cert.pem and key.pem; empty: without TLS
    std::string prefix;                 // of all keys, "strata/" for example, so that others may use the same etcd
    // With members of which none answers: they elect a leader, maybe.
    std::chrono::milliseconds patience{10'000};

    // "etcd://host:port,host:port/prefix"; the default prefix is "strata".
    static absl::StatusOr<EtcdOptions> parse(std::string_view url);
};

// A store in an etcd cluster (v3), which lives as long as the majority of its members. Whichever of them can be reached
// is used. Leases take whole seconds, etcd's shortest time at least.
absl::StatusOr<std::unique_ptr<Store>> open_etcd_store(const EtcdOptions & options);

} // namespace strata::cluster
