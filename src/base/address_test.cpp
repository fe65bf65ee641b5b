#include "base/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace strata {
namespace {

TEST(Address, Parses) {
    struct Case {
        std::string_view text;
        std::string host;
        uint16_t port;
    };
    for (const Case & c :
         {Case{"127.0.0.1:7431", "127.0.0.1", 7431}, Case{"node-3.local", "node-3.local", 7430},
          Case{"[::1]:80", "::1", 80}, Case{"[fe80::1%eth0]", "fe80::1%eth0", 7430}, Case{"a:0", "a", 0}}) {
        const auto address = Address::parse(c.text, 7430);
        ASSERT_TRUE(address.ok()) << address.status();
        EXPECT_EQ(address->host, c.host);
        EXPECT_EQ(address->port, c.port);
        EXPECT_EQ(Address::parse(address->to_string(), 0)->to_string(), address->to_string());
    }
}

TEST(Address, RefusesWhatIsNone) {
    for (const std::string & text :
         {std::string(), std::string(":1"), std::string("a:"), std::string("a:65536"), std::string("a:-1"),
          std::string("a:1x"), std::string("::1"), std::string("1:2:3"), std::string("[::1"), std::string("[]:1"),
          std::string("a b:1"), std::string("a\n:1"), std::string("a/b:1"), std::string(300, 'a') + ":1",
          std::string("a\0b:1", 5)}) {
        EXPECT_EQ(Address::parse(text, 1).status().code(), absl::StatusCode::kInvalidArgument) << text;
    }
    EXPECT_THAT(Address::parse("host", 0).status().message(), testing::HasSubstr("port is missing"));
    EXPECT_FALSE(Address::parse("[::1]x80", 1).ok());
}

TEST(Address, KnowsLoopback) {
    for (const std::string host : {"127.0.0.1", "127.9.9.9", "::1", "localhost"})
        EXPECT_TRUE((Address{host, 1}.is_loopback())) << host;
    for (const std::string host :
         {"0.0.0.0", "10.0.0.1", "128.0.0.1", "::", "fe80::1", "::ffff:10.0.0.1", "localhost.evil", "127.0.0.1.evil"}) {
        EXPECT_FALSE((Address{host, 1}.is_loopback())) << host;
    }
}

} // namespace
} // namespace strata
