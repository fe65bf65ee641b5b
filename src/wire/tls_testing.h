#pragma once

#include "wire/tls.h"

#include <filesystem>

namespace strata::wire {

// A CA for a test, with all that it signs in a temporary folder. Failures abort.
class TestCa {
public:
    explicit TestCa(const std::string & name);
    ~TestCa();
    TestCa(const TestCa &) = delete;
    TestCa & operator=(const TestCa &) = delete;

    // Makes what TlsContext::load takes: a certificate that ends so many days from now. The folder.
    std::filesystem::path issue(const std::string & name, int days = 1) const;
    std::shared_ptr<const TlsContext> context(const std::string & name) const;

private:
    std::filesystem::path folder_;
    EVP_PKEY * key_;
    X509 * certificate_;
};

} // namespace strata::wire
