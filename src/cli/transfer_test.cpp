#include "cli/imported_files.h"
#include "cli/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace strata::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

class Transfer : public ::testing::Test {
protected:
    void SetUp() override {
        // Of its own: cases run at the same time.
        std::string name = fs::path(::testing::TempDir()) / "strata-transfer-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder_ = name;
    }
    void TearDown() override { fs::remove_all(folder_); }

    std::string file(const std::string & name, const std::string & text = "x") const {
        std::ofstream(folder_ / name) << text;
        return folder_ / name;
    }

    fs::path folder_;
};

TEST_F(Transfer, OnePartOfASplitModelStandsForAll) {
    const std::string first = file("m-00001-of-00002.gguf");
    const std::string second = file("m-00002-of-00002.gguf");
    EXPECT_THAT(*import_sources({second}), ElementsAre(first, second));
    EXPECT_THAT(*import_sources({second, first}), ElementsAre(second, first)); // as it was asked for
    fs::remove(first);
    EXPECT_EQ(import_sources({second}).status().code(), absl::StatusCode::kNotFound);
    // Names that only look like one.
    for (const char * name : {"m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-0001-of-00002.gguf", "-00001.gguf",
                              "m-+0001-of-00001.gguf"}) {
        const std::string path = file(name);
        EXPECT_THAT(*import_sources({path}), ElementsAre(path));
    }
}

TEST_F(Transfer, SourcesAreAbsoluteFilesOrOneLayout) {
    const fs::path before = fs::current_path();
    file("m.gguf");
    fs::current_path(folder_);
    EXPECT_THAT(*import_sources({"./m.gguf"}), ElementsAre((fs::current_path() / "m.gguf").native()));
    EXPECT_THAT(*import_sources({"oci:layout:tag"}),
                ElementsAre("oci:" + (fs::current_path() / "layout:tag").native()));
    fs::current_path(before);
    EXPECT_FALSE(import_sources({"oci:a", "oci:b"}).ok());
    EXPECT_FALSE(import_sources({folder_}).ok());
    EXPECT_EQ(import_sources({folder_ / "none.gguf"}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(Transfer, ImportedFilesAreKnownUntilTheyChange) {
    const Home home{folder_};
    const ImportedFiles known(home);
    const std::string path = file("m.gguf");
    EXPECT_FALSE(known.find({path}).has_value());
    known.remember({path}, {"m:latest", "sha256:1"});
    known.remember({file("other.gguf")}, {"other:latest", "sha256:2"});
    ASSERT_TRUE(known.find({path}).has_value());
    EXPECT_EQ(known.find({path})->model, "m:latest");
    EXPECT_EQ(known.find({path})->digest, "sha256:1");

    fs::last_write_time(path, fs::last_write_time(path) + std::chrono::seconds(1));
    EXPECT_FALSE(known.find({path}).has_value());
    EXPECT_FALSE(known.find({folder_ / "gone.gguf"}).has_value());

    // A damaged file is an empty one.
    for (const char * text : {"", "{", "[]", R"({"x":1})"}) {
        file("imported-files.json", text);
        EXPECT_FALSE(known.find({path}).has_value());
    }
    known.remember({path}, {"m:latest", "sha256:1"});
    EXPECT_TRUE(known.find({path}).has_value());
}

} // namespace
} // namespace strata::cli
