#pragma once

#include "base/status.h"
#include "cluster/certificate.h"

#include <filesystem>
#include <string>

namespace strata::cluster {

// A node's certificates on disk, as programs take them for TLS: ca.pem, cert.pem (and those between it and the CA),
// key.pem.
struct IdentityFiles {
    std::string ca;
    std::string certificate;
    std::string key;
};

// The folder that has them. It is a link to another one, replaced as a whole, so that whoever opens the files never
// finds a key beside another key's certificate.
class IdentityFolder {
public:
    explicit IdentityFolder(std::filesystem::path path)
        : path_(std::move(path)) {}

    const std::filesystem::path & path() const { return path_; }
    absl::Status write(const IdentityFiles & files) const;
    absl::StatusOr<IdentityFiles> read() const; // kNotFound
    absl::Status remove() const;

private:
    std::filesystem::path path_;
};

} // namespace strata::cluster
