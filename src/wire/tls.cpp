#include "wire/tls.h"

#include "base/check.h"
#include "base/text.h"
#include "base/unique_fd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

namespace strata::wire {
namespace {

constexpr size_t kRecordBytes = SSL3_RT_MAX_PLAIN_LENGTH;
// Encrypted under the lock, and sent, at once.
constexpr size_t kBatchBytes = 8 * kRecordBytes;
constexpr size_t kArrivedBytes = size_t{128} << 10;
// AES-GCM allows 2^24.5 records for a key (RFC 8446, 5.5). A new one is cheap.
constexpr size_t kRecordsPerKey = 1 << 16;

std::string reason(unsigned long error) {
    const char * text = ERR_reason_error_string(error);
    return text == nullptr ? "no reason given" : text;
}

std::string day_of(const ASN1_TIME * time) {
    tm parts{};
    if (ASN1_TIME_to_tm(time, &parts) != 1) return "?";
    return fmt::format("{:04}-{:02}-{:02} {:02}:{:02} UTC", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                       parts.tm_hour, parts.tm_min);
}

std::string name_of(const X509 * certificate) {
    const std::unique_ptr<BIO, decltype(&BIO_free)> text(BIO_new(BIO_s_mem()), BIO_free);
    X509_NAME_print_ex(text.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
    char * data = nullptr;
    const long size = BIO_get_mem_data(text.get(), &data);
    return printable({data, static_cast<size_t>(size)});
}

// What is wrong with a certificate: "certificate of CN=node has expired (…)".
std::string complaint(X509_STORE_CTX * check) {
    const int error = X509_STORE_CTX_get_error(check);
    const X509 * certificate = X509_STORE_CTX_get_current_cert(check);
    if (certificate == nullptr) return fmt::format("certificate: {}", X509_verify_cert_error_string(error));
    const std::string what = fmt::format("certificate of {}", name_of(certificate));
    switch (error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return fmt::format("{} has expired ({})", what, day_of(X509_get0_notAfter(certificate)));
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return fmt::format("{} is not valid before {}", what, day_of(X509_get0_notBefore(certificate)));
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        return fmt::format("{} was not signed by the CA in ca.pem", what);
    default:
        return fmt::format("{}: {}", what, X509_verify_cert_error_string(error));
    }
}

absl::Status check_file(const std::filesystem::path & path, bool secret) {
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    struct stat info {};
    if (!fd.valid() || fstat(fd.get(), &info) != 0) {
        const absl::Status status = errno_status(errno, "cannot read", path.native());
        return {status.code(),
                fmt::format("{}; a folder for TLS has ca.pem, cert.pem and key.pem", std::string(status.message()))};
    }
    if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(fmt::format("{} is not a file", path.native()));
    if (secret && (info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
        return absl::PermissionDeniedError(
            fmt::format("others than its owner have access to {0}: chmod 600 {0}", path.native()));
    }
    return absl::OkStatus();
}

absl::Status unusable(const std::filesystem::path & path, std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("{}: {} ({})", path.native(), what, reason(ERR_peek_error())));
}

// Our own certificate, as a peer with the same CA will see it.
absl::Status check_certificate(SSL_CTX * context, const std::filesystem::path & path) {
    const std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> check(X509_STORE_CTX_new(),
                                                                                X509_STORE_CTX_free);
    STACK_OF(X509) * between = nullptr;
    SSL_CTX_get0_chain_certs(context, &between);
    STRATA_CHECK(X509_STORE_CTX_init(check.get(), SSL_CTX_get_cert_store(context), SSL_CTX_get0_certificate(context),
                                     between) == 1);
    if (X509_verify_cert(check.get()) == 1) return absl::OkStatus();
    return absl::InvalidArgumentError(fmt::format("{}: the {}", path.native(), complaint(check.get())));
}

} // namespace

void TlsContext::Free::operator()(SSL_CTX * context) const {
    SSL_CTX_free(context);
}

void TlsStream::Free::operator()(SSL * ssl) const {
    SSL_free(ssl);
}

absl::StatusOr<std::shared_ptr<const TlsContext>> TlsContext::load(const std::filesystem::path & named) {
    // The folder may be a link that is changed meanwhile: all files are of the same one.
    std::error_code failed;
    const auto real = std::filesystem::canonical(named, failed);
    const auto folder = failed ? named : real;
    const auto ca = folder / "ca.pem", certificate = folder / "cert.pem", key = folder / "key.pem";
    STRATA_RETURN_IF_ERROR(check_file(ca, false));
    STRATA_RETURN_IF_ERROR(check_file(certificate, false));
    STRATA_RETURN_IF_ERROR(check_file(key, true));
    // In a program that ends without closing its connections, threads still encrypt while others clean up.
    OPENSSL_init_ssl(OPENSSL_INIT_NO_ATEXIT, nullptr);
    ERR_clear_error();
    const std::shared_ptr<TlsContext> made(new TlsContext);
    made->folder_ = named;
    made->stamp_ = stamp_of(folder);
    made->context_.reset(SSL_CTX_new(TLS_method()));
    SSL_CTX * context = made->context_.get();
    STRATA_CHECK(context != nullptr && SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1);
    // In the order in which they are wanted.
    STRATA_CHECK(SSL_CTX_set_ciphersuites(
                     context, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256") == 1);
    // Each connection shows its certificates: nothing is resumed.
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(context, 0);
    SSL_CTX_set_mode(context, SSL_MODE_NO_AUTO_CHAIN);                                   // the peer has the CA
    SSL_CTX_set_default_passwd_cb(context, [](char *, int, int, void *) { return -1; }); // nobody is there to be asked
    if (SSL_CTX_load_verify_file(context, ca.c_str()) != 1) return unusable(ca, "no certificates of a CA");
    if (SSL_CTX_use_certificate_chain_file(context, certificate.c_str()) != 1) {
        return unusable(certificate, "no certificate");
    }
    if (SSL_CTX_use_PrivateKey_file(context, key.c_str(), SSL_FILETYPE_PEM) != 1) {
        const int why = ERR_GET_REASON(ERR_peek_error());
        return why == X509_R_KEY_VALUES_MISMATCH || why == X509_R_KEY_TYPE_MISMATCH
                   ? unusable(key, fmt::format("not the key of {}", certificate.native()))
                   : unusable(key, "no private key that needs no passphrase");
    }
    STRATA_RETURN_IF_ERROR(check_certificate(context, certificate));
    return made;
}

TlsContext::Stamp TlsContext::stamp_of(const std::filesystem::path & folder) {
    struct stat info {};
    if (stat((folder / "cert.pem").c_str(), &info) != 0) return {};
    return {info.st_dev, info.st_ino, info.st_ctim.tv_sec, info.st_ctim.tv_nsec};
}

std::shared_ptr<const TlsContext> TlsContext::renewed(std::shared_ptr<const TlsContext> context) {
    if (context == nullptr || stamp_of(context->folder_) == context->stamp_) return context;
    auto made = load(context->folder_);
    return made.ok() ? *std::move(made) : context;
}

// -------------------- a connection

struct TlsStream::Hooks {
    static int verify(int accepted, X509_STORE_CTX * check) {
        if (accepted == 1) return 1;
        const auto * ssl = static_cast<SSL *>(X509_STORE_CTX_get_ex_data(check, SSL_get_ex_data_X509_STORE_CTX_idx()));
        static_cast<TlsStream *>(SSL_get_app_data(ssl))->refused_ = complaint(check);
        return 0;
    }

    static int read(BIO * bio, char * to, int size) {
        auto & stream = *static_cast<TlsStream *>(BIO_get_data(bio));
        BIO_clear_retry_flags(bio);
        const size_t bytes = std::min(static_cast<size_t>(size), stream.end_ - stream.begin_);
        if (bytes == 0) {
            BIO_set_retry_read(bio);
            return -1;
        }
        std::memcpy(to, stream.arrived_.get() + stream.begin_, bytes);
        stream.begin_ += bytes;
        return static_cast<int>(bytes);
    }

    static int write(BIO * bio, const char * from, int size) {
        auto & out = static_cast<TlsStream *>(BIO_get_data(bio))->out_;
        const auto * bytes = reinterpret_cast<const uint8_t *>(from);
        out.insert(out.end(), bytes, bytes + size);
        return size;
    }

    static long control(BIO *, int command, long, void *) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

    static const BIO_METHOD * methods() {
        static const BIO_METHOD * const methods = [] {
            BIO_METHOD * made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "strata");
            BIO_meth_set_read(made, read);
            BIO_meth_set_write(made, write);
            BIO_meth_set_ctrl(made, control);
            return made;
        }();
        return methods;
    }
};

TlsStream::TlsStream(std::shared_ptr<const TlsContext> context, bool accepted, std::string peer)
    : context_(std::move(context))
    , peer_(std::move(peer))
    , arrived_(new uint8_t[kArrivedBytes])
    , ssl_(SSL_new(context_->context_.get())) {
    BIO * bio = BIO_new(Hooks::methods());
    STRATA_CHECK(ssl_ != nullptr && bio != nullptr);
    BIO_set_data(bio, this);
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio);
    SSL_set_app_data(ssl_.get(), this);
    SSL_set_verify(ssl_.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, Hooks::verify);
    if (accepted) {
        SSL_set_accept_state(ssl_.get());
    } else {
        SSL_set_connect_state(ssl_.get());
    }
}

TlsStream::~TlsStream() = default;

std::span<uint8_t> TlsStream::room() {
    std::copy(arrived_.get() + begin_, arrived_.get() + end_, arrived_.get());
    end_ -= begin_;
    begin_ = 0;
    return {arrived_.get() + end_, kArrivedBytes - end_};
}

void TlsStream::arrived(size_t bytes) {
    end_ += bytes;
}

absl::StatusOr<bool> TlsStream::handshake(Send send) {
    if (!begun_ && end_ > 0) {
        begun_ = true;
        if (arrived_[0] != SSL3_RT_HANDSHAKE && arrived_[0] != SSL3_RT_ALERT) {
            return absl::FailedPreconditionError(
                SSL_is_server(ssl_.get()) == 1
                    ? "only TLS is spoken here: name a folder with certificates (--tls DIR, STRATA_MESH_TLS=DIR)"
                    : fmt::format("{} speaks without TLS: start it with --tls DIR, or leave it out here", peer_));
        }
    }
    absl::StatusOr<bool> done = true;
    {
        const std::lock_guard lock(mutex_);
        ERR_clear_error();
        const int result = SSL_do_handshake(ssl_.get());
        const int error = SSL_get_error(ssl_.get(), result);
        if (error == SSL_ERROR_WANT_READ) {
            done = false;
        } else if (result != 1) {
            done = failure(error);
        }
    }
    send_records(send);
    return done;
}

absl::StatusOr<size_t> TlsStream::read(std::span<uint8_t> into) {
    size_t got = 0;
    while (got < into.size()) {
        const std::lock_guard lock(mutex_);
        ERR_clear_error();
        size_t bytes = 0;
        const int result = SSL_read_ex(ssl_.get(), into.data() + got, into.size() - got, &bytes);
        got += bytes;
        if (result == 1) continue;
        const int error = SSL_get_error(ssl_.get(), result);
        if (error == SSL_ERROR_WANT_READ || got > 0) break; // an error comes again
        return failure(error);
    }
    return got;
}

absl::Status TlsStream::write(std::span<const iovec> pieces, Send send) {
    absl::Status status;
    size_t unsent = 0;
    const auto add = [&](std::span<const uint8_t> bytes) {
        status = encrypt(bytes);
        unsent += bytes.size();
        if (unsent < kBatchBytes) return;
        send_records(send);
        unsent = 0;
    };
    for (const iovec & piece : pieces) {
        std::span<const uint8_t> rest(static_cast<const uint8_t *>(piece.iov_base), piece.iov_len);
        while (!rest.empty() && status.ok()) {
            const bool direct = pack_.empty() && rest.size() >= kRecordBytes;
            const auto bytes = rest.first(direct ? std::min(rest.size() / kRecordBytes * kRecordBytes, kBatchBytes)
                                                 : std::min(rest.size(), kRecordBytes - pack_.size()));
            rest = rest.subspan(bytes.size());
            if (direct) {
                add(bytes);
                continue;
            }
            pack_.insert(pack_.end(), bytes.begin(), bytes.end());
            if (pack_.size() == kRecordBytes) {
                add(pack_);
                pack_.clear();
            }
        }
    }
    if (!pack_.empty() && status.ok()) add(pack_);
    pack_.clear();
    send_records(send);
    return status;
}

absl::Status TlsStream::encrypt(std::span<const uint8_t> bytes) {
    const std::lock_guard lock(mutex_);
    ERR_clear_error();
    records_ += (bytes.size() + kRecordBytes - 1) / kRecordBytes;
    if (records_ > kRecordsPerKey) {
        SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED); // sent by the write
        records_ = 0;
    }
    size_t written = 0;
    const int result = SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &written);
    return result == 1 ? absl::OkStatus() : failure(SSL_get_error(ssl_.get(), result));
}

void TlsStream::send_records(Send send) {
    {
        const std::lock_guard lock(mutex_);
        sending_.swap(out_);
    }
    if (!sending_.empty()) send(sending_);
    sending_.clear();
}

absl::Status TlsStream::failure(int error) const {
    if (error == SSL_ERROR_ZERO_RETURN) return absl::UnavailableError(fmt::format("{} ended the connection", peer_));
    if (!refused_.empty()) return absl::UnauthenticatedError(fmt::format("{}: the {}", peer_, refused_));
    const unsigned long code = ERR_peek_error();
    const int alert = ERR_GET_REASON(code) - SSL_AD_REASON_OFFSET; // of the peer, when positive
    const auto ours = context_->folder_ / "cert.pem";
    switch (alert) {
    case TLS1_AD_UNKNOWN_CA:
        return absl::UnauthenticatedError(
            fmt::format("{} did not take {}: it was not signed by the CA in its ca.pem", peer_, ours.native()));
    case SSL3_AD_CERTIFICATE_EXPIRED:
        return absl::UnauthenticatedError(fmt::format("{} did not take {}: it has expired", peer_, ours.native()));
    default:
        return absl::UnavailableError(fmt::format("TLS with {}: {}", peer_, reason(code)));
    }
}

} // namespace strata::wire
