#include "cluster/first_contact.h"

#include "base/unique_fd.h"
#include "cluster/certificate.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <memory>

namespace strata::cluster {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

struct FreeContext {
    void operator()(SSL_CTX * context) const { SSL_CTX_free(context); }
};
struct FreeSsl {
    void operator()(SSL * ssl) const { SSL_free(ssl); }
};
struct FreeAddresses {
    void operator()(addrinfo * addresses) const { freeaddrinfo(addresses); }
};

// gRPC's servers want it.
constexpr std::array<unsigned char, 3> kHttp2 = {2, 'h', '2'};

// Until the socket is ready; false: the time is over.
bool wait_for(int fd, int16_t events, steady_clock::time_point until) {
    while (true) {
        const auto left = std::chrono::duration_cast<milliseconds>(until - steady_clock::now()).count();
        pollfd ready{fd, events, 0};
        const int found = left <= 0 ? 0 : ::poll(&ready, 1, static_cast<int>(left));
        if (found >= 0 || errno != EINTR) return found > 0;
    }
}

absl::StatusOr<UniqueFd> connect_to(const Address & where, steady_clock::time_point until) {
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo * found = nullptr;
    const int error = getaddrinfo(where.host.c_str(), std::to_string(where.port).c_str(), &hints, &found);
    if (error != 0) return absl::UnavailableError(fmt::format("cannot find {}: {}", where.host, gai_strerror(error)));
    const std::unique_ptr<addrinfo, FreeAddresses> addresses(found);
    int reason = ETIMEDOUT;
    int left = 0;
    for (const addrinfo * address = found; address != nullptr; address = address->ai_next) ++left;
    for (const addrinfo * address = found; address != nullptr; address = address->ai_next) {
        UniqueFd fd(::socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        if (!fd.valid()) continue;
        if (::connect(fd.get(), address->ai_addr, address->ai_addrlen) != 0) {
            reason = errno;
            if (reason != EINPROGRESS) continue;
            // One that swallows everything leaves time for the others.
            const auto share = (until - steady_clock::now()) / left--;
            if (!wait_for(fd.get(), POLLOUT, steady_clock::now() + share)) {
                reason = ETIMEDOUT;
                continue;
            }
            socklen_t size = sizeof(reason);
            ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &reason, &size);
            if (reason != 0) continue;
        }
        return fd;
    }
    return errno_status(reason, "reach", where.to_string());
}

absl::StatusOr<std::string> own_address(int fd) {
    sockaddr_storage own{};
    socklen_t length = sizeof(own);
    std::array<char, NI_MAXHOST> host{};
    if (::getsockname(fd, reinterpret_cast<sockaddr *>(&own), &length) != 0 ||
        ::getnameinfo(reinterpret_cast<sockaddr *>(&own), length, host.data(), host.size(), nullptr, 0,
                      NI_NUMERICHOST) != 0) {
        return absl::InternalError("cannot tell the own address of a connection");
    }
    return std::string(host.data());
}

std::string to_pem(X509 * certificate) {
    BIO * bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509(bio, certificate);
    char * data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    std::string text(data, static_cast<size_t>(size));
    BIO_free(bio);
    return text;
}

} // namespace

absl::StatusOr<FirstContact> fetch_ca(const Address & address, const Digest & pin, milliseconds timeout) {
    const auto until = steady_clock::now() + timeout;
    const std::string peer = address.to_string();
    STRATA_ASSIGN_OR_RETURN(const UniqueFd fd, connect_to(address, until));
    FirstContact contact;
    STRATA_ASSIGN_OR_RETURN(contact.own_address, own_address(fd.get()));

    ERR_clear_error();
    const std::unique_ptr<SSL_CTX, FreeContext> context(SSL_CTX_new(TLS_client_method()));
    const std::unique_ptr<SSL, FreeSsl> ssl(context == nullptr ? nullptr : SSL_new(context.get()));
    if (ssl == nullptr || SSL_set_fd(ssl.get(), fd.get()) != 1) return absl::InternalError("cannot use TLS");
    SSL_set_min_proto_version(ssl.get(), TLS1_2_VERSION);
    SSL_set_alpn_protos(ssl.get(), kHttp2.data(), kHttp2.size());
    SSL_set_verify(ssl.get(), SSL_VERIFY_NONE, nullptr); // the pin decides, below
    while (true) {
        const int result = SSL_connect(ssl.get());
        if (result == 1) break;
        const int error = SSL_get_error(ssl.get(), result);
        if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
            return absl::UnavailableError(fmt::format("{} answers, but not as a node of a cluster does", peer));
        }
        if (!wait_for(fd.get(), error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, until)) {
            return absl::UnavailableError(fmt::format("{} takes the connection, but says nothing", peer));
        }
    }
    const STACK_OF(X509) * chain = SSL_get_peer_cert_chain(ssl.get());
    for (int i = 0; i < sk_X509_num(chain); ++i) {
        std::string certificate = to_pem(sk_X509_value(chain, i));
        const auto found = pin_of(certificate);
        if (!found.ok() || *found != pin) continue;
        contact.ca_certificate = std::move(certificate);
        return contact;
    }
    return absl::UnauthenticatedError(fmt::format(
        "{} is not a node of the cluster that the token is for: a token belongs to the cluster that printed it", peer));
}

} // namespace strata::cluster
