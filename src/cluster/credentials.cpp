#include "cluster/credentials.h"

#include <grpcpp/security/tls_credentials_options.h>

namespace strata::cluster {

namespace {
constexpr unsigned kReloadSeconds = 60;
} // namespace

std::shared_ptr<grpc::experimental::CertificateProviderInterface>
certificate_provider(const std::filesystem::path & folder) {
    return std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(folder / "key.pem", folder / "cert.pem",
                                                                                folder / "ca.pem", kReloadSeconds);
}

std::shared_ptr<grpc::ChannelCredentials> channel_credentials(const std::filesystem::path & folder) {
    grpc::experimental::TlsChannelCredentialsOptions options;
    options.set_certificate_provider(certificate_provider(folder));
    options.watch_root_certs();
    options.watch_identity_key_cert_pairs();
    return grpc::experimental::TlsCredentials(options);
}

} // namespace strata::cluster
