#include "wire/tcp_testing.h"
#include "wire/tls.h"
#include "wire/tls_testing.h"

#include <gmock/gmock.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <fstream>

namespace strata::wire {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const TestCa & our_ca() {
    static const TestCa ca("ours");
    return ca;
}

class TlsTest : public TcpTest {
protected:
    TlsTest()
        : TcpTest(our_ca().context("engine")) {}

    // What the server says of a client that shows this certificate, or none; the client's last error goes to `told`.
    std::string verdict_on(const std::filesystem::path & folder, std::string & told) {
        const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
        if (!folder.empty()) {
            EXPECT_EQ(SSL_CTX_use_certificate_file(context.get(), (folder / "cert.pem").c_str(), SSL_FILETYPE_PEM), 1);
            EXPECT_EQ(SSL_CTX_use_PrivateKey_file(context.get(), (folder / "key.pem").c_str(), SSL_FILETYPE_PEM), 1);
        }
        const UniqueFd fd = raw_socket();
        const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context.get()), SSL_free);
        SSL_set_fd(ssl.get(), fd.get());
        EXPECT_EQ(SSL_connect(ssl.get()), 1); // in TLS 1.3 a client is done before it is judged
        char byte = 0;
        EXPECT_LE(SSL_read(ssl.get(), &byte, 1), 0);
        const char * reason = ERR_reason_error_string(ERR_get_error());
        told = reason == nullptr ? "" : reason;
        return std::string(door_->inbox->wait_for_end().message());
    }
};

TEST_F(TlsTest, LargeAndSmallFramesBothWaysAtOnce) {
    connect();
    constexpr uint64_t kFrames = 300;
    const auto large = random_bytes(3 << 20), small = random_bytes(50);
    const auto send_all = [&](Channel & channel) {
        for (uint64_t i = 0; i < kFrames; ++i) send(channel, FrameType::kPush, i % 20 == 0 ? large : small, i);
    };
    std::thread other([&] { send_all(*theirs_); });
    send_all(*ours_);
    other.join();
    for (const auto & inbox : {inbox_, door_->inbox}) {
        const auto frames = inbox->wait_for(kFrames);
        ASSERT_EQ(frames.size(), kFrames);
        for (uint64_t i = 0; i < kFrames; ++i) {
            EXPECT_EQ(frames[i].header.sequence, i);
            EXPECT_TRUE(std::ranges::equal(frames[i].body(), i % 20 == 0 ? large : small)) << i;
        }
    }
}

TEST_F(TlsTest, KeysAreRenewed) {
    connect();
    constexpr uint64_t kFrames = 140000; // twice as many as a key is used for
    for (uint64_t i = 0; i < kFrames; ++i) send(*ours_, FrameType::kPush, {}, i);
    EXPECT_EQ(door_->inbox->wait_for(kFrames).back().header.sequence, kFrames - 1);
}

TEST_F(TlsTest, RenewedCertificatesAreUsed) {
    const TestCa ca("renewed");
    const auto folder = ca.issue("engine");
    const auto first = TlsContext::load(folder).value();
    EXPECT_EQ(TlsContext::renewed(first), first);
    const auto newer = ca.issue("newer");
    std::filesystem::remove_all(folder);
    std::filesystem::rename(newer, folder);
    const auto second = TlsContext::renewed(first);
    EXPECT_NE(second, first);
    EXPECT_EQ(TlsContext::renewed(second), second);
    // What can't be used changes nothing.
    std::ofstream(folder / "cert.pem") << "half of a";
    EXPECT_EQ(TlsContext::renewed(second), second);
    EXPECT_EQ(TlsContext::renewed(nullptr), nullptr);
}

TEST_F(TlsTest, AnotherCaIsRefused) {
    const TestCa other("theirs");
    TcpNetwork stranger(other.context("stranger"));
    ASSERT_TRUE(stranger.connect(address_, inbox_).ok());
    const absl::Status theirs = inbox_->wait_for_end();
    EXPECT_EQ(theirs.code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(std::string(theirs.message()),
                AllOf(HasSubstr(address_), HasSubstr("CN=engine was not signed by the CA")));
    const absl::Status ours = door_->inbox->wait_for_end();
    EXPECT_EQ(ours.code(), absl::StatusCode::kUnauthenticated);
    EXPECT_THAT(ours.message(), HasSubstr("engine/cert.pem: it was not signed by the CA in its ca.pem"));
}

TEST_F(TlsTest, WhoIsNotOfTheCaIsTold) {
    const TestCa other("theirs");
    std::string told;
    EXPECT_THAT(verdict_on(other.issue("stranger"), told), HasSubstr("CN=stranger was not signed by the CA"));
    EXPECT_THAT(told, HasSubstr("unknown ca"));
}

TEST_F(TlsTest, AnExpiredCertificateIsRefused) {
    std::string told;
    EXPECT_THAT(verdict_on(our_ca().issue("old", -1), told), HasSubstr("CN=old has expired (20"));
    EXPECT_THAT(told, HasSubstr("certificate expired"));
}

TEST_F(TlsTest, NoCertificateIsRefused) {
    std::string told;
    EXPECT_THAT(verdict_on({}, told), HasSubstr("peer did not return a certificate"));
    EXPECT_THAT(told, HasSubstr("certificate required"));
}

TEST_F(TlsTest, APlainClientIsToldToUseTls) {
    TcpNetwork plain;
    const auto channel = plain.connect(address_, inbox_);
    ASSERT_TRUE(channel.ok());
    send(**channel, FrameType::kHello, random_bytes(10));
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr("only TLS is spoken here"));
    EXPECT_THAT(door_->inbox->wait_for_end().message(), HasSubstr("only TLS is spoken here"));
}

TEST_F(TlsTest, APlainServerIsNamed) {
    TcpNetwork plain;
    const auto door = std::make_shared<Door>();
    const auto address = plain.listen("127.0.0.1:0", door);
    ASSERT_TRUE(address.ok() && client_.connect(*address, inbox_).ok());
    EXPECT_THAT(inbox_->wait_for_end().message(), HasSubstr(*address + " speaks without TLS"));
    EXPECT_THAT(door->inbox->wait_for_end().message(), HasSubstr("TLS is not spoken here"));
}

TEST_F(TlsTest, HalfAHandshakeHoldsNobodyUp) {
    struct TwoGuests : Acceptor {
        std::shared_ptr<ChannelHandler> on_connection(std::shared_ptr<Channel>) override { return guests.at(next++); }
        std::array<std::shared_ptr<Inbox>, 2> guests{std::make_shared<Inbox>(), std::make_shared<Inbox>()};
        size_t next = 0;
    };
    const auto door = std::make_shared<TwoGuests>();
    address_ = server_.listen("127.0.0.1:0", door).value();
    std::vector<uint8_t> hello;
    TlsStream stream(our_ca().context("slow"), false, "server");
    EXPECT_FALSE(*stream.handshake([&](std::span<const uint8_t> bytes) { hello.assign(bytes.begin(), bytes.end()); }));
    const UniqueFd fd = raw_socket();
    const auto half = static_cast<ssize_t>(hello.size() / 2);
    ASSERT_EQ(write(fd.get(), hello.data(), static_cast<size_t>(half)), half);
    const auto channel = client_.connect(address_, inbox_);
    ASSERT_TRUE(channel.ok());
    send(**channel, FrameType::kPush, random_bytes(10));
    EXPECT_EQ(door->guests[1]->wait_for(1).size(), 1);
    EXPECT_THAT(door->guests[0]->wait_for_end().message(), HasSubstr("did not finish the handshake"));
}

TEST_F(TlsTest, GarbageInAHandshakeIsRefused) {
    const UniqueFd fd = raw_socket();
    auto garbage = random_bytes(2000);
    garbage[0] = SSL3_RT_HANDSHAKE;
    ASSERT_EQ(write(fd.get(), garbage.data(), garbage.size()), static_cast<ssize_t>(garbage.size()));
    EXPECT_THAT(door_->inbox->wait_for_end().message(), HasSubstr("TLS with 127.0.0.1"));
}

TEST(TlsStreamTest, AChangedRecordIsNoticed) {
    const auto context = our_ca().context("engine");
    TlsStream client(context, false, "server"), server(context, true, "client");
    const auto send_to = [](TlsStream & to) {
        return [&to](std::span<const uint8_t> bytes) {
            std::ranges::copy(bytes, to.room().begin());
            to.arrived(bytes.size());
        };
    };
    bool both = false;
    while (!both) {
        const auto one = client.handshake(send_to(server)), other = server.handshake(send_to(client));
        ASSERT_TRUE(one.ok() && other.ok());
        both = *one && *other;
    }
    auto text = random_bytes(100);
    std::vector<uint8_t> received(text.size());
    const iovec piece{text.data(), text.size()};
    ASSERT_TRUE(client.write({&piece, 1}, send_to(server)).ok());
    EXPECT_EQ(*server.read(received), text.size());
    EXPECT_EQ(received, text);
    ASSERT_TRUE(client
                    .write({&piece, 1},
                           [&](std::span<const uint8_t> bytes) {
                               std::vector<uint8_t> changed(bytes.begin(), bytes.end());
                               changed[50] ^= 1;
                               send_to(server)(changed);
                           })
                    .ok());
    EXPECT_THAT(server.read(received).status().message(), HasSubstr("bad record mac"));
}

class TlsContextTest : public testing::Test {
protected:
    std::string error() const { return std::string(TlsContext::load(folder_).status().message()); }
    const TestCa ca_{"a CA"};
    const std::filesystem::path folder_ = ca_.issue("node");
};

TEST_F(TlsContextTest, AMissingFileIsNamed) {
    ASSERT_EQ(error(), "");
    for (const auto * name : {"ca.pem", "cert.pem", "key.pem"}) {
        std::filesystem::rename(folder_ / name, folder_ / "away");
        EXPECT_THAT(error(),
                    AllOf(HasSubstr((folder_ / name).native() + ": No such file"), HasSubstr("a folder for TLS has")));
        std::filesystem::rename(folder_ / "away", folder_ / name);
    }
}

TEST_F(TlsContextTest, NonsenseInAFileIsNamed) {
    for (const auto * name : {"key.pem", "cert.pem", "ca.pem"}) {
        std::ofstream(folder_ / name) << "nonsense";
        EXPECT_THAT(error(), HasSubstr((folder_ / name).native() + ": no "));
    }
}

TEST_F(TlsContextTest, AKeyThatOthersCanReadIsRefused) {
    std::filesystem::permissions(folder_ / "key.pem", std::filesystem::perms::group_read,
                                 std::filesystem::perm_options::add);
    EXPECT_THAT(error(), HasSubstr("chmod 600 " + (folder_ / "key.pem").native()));
}

TEST_F(TlsContextTest, TheKeyOfAnotherCertificateIsRefused) {
    std::filesystem::copy(ca_.issue("other") / "key.pem", folder_ / "key.pem",
                          std::filesystem::copy_options::overwrite_existing);
    EXPECT_THAT(error(), HasSubstr("not the key of " + (folder_ / "cert.pem").native()));
}

TEST_F(TlsContextTest, AKeyWithAPassphraseIsRefused) {
    FILE * file = fopen((folder_ / "key.pem").c_str(), "w");
    EVP_PKEY * key = EVP_EC_gen("P-256");
    PEM_write_PKCS8PrivateKey(file, key, EVP_aes_128_cbc(), "secret", 6, nullptr, nullptr);
    EVP_PKEY_free(key);
    fclose(file);
    EXPECT_THAT(error(), HasSubstr("no private key that needs no passphrase"));
}

TEST_F(TlsContextTest, ACertificateOfAnotherCaIsRefused) {
    const TestCa other("another CA");
    std::filesystem::copy(other.issue("other") / "ca.pem", folder_ / "ca.pem",
                          std::filesystem::copy_options::overwrite_existing);
    EXPECT_THAT(error(), HasSubstr("CN=node was not signed by the CA"));
}

TEST_F(TlsContextTest, AnExpiredCertificateIsRefused) {
    EXPECT_THAT(TlsContext::load(ca_.issue("old", -2)).status().message(), HasSubstr("CN=old has expired"));
}

} // namespace
} // namespace strata::wire
