#pragma once

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>

#include <filesystem>
#include <memory>

namespace strata::cluster {

// What gRPC takes for TLS, from a folder with ca.pem, cert.pem and key.pem. Files that are replaced are used within a
// minute.
std::shared_ptr<grpc::experimental::CertificateProviderInterface>
certificate_provider(const std::filesystem::path & folder);
// Of a client that shows its certificate and takes servers whose certificate the CA has signed.
std::shared_ptr<grpc::ChannelCredentials> channel_credentials(const std::filesystem::path & folder);

} // namespace strata::cluster
