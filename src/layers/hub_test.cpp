#include "layers/hub.h"
#include "layers/hub_http.h"
#include "layers/hub_part.h"
#include "layers/store_testing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

// What needs no server; downloads themselves are tested against a fake hub in tests/test_hub.py.
namespace strata::layers {
namespace {

using ::testing::HasSubstr;

TEST(HubUrl, Parses) {
    const auto url = HubUrl::parse("hf://org-1/Model_2.GGUF/folder/file name.gguf");
    ASSERT_OK(url);
    EXPECT_EQ(url->repo, "org-1/Model_2.GGUF");
    EXPECT_EQ(url->file, "folder/file name.gguf");
    EXPECT_EQ(url->revision, "main");
    const auto pinned = HubUrl::parse("hf://a/b/c.gguf@refs/pr/1");
    ASSERT_OK(pinned);
    EXPECT_EQ(pinned->revision, "refs/pr/1");
    EXPECT_EQ(pinned->file, "c.gguf");
    EXPECT_EQ(pinned->to_string(), "hf://a/b/c.gguf@refs/pr/1");
}

TEST(HubUrl, PartsOfASplitModel) {
    const auto files = [](const std::string & text) {
        std::vector<std::string> names;
        for (const HubUrl & part : HubUrl::parse(text)->parts()) names.push_back(part.file);
        return names;
    };
    EXPECT_THAT(
        files("hf://a/b/d/m-00002-of-00003.gguf@v1"),
        ::testing::ElementsAre("d/m-00001-of-00003.gguf", "d/m-00002-of-00003.gguf", "d/m-00003-of-00003.gguf"));
    for (const std::string alone : {"m.gguf", "m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-1-of-3.gguf",
                                    "m-00001-of-99999.gguf", "m-0000x-of-00003.gguf", "-00001-of-00003.gguf"}) {
        EXPECT_THAT(files("hf://a/b/" + alone), ::testing::ElementsAre(alone));
    }
}

TEST(HubUrl, RefusesWhatCouldLeadElsewhere) {
    for (const std::string bad : {"",
                                  "hf://",
                                  "hf://a",
                                  "hf://a/b",
                                  "hf://a/b/",
                                  "hf:///b/c",
                                  "hf://a//c",
                                  "http://a/b/c",
                                  "hf://../b/c",
                                  "hf://a/../c",
                                  "hf://a/b/../c",
                                  "hf://a/b/c/..",
                                  "hf://a/b/./c",
                                  "hf://a/b//c",
                                  "hf://a/b/c\n",
                                  "hf://a/b/c\\d",
                                  "hf://a b/c/d",
                                  "hf://a/b/c@",
                                  "hf://a/b/c@x y",
                                  "hf://a/b/c@../..",
                                  "hf://a/b/c@..",
                                  "hf://a?x/b/c",
                                  "hf://a/b#/c",
                                  "hf://a/b/\x7f"}) {
        EXPECT_EQ(HubUrl::parse(bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
    }
    EXPECT_FALSE(HubUrl::parse("hf://a/" + std::string(97, 'b') + "/c").ok());
    EXPECT_FALSE(HubUrl::parse("hf://a/b/" + std::string(1025, 'c')).ok());
    EXPECT_FALSE(HubUrl::parse(std::string("hf://a/b/c\0d", 12)).ok());
}

TEST(Origin, SchemeHostAndPort) {
    const Origin https = *Origin::of("https://Example.org/path?x");
    EXPECT_EQ(https, *Origin::of("https://example.org:443/other"));
    EXPECT_NE(https, *Origin::of("http://example.org/path"));
    EXPECT_NE(https, *Origin::of("https://example.org:444/path"));
    EXPECT_NE(https, *Origin::of("https://example.org.evil.net/path"));
    EXPECT_NE(https, *Origin::of("https://evil.net/example.org"));
    for (const char * bad : {"", "example.org", "ftp://example.org", "file:///etc/passwd", "https://",
                             "https://u:p@example.org/", "https://example.org@evil.net/"}) {
        EXPECT_FALSE(Origin::of(bad).ok()) << bad;
    }
    EXPECT_TRUE(Origin::of("http://127.0.0.1:80/")->is_loopback());
    EXPECT_TRUE(Origin::of("http://localhost/")->is_loopback());
    EXPECT_TRUE(Origin::of("http://[::1]:8080/")->is_loopback());
    EXPECT_FALSE(Origin::of("http://127.evil.net/")->is_loopback());
    EXPECT_FALSE(Origin::of("http://10.0.0.1/")->is_loopback());
}

TEST(Redirect, Targets) {
    EXPECT_EQ(*redirect_target("https://hub.org/a/b", "/c/d?e"), "https://hub.org/c/d?e");
    EXPECT_EQ(*redirect_target("https://hub.org/a/b", "c"), "https://hub.org/a/c");
    EXPECT_EQ(*redirect_target("https://hub.org/a", "https://cdn.org/x?Signature=a~b"),
              "https://cdn.org/x?Signature=a~b");
    EXPECT_EQ(*redirect_target("http://hub.org/a", "https://cdn.org/x"), "https://cdn.org/x");
    for (const char * bad : {"http://hub.org/a", "http://cdn.org/x", "file:///etc/passwd", "ftp://cdn.org/x",
                             "gopher://x/", "https://user:pw@cdn.org/"}) {
        EXPECT_EQ(redirect_target("https://hub.org/a", bad).status().code(), absl::StatusCode::kFailedPrecondition)
            << bad;
    }
}

TEST(PublicAddress, KnowsSpecialNetworks) {
    for (const char * address :
         {"1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "192.169.0.1", "2606:4700::1111", "::ffff:8.8.8.8"}) {
        EXPECT_TRUE(is_public_address(address)) << address;
    }
    for (const char * address : {"127.0.0.1",
                                 "10.1.2.3",
                                 "172.16.0.1",
                                 "172.31.255.255",
                                 "192.168.1.1",
                                 "169.254.169.254",
                                 "0.0.0.0",
                                 "100.64.0.1",
                                 "224.0.0.1",
                                 "255.255.255.255",
                                 "::1",
                                 "::",
                                 "fe80::1",
                                 "fd00::1",
                                 "fc00::1",
                                 "ff02::1",
                                 "::ffff:127.0.0.1",
                                 "::ffff:169.254.169.254",
                                 "",
                                 "hub.org"}) {
        EXPECT_FALSE(is_public_address(address)) << address;
    }
}

class PartFileTest : public ::testing::Test {
protected:
    static constexpr char kText[] = "the content of a file";
    static std::span<const std::byte> bytes(std::string_view text) {
        return std::as_bytes(std::span(text.data(), text.size()));
    }
    static StatedContent stated(std::string_view text = kText) {
        StatedContent content;
        content.sha256 = Digest::of(text);
        content.size = text.size();
        return content;
    }
    PartFile open() {
        auto part = PartFile::open(folder_.path(), "name", [] { return true; });
        EXPECT_OK(part);
        return *std::move(part);
    }
    testing::TempFolder folder_;
};

TEST_F(PartFileTest, GoesOnWhereAnEarlierOneEnded) {
    {
        PartFile part = open();
        ASSERT_OK(part.begin(stated()));
        ASSERT_OK(part.set_etag("\"e\""));
        ASSERT_OK(part.append(bytes("the content")));
    }
    PartFile part = open();
    ASSERT_OK(part.begin(stated()));
    EXPECT_EQ(part.size(), 11u);
    EXPECT_EQ(part.etag(), "\"e\"");
    ASSERT_OK(part.append(bytes(" of a file")));
    const auto path = part.finish();
    ASSERT_OK(path);
    EXPECT_EQ(testing::read_file(*path), kText);
    part = PartFile(); // lets go of the lock
    EXPECT_EQ(testing::entries(folder_.path()), std::vector<std::string>{"name.gguf"});

    const PartFile again = open();
    EXPECT_EQ(*again.find_finished(stated()), *path);
    EXPECT_EQ(*again.find_finished(stated("other")), std::nullopt);
    testing::write_file(*path, "the content of a fil_");
    EXPECT_EQ(*again.find_finished(stated()), std::nullopt);
}

TEST_F(PartFileTest, BytesOfAnotherContentAreNotUsed) {
    {
        PartFile part = open();
        ASSERT_OK(part.begin(stated("something longer than the other, which is new")));
        ASSERT_OK(part.set_etag("\"e\""));
        ASSERT_OK(part.append(bytes("something")));
    }
    PartFile part = open();
    ASSERT_OK(part.begin(stated()));
    EXPECT_EQ(part.size(), 0u);
    // Nor are those whose source can't be told.
    ASSERT_OK(part.append(bytes("the")));
    ASSERT_OK(part.set_etag(""));
    part = PartFile(); // lets go of the lock
    part = open();
    ASSERT_OK(part.begin(stated()));
    EXPECT_EQ(part.size(), 0u);
}

TEST_F(PartFileTest, WrongBytesGetNoName) {
    PartFile part = open();
    ASSERT_OK(part.begin(stated()));
    ASSERT_OK(part.append(bytes("the content of a fil_")));
    const auto path = part.finish();
    EXPECT_EQ(path.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(path.status().message()), HasSubstr(Digest::of(kText).hex()));
    EXPECT_EQ(part.size(), 0u);
    ASSERT_OK(part.append(bytes(kText)));
    EXPECT_OK(part.finish());
}

TEST_F(PartFileTest, GitHashOfSmallFiles) {
    StatedContent content;
    content.git_sha1 = "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"; // printf hello | git hash-object --stdin
    content.size = 5;
    PartFile part = open();
    ASSERT_OK(part.begin(content));
    ASSERT_OK(part.append(bytes("hello")));
    EXPECT_OK(part.finish());
}

TEST_F(PartFileTest, TheSecondWaitsAndCanBeCancelled) {
    const PartFile part = open();
    int asked = 0;
    const auto second = PartFile::open(folder_.path(), "name", [&] { return ++asked < 3; });
    EXPECT_EQ(second.status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(asked, 3);
}

} // namespace
} // namespace strata::layers
