#include "cluster/certificate.h"

#include "base/text.h"
#include "cluster/limits.h"

#include <fmt/format.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <ctime>
#include <memory>

namespace strata::cluster {

namespace {

template <auto kFree>
struct Free {
    template <typename T>
    void operator()(T * pointer) const {
        kFree(pointer);
    }
};
using Bio = std::unique_ptr<BIO, Free<BIO_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509_free>>;
using Request = std::unique_ptr<X509_REQ, Free<X509_REQ_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Free<X509_EXTENSION_free>>;
using Number = std::unique_ptr<BIGNUM, Free<BN_free>>;

constexpr size_t kPemBytes = 16 << 10;

constexpr int kSerialBits = 159; // RFC 5280, 4.1.2.2: at most 20 octets, positive
constexpr long kVersion3 = 2;

absl::Status failure(std::string_view what) {
    const char * reason = ERR_reason_error_string(ERR_peek_error());
    return absl::InternalError(
        fmt::format("cannot {}: {}", what, reason == nullptr ? "OpenSSL gives no reason" : reason));
}

absl::Status unusable(std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("this is no {} in PEM, with a key on the curve P-256", what));
}

template <typename Read>
auto from_pem(std::string_view text, Read read) -> decltype(read(nullptr)) {
    ERR_clear_error();
    if (text.size() > kPemBytes) return nullptr;
    const Bio bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
    return read(bio.get());
}

Certificate certificate_from(std::string_view text) {
    return Certificate(from_pem(text, [](BIO * bio) { return PEM_read_bio_X509(bio, nullptr, nullptr, nullptr); }));
}

Key key_from(std::string_view text) {
    const auto nobody_is_asked = [](char *, int, int, void *) { return -1; };
    return Key(
        from_pem(text, [&](BIO * bio) { return PEM_read_bio_PrivateKey(bio, nullptr, nobody_is_asked, nullptr); }));
}

template <typename Write>
absl::StatusOr<std::string> to_pem(std::string_view what, Write write) {
    const Bio bio(BIO_new(BIO_s_mem()));
    if (bio == nullptr || write(bio.get()) != 1) return failure(fmt::format("write {}", what));
    char * data = nullptr;
    const long size = BIO_get_mem_data(bio.get(), &data);
    return std::string(data, static_cast<size_t>(size));
}

bool is_p256(const EVP_PKEY * key) {
    std::array<char, 32> group{};
    return key != nullptr && EVP_PKEY_get_group_name(key, group.data(), group.size(), nullptr) == 1 &&
           std::string_view(group.data()) == SN_X9_62_prime256v1;
}

absl::Status set_name(X509_NAME * name, const Subject & subject) {
    const auto add = [&](const char * field, const std::string & value) {
        return value.empty() || X509_NAME_add_entry_by_txt(name, field, MBSTRING_UTF8,
                                                           reinterpret_cast<const unsigned char *>(value.data()),
                                                           static_cast<int>(value.size()), -1, 0) == 1;
    };
    const bool added = add("O", subject.cluster) && add("OU", subject.role) && add("CN", subject.name) &&
                       add("serialNumber", subject.admission);
    return added ? absl::OkStatus() : failure("name a certificate");
}

std::string field_of(const X509_NAME * name, int field) {
    const int at = X509_NAME_get_index_by_NID(name, field, -1);
    if (at < 0) return {};
    const ASN1_STRING * value = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at));
    return {reinterpret_cast<const char *>(ASN1_STRING_get0_data(value)),
            static_cast<size_t>(ASN1_STRING_length(value))};
}

absl::Status set_random_serial(X509 * certificate) {
    const Number number(BN_new());
    const bool set = number != nullptr &&
                     BN_rand(number.get(), kSerialBits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
                     BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
    return set ? absl::OkStatus() : failure("number a certificate");
}

// Signs what has everything but what all of a cluster's certificates share.
absl::StatusOr<std::string> finish(X509 * certificate, EVP_PKEY * public_key, const Subject & subject,
                                   const Validity & validity, X509 * issuer, EVP_PKEY * issuer_key,
                                   std::initializer_list<std::pair<int, std::string>> extensions) {
    using std::chrono::system_clock;
    const auto set_time = [](ASN1_TIME * to, system_clock::time_point time) {
        return ASN1_TIME_set(to, system_clock::to_time_t(time)) != nullptr;
    };
    STRATA_RETURN_IF_ERROR(set_random_serial(certificate));
    STRATA_RETURN_IF_ERROR(set_name(X509_get_subject_name(certificate), subject));
    if (X509_set_version(certificate, kVersion3) != 1 || X509_set_pubkey(certificate, public_key) != 1 ||
        X509_set_issuer_name(certificate, X509_get_subject_name(issuer)) != 1 ||
        !set_time(X509_getm_notBefore(certificate), validity.from) ||
        !set_time(X509_getm_notAfter(certificate), validity.until)) {
        return failure("make a certificate");
    }
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
    for (const auto & [id, value] : extensions) {
        const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()));
        if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) {
            return failure("extend a certificate");
        }
    }
    if (X509_sign(certificate, issuer_key, EVP_sha256()) == 0) return failure("sign a certificate");
    return to_pem("a certificate", [&](BIO * bio) { return PEM_write_bio_X509(bio, certificate); });
}

absl::StatusOr<std::chrono::system_clock::time_point> time_of(const ASN1_TIME * time) {
    std::tm parts{};
    if (ASN1_TIME_to_tm(time, &parts) != 1) return unusable("certificate");
    return std::chrono::system_clock::from_time_t(::timegm(&parts));
}

} // namespace

absl::Status check_node_name(std::string_view name) {
    const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-'; };
    if (!name.empty() && name.size() <= limits::kNodeNameBytes && name.front() != '-' && name.back() != '-' &&
        std::all_of(name.begin(), name.end(), fits)) {
        return absl::OkStatus();
    }
    return absl::InvalidArgumentError(fmt::format("a node can't be called \"{}\": 1 to {} letters a to z, digits and "
                                                  "hyphens between them can be a name",
                                                  printable(name), limits::kNodeNameBytes));
}

std::string node_name_like(std::string_view text) {
    std::string name;
    for (const char c : text.substr(0, std::min(text.find('.'), limits::kNodeNameBytes))) {
        const bool fits = std::isalnum(static_cast<unsigned char>(c)) != 0;
        name += fits ? static_cast<char>(std::tolower(static_cast<unsigned char>(c))) : '-';
    }
    name.erase(0, std::min(name.find_first_not_of('-'), name.size()));
    name.erase(name.find_last_not_of('-') + 1);
    return check_node_name(name).ok() ? name : "node";
}

absl::StatusOr<std::string> make_key() {
    ERR_clear_error();
    const Key key(EVP_EC_gen(SN_X9_62_prime256v1));
    if (key == nullptr) return failure("make a key");
    return to_pem("a key", [&](BIO * bio) {
        return PEM_write_bio_PKCS8PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
    });
}

absl::StatusOr<std::string> make_request(const std::string & key_text) {
    const Key key = key_from(key_text);
    if (!is_p256(key.get())) return unusable("private key");
    const Request request(X509_REQ_new());
    if (request == nullptr || X509_REQ_set_pubkey(request.get(), key.get()) != 1 ||
        X509_REQ_sign(request.get(), key.get(), EVP_sha256()) == 0) {
        return failure("make a signing request");
    }
    return to_pem("a signing request", [&](BIO * bio) { return PEM_write_bio_X509_REQ(bio, request.get()); });
}

absl::StatusOr<Identity> make_ca(const Subject & subject, const Validity & validity) {
    STRATA_ASSIGN_OR_RETURN(std::string key_text, make_key());
    const Key key = key_from(key_text);
    const Certificate made(X509_new());
    if (made == nullptr) return failure("make a certificate");
    STRATA_ASSIGN_OR_RETURN(std::string certificate,
                            finish(made.get(), key.get(), subject, validity, made.get(), key.get(),
                                   {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                                    {NID_key_usage, "critical,keyCertSign,cRLSign"},
                                    {NID_subject_key_identifier, "hash"}}));
    return Identity{std::move(certificate), std::move(key_text)};
}

absl::StatusOr<std::string> issue(const Identity & ca, std::string_view request_text, const Subject & subject,
                                  const Validity & validity) {
    STRATA_RETURN_IF_ERROR(check_node_name(subject.name));
    const Request request(
        from_pem(request_text, [](BIO * bio) { return PEM_read_bio_X509_REQ(bio, nullptr, nullptr, nullptr); }));
    EVP_PKEY * public_key = request == nullptr ? nullptr : X509_REQ_get0_pubkey(request.get());
    if (!is_p256(public_key)) return unusable("signing request");
    if (X509_REQ_verify(request.get(), public_key) != 1) {
        return absl::InvalidArgumentError("the signing request was not signed with its own key");
    }
    const Certificate issuer = certificate_from(ca.certificate);
    const Key key = key_from(ca.key);
    const Certificate made(X509_new());
    if (issuer == nullptr || key == nullptr || made == nullptr) return failure("use the cluster's CA");
    return finish(made.get(), public_key, subject, validity, issuer.get(), key.get(),
                  {{NID_basic_constraints, "critical,CA:FALSE"},
                   {NID_key_usage, "critical,digitalSignature"},
                   {NID_ext_key_usage, "serverAuth,clientAuth"},
                   {NID_subject_key_identifier, "hash"},
                   {NID_authority_key_identifier, "keyid:always"},
                   {NID_subject_alt_name, fmt::format("DNS:{0},DNS:{1}.{0}", kServerName, subject.name)}});
}

absl::Status check_identity(std::string_view ca_text, std::string_view certificate_text, std::string_view key_text) {
    const Certificate ca = certificate_from(ca_text), certificate = certificate_from(certificate_text);
    const Key key = key_from(key_text);
    if (ca == nullptr || certificate == nullptr || key == nullptr) return unusable("certificate");
    if (X509_check_private_key(certificate.get(), key.get()) != 1) {
        return absl::InvalidArgumentError("the certificate that came is not for this node's key");
    }
    if (X509_verify(certificate.get(), X509_get0_pubkey(ca.get())) == 1) return absl::OkStatus();
    return absl::InvalidArgumentError("the certificate that came is not signed by the cluster's CA");
}

absl::StatusOr<CertificateFacts> read_certificate(std::string_view text) {
    const Certificate certificate = certificate_from(text);
    if (certificate == nullptr) return unusable("certificate");
    const X509_NAME * name = X509_get_subject_name(certificate.get());
    CertificateFacts facts;
    facts.subject = {field_of(name, NID_organizationName), field_of(name, NID_organizationalUnitName),
                     field_of(name, NID_commonName), field_of(name, NID_serialNumber)};
    STRATA_ASSIGN_OR_RETURN(facts.validity.from, time_of(X509_get0_notBefore(certificate.get())));
    STRATA_ASSIGN_OR_RETURN(facts.validity.until, time_of(X509_get0_notAfter(certificate.get())));
    return facts;
}

absl::StatusOr<Digest> pin_of(std::string_view text) {
    const Certificate certificate = certificate_from(text);
    if (certificate == nullptr) return unusable("certificate");
    unsigned char * der = nullptr;
    const int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate.get()), &der);
    if (size <= 0) return failure("read the public key of a certificate");
    const Digest pin = Digest::of(std::string_view(reinterpret_cast<const char *>(der), static_cast<size_t>(size)));
    OPENSSL_free(der);
    return pin;
}

} // namespace strata::cluster
