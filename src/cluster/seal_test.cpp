#include "base/temp_folder_testing.h"
#include "cluster/seal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

namespace strata::cluster {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(SealTest, opens_what_it_closed) {
    const strata::testing::TempFolder folder;
    const auto seal = Seal::open(folder.path() / "seal.key");
    ASSERT_TRUE(seal.ok()) << seal.status();
    const std::string text = "a secret \n of any length";
    for (size_t length = 0; length <= text.size(); ++length) {
        const auto closed = seal->close(text.substr(0, length), "here");
        ASSERT_TRUE(closed.ok());
        EXPECT_THAT(*closed, Not(HasSubstr("secret")));
        EXPECT_NE(*closed, *seal->close(text.substr(0, length), "here"));
        EXPECT_EQ(seal->open(*closed, "here").value_or("(not opened)"), text.substr(0, length));
    }
    // The key's file is what counts.
    EXPECT_EQ(Seal::open(folder.path() / "seal.key")->open(*seal->close(text, "here"), "here").value_or(""), text);
}

TEST(SealTest, opens_nothing_else) {
    const strata::testing::TempFolder folder;
    const Seal seal = Seal::open(folder.path() / "a").value();
    const Seal other = Seal::open(folder.path() / "b").value();
    const std::string closed = seal.close("a secret", "here").value();
    EXPECT_TRUE(absl::IsDataLoss(other.open(closed, "here").status()));
    EXPECT_TRUE(absl::IsDataLoss(seal.open(closed, "there").status()));
    for (size_t i = 0; i < closed.size(); ++i) {
        std::string changed = closed;
        changed[i] = changed[i] == 'A' ? 'B' : 'A';
        EXPECT_TRUE(absl::IsDataLoss(seal.open(changed, "here").status())) << i;
        EXPECT_TRUE(absl::IsDataLoss(seal.open(closed.substr(0, i), "here").status())) << i;
    }
}

TEST(SealTest, its_key_is_nobody_elses) {
    const strata::testing::TempFolder folder;
    const auto file = folder.path() / "seal.key";
    ASSERT_TRUE(Seal::open(file).ok());
    struct stat info {};
    ASSERT_EQ(::stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600U);
    ASSERT_EQ(::chmod(file.c_str(), 0640), 0);
    EXPECT_TRUE(absl::IsPermissionDenied(Seal::open(file).status()));
    ASSERT_EQ(::chmod(file.c_str(), 0600), 0);
    std::ofstream(file) << "too short";
    EXPECT_TRUE(absl::IsDataLoss(Seal::open(file).status()));
    EXPECT_TRUE(absl::IsNotFound(Seal::open(folder.path() / "none" / "seal.key").status()));
}

} // namespace
} // namespace strata::cluster
