#include "cluster/certificate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <memory>

namespace strata::cluster {
namespace {

using std::chrono::hours;
using std::chrono::system_clock;

const system_clock::time_point kNow = system_clock::from_time_t(1'900'000'000);
const Validity kValidity{kNow - hours(2), kNow + hours(100)};
const Subject kCaSubject{.cluster = "c1", .role = "ca", .name = "cluster"};
const Subject kNode{.cluster = "c1", .role = "node", .name = "node-1", .admission = "0123"};

std::shared_ptr<X509> parse(const std::string & pem) {
    BIO * bio = BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size()));
    std::shared_ptr<X509> certificate(PEM_read_bio_X509(bio, nullptr, nullptr, nullptr), X509_free);
    BIO_free(bio);
    return certificate;
}

// As a TLS peer looks at it; "ok", or what is wrong.
std::string verify(const std::string & ca, const std::string & certificate, int purpose, const char * host,
                   system_clock::time_point at) {
    const auto trusted = parse(ca);
    const auto leaf = parse(certificate);
    std::unique_ptr<X509_STORE, decltype(&X509_STORE_free)> store(X509_STORE_new(), X509_STORE_free);
    X509_STORE_add_cert(store.get(), trusted.get());
    std::unique_ptr<X509_STORE_CTX, decltype(&X509_STORE_CTX_free)> check(X509_STORE_CTX_new(), X509_STORE_CTX_free);
    X509_STORE_CTX_init(check.get(), store.get(), leaf.get(), nullptr);
    X509_STORE_CTX_set_purpose(check.get(), purpose);
    X509_VERIFY_PARAM * parameters = X509_STORE_CTX_get0_param(check.get());
    X509_VERIFY_PARAM_set_time(parameters, system_clock::to_time_t(at));
    X509_VERIFY_PARAM_set_flags(parameters, X509_V_FLAG_X509_STRICT);
    if (host != nullptr) X509_VERIFY_PARAM_set1_host(parameters, host, 0);
    if (X509_verify_cert(check.get()) == 1) return "ok";
    return X509_verify_cert_error_string(X509_STORE_CTX_get_error(check.get()));
}

class CertificateTest : public ::testing::Test {
protected:
    const Identity ca_ = make_ca(kCaSubject, kValidity).value();
    const std::string key_ = make_key().value();
    const std::string certificate_ = issue(ca_, make_request(key_).value(), kNode, kValidity).value();
};

TEST_F(CertificateTest, is_good_for_both_sides_of_tls) {
    EXPECT_EQ(verify(ca_.certificate, certificate_, X509_PURPOSE_SSL_SERVER, kServerName, kNow), "ok");
    EXPECT_EQ(verify(ca_.certificate, certificate_, X509_PURPOSE_SSL_SERVER, "node-1.node.strata", kNow), "ok");
    EXPECT_EQ(verify(ca_.certificate, certificate_, X509_PURPOSE_SSL_CLIENT, nullptr, kNow), "ok");
    EXPECT_NE(verify(ca_.certificate, certificate_, X509_PURPOSE_SSL_SERVER, "node-2.node.strata", kNow), "ok");
    EXPECT_NE(verify(ca_.certificate, certificate_, X509_PURPOSE_SSL_SERVER, kServerName, kNow + hours(101)), "ok");
    EXPECT_NE(verify(ca_.certificate, certificate_, X509_PURPOSE_SSL_SERVER, kServerName, kNow - hours(3)), "ok");
    const Identity other = make_ca(kCaSubject, kValidity).value();
    EXPECT_NE(verify(other.certificate, certificate_, X509_PURPOSE_SSL_SERVER, kServerName, kNow), "ok");
}

// What a node signs with its key is worth nothing.
TEST_F(CertificateTest, a_node_is_no_ca) {
    const std::string key = make_key().value();
    const std::string made = issue({certificate_, key_}, make_request(key).value(), kNode, kValidity).value();
    EXPECT_NE(verify(certificate_, made, X509_PURPOSE_SSL_CLIENT, nullptr, kNow), "ok");
}

TEST_F(CertificateTest, says_whom_it_names) {
    const auto facts = read_certificate(certificate_ + ca_.certificate);
    ASSERT_TRUE(facts.ok()) << facts.status();
    EXPECT_EQ(facts->subject.cluster, "c1");
    EXPECT_EQ(facts->subject.role, "node");
    EXPECT_EQ(facts->subject.name, "node-1");
    EXPECT_EQ(facts->subject.admission, "0123");
    EXPECT_EQ(facts->validity.from, kValidity.from);
    EXPECT_EQ(facts->validity.until, kValidity.until);
    EXPECT_EQ(read_certificate(ca_.certificate)->subject.role, "ca");
}

TEST_F(CertificateTest, an_identity_belongs_together) {
    EXPECT_TRUE(check_identity(ca_.certificate, certificate_ + ca_.certificate, key_).ok());
    EXPECT_FALSE(check_identity(ca_.certificate, certificate_, make_key().value()).ok());
    EXPECT_FALSE(check_identity(make_ca(kCaSubject, kValidity)->certificate, certificate_, key_).ok());
    EXPECT_FALSE(check_identity(ca_.certificate, "", key_).ok());
}

TEST_F(CertificateTest, a_ca_is_known_by_its_key) {
    EXPECT_EQ(pin_of(ca_.certificate).value(), pin_of(ca_.certificate).value());
    EXPECT_NE(pin_of(ca_.certificate).value(), pin_of(certificate_).value());
    EXPECT_FALSE(pin_of("").ok());
}

TEST_F(CertificateTest, requests_from_anybody_are_checked) {
    const auto code = [&](const std::string & request) {
        return issue(ca_, request, kNode, kValidity).status().code();
    };
    const std::string request = make_request(key_).value();
    EXPECT_EQ(code(""), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code(certificate_), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code(std::string(1 << 20, 'x') + request), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code(request.substr(0, request.size() / 2)), absl::StatusCode::kInvalidArgument);
    for (size_t i = 0; i < request.size(); ++i) { // no change of it is an accident
        std::string changed = request;
        changed[i] = changed[i] == 'A' ? 'B' : 'A';
        code(changed);
    }
    // A key that is no EC key, however well it is signed.
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> rsa(EVP_RSA_gen(2048), EVP_PKEY_free);
    const std::unique_ptr<X509_REQ, decltype(&X509_REQ_free)> foreign(X509_REQ_new(), X509_REQ_free);
    X509_REQ_set_pubkey(foreign.get(), rsa.get());
    X509_REQ_sign(foreign.get(), rsa.get(), EVP_sha256());
    BIO * bio = BIO_new(BIO_s_mem());
    PEM_write_bio_X509_REQ(bio, foreign.get());
    char * data = nullptr;
    const long size = BIO_get_mem_data(bio, &data);
    const std::string text(data, static_cast<size_t>(size));
    BIO_free(bio);
    EXPECT_EQ(code(text), absl::StatusCode::kInvalidArgument);
}

TEST(NodeNameTest, is_a_label_of_dns) {
    for (const char * good : {"a", "node-1", "0", "a--b"}) EXPECT_TRUE(check_node_name(good).ok()) << good;
    for (const char * bad : {"", "-a", "a-", "A", "a.b", "a/b", "../a", "a b", "ä", "a\n"}) {
        EXPECT_FALSE(check_node_name(bad).ok()) << bad;
    }
    EXPECT_FALSE(check_node_name(std::string(64, 'a')).ok());
    EXPECT_EQ(node_name_like("Host_1.example.org"), "host-1");
    EXPECT_EQ(node_name_like("__x__"), "x");
    EXPECT_EQ(node_name_like("."), "node");
    EXPECT_EQ(node_name_like(""), "node");
    EXPECT_TRUE(check_node_name(node_name_like(std::string(62, 'a') + "--b")).ok());
}

} // namespace
} // namespace strata::cluster
