#include "wire/tls_testing.h"

#include "base/check.h"

#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdlib>

namespace strata::wire {
namespace {

constexpr long kDay = 24L * 60 * 60;

// Signed by the issuer, or, without one, by itself: a CA.
X509 * make_certificate(const std::string & name, EVP_PKEY * key, const X509 * issuer, EVP_PKEY * issuer_key,
                        int days) {
    static long serial = 0;
    X509 * made = X509_new();
    X509_set_version(made, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(made), ++serial);
    X509_gmtime_adj(X509_getm_notBefore(made), -10 * kDay);
    X509_gmtime_adj(X509_getm_notAfter(made), days * kDay);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(made), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char *>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(made, X509_get_subject_name(issuer == nullptr ? made : issuer));
    X509_set_pubkey(made, key);
    if (issuer == nullptr) {
        X509_EXTENSION * extension = X509V3_EXT_conf_nid(nullptr, nullptr, NID_basic_constraints, "critical,CA:TRUE");
        X509_add_ext(made, extension, -1);
        X509_EXTENSION_free(extension);
    }
    STRATA_CHECK(X509_sign(made, issuer_key, EVP_sha256()) > 0);
    return made;
}

template <typename Write>
void write_pem(const std::filesystem::path & path, const Write & write) {
    FILE * file = fopen(path.c_str(), "w");
    STRATA_CHECK(file != nullptr && write(file) == 1 && fclose(file) == 0);
    std::filesystem::permissions(path, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
}

} // namespace

TestCa::TestCa(const std::string & name)
    : key_(EVP_EC_gen("P-256"))
    , certificate_(make_certificate(name, key_, nullptr, key_, 10)) {
    std::string made = std::filesystem::temp_directory_path() / "strata-tls-XXXXXX";
    STRATA_CHECK(mkdtemp(made.data()) != nullptr);
    folder_ = made;
}

TestCa::~TestCa() {
    std::filesystem::remove_all(folder_);
    X509_free(certificate_);
    EVP_PKEY_free(key_);
}

std::filesystem::path TestCa::issue(const std::string & name, int days) const {
    EVP_PKEY * key = EVP_EC_gen("P-256");
    X509 * certificate = make_certificate(name, key, certificate_, key_, days);
    auto folder = folder_ / name;
    std::filesystem::create_directory(folder);
    write_pem(folder / "ca.pem", [&](FILE * file) { return PEM_write_X509(file, certificate_); });
    write_pem(folder / "cert.pem", [&](FILE * file) { return PEM_write_X509(file, certificate); });
    write_pem(folder / "key.pem",
              [&](FILE * file) { return PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr); });
    X509_free(certificate);
    EVP_PKEY_free(key);
    return folder;
}

std::shared_ptr<const TlsContext> TestCa::context(const std::string & name) const {
    auto made = TlsContext::load(issue(name));
    STRATA_CHECK(made.ok());
    return *std::move(made);
}

} // namespace strata::wire
