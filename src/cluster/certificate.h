#pragma once

#include "base/digest.h"
#include "base/status.h"

#include <chrono>
#include <string>
#include <string_view>

// Certificates of a cluster: X.509 (RFC 5280) with ECDSA over P-256, everything in PEM.
namespace strata::cluster {

// Whom a certificate names. Of one node that was taken in twice, only the last admission counts.
struct Subject {
    std::string cluster = {};   // O
    std::string role = {};      // OU: "ca", "node"
    std::string name = {};      // CN
    std::string admission = {}; // serialNumber; empty for a CA
};

struct Validity {
    std::chrono::system_clock::time_point from;
    std::chrono::system_clock::time_point until;
};

// A certificate and its private key.
struct Identity {
    std::string certificate;
    std::string key;
};

struct CertificateFacts {
    Subject subject;
    Validity validity;
};

// The name that every node's certificate is good for as a TLS server: which node it is, is in the subject.
inline constexpr char kServerName[] = "node.strata";

// Whether a node may be called that: a label of DNS in lower case, 1 to 63 letters, digits and inner hyphens.
absl::Status check_node_name(std::string_view name);
// A node name that comes close to any text, a host's name for example.
std::string node_name_like(std::string_view text);

// A new private key.
absl::StatusOr<std::string> make_key();
// A signing request (PKCS #10) for the key. It names nobody: that is for the CA to decide.
absl::StatusOr<std::string> make_request(const std::string & key);

absl::StatusOr<Identity> make_ca(const Subject & subject, const Validity & validity);
// A node's certificate for whoever has the key of the request, which may come from anybody.
absl::StatusOr<std::string> issue(const Identity & ca, std::string_view request, const Subject & subject,
                                  const Validity & validity);

// Whether a certificate is the key's, and signed by the CA.
absl::Status check_identity(std::string_view ca, std::string_view certificate, std::string_view key);

// Of the first certificate in the text, whoever signed it.
absl::StatusOr<CertificateFacts> read_certificate(std::string_view certificate);
// SHA-256 of its public key (SubjectPublicKeyInfo), by which a CA is known before anything is trusted.
absl::StatusOr<Digest> pin_of(std::string_view certificate);

} // namespace strata::cluster
