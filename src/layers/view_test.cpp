#include "layers/store.h"
#include "layers/store_testing.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

namespace strata::layers::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ViewTest : public ::testing::Test {
protected:
    void SetUp() override {
        auto opened = Store::open(root());
        ASSERT_OK(opened);
        store_ = *std::move(opened);
        ASSERT_OK(write_model(*store_, "one", model_));
    }
    std::filesystem::path root() const { return folder_.path() / "home/store"; }
    std::filesystem::path views() const { return folder_.path() / "home/views"; }
    StoredModel stored() const {
        const auto found = store_->find(model_name("one"));
        EXPECT_OK(found);
        return *found;
    }

    TempFolder folder_;
    FakeModel model_ = FakeModel::make("one");
    std::unique_ptr<Store> store_;
};

TEST_F(ViewTest, IsASplitModelOfLinks) {
    const auto first = store_->materialise(stored(), views());
    ASSERT_OK(first);
    EXPECT_EQ(first->filename(), "model-00001-of-00005.gguf");
    EXPECT_EQ(first->parent_path().filename(), stored().manifest.hex());
    EXPECT_THAT(entries(first->parent_path()),
                ElementsAre("model-00001-of-00005.gguf", "model-00002-of-00005.gguf", "model-00003-of-00005.gguf",
                            "model-00004-of-00005.gguf", "model-00005-of-00005.gguf"));
    EXPECT_EQ(read_file(*first), model_.layers[0]);
    EXPECT_EQ(read_file(first->parent_path() / "model-00005-of-00005.gguf"), model_.layers[4]);

    const auto again = store_->materialise(stored(), views());
    ASSERT_OK(again);
    EXPECT_EQ(*again, *first);
    EXPECT_EQ(entries(views()).size(), 1u);
}

TEST_F(ViewTest, HollowLayersHaveTheirHeadersAndAHole) {
    std::filesystem::remove(store_->blob_path(Digest::of(model_.layers[3])));
    HollowLayers hollow;
    hollow.layers = {2, 3};
    hollow.header = [](size_t layer) { return fmt::format("the header of layer {}", layer); };
    const auto first = store_->materialise(stored(), views(), hollow);
    ASSERT_OK(first);
    const auto file = [&](int number) {
        return first->parent_path() / fmt::format("model-0000{}-of-00005.gguf", number);
    };
    EXPECT_EQ(read_file(file(2)), model_.layers[1]);
    // Of a layer that is in the store: what is before its first tensor, at 32.
    EXPECT_EQ(read_file(file(3)), model_.layers[2].substr(0, 32) + std::string(model_.layers[2].size() - 32, '\0'));
    const std::string made = "the header of layer 3";
    EXPECT_EQ(read_file(file(4)), made + std::string(model_.layers[3].size() - made.size(), '\0'));

    // Another choice of layers is another view, and this one needs a layer that is gone.
    hollow.layers = {2};
    EXPECT_TRUE(absl::IsDataLoss(store_->materialise(stored(), views(), hollow).status()));
    hollow.layers = {2, 3};
    std::filesystem::resize_file(file(4), 10); // somebody was here
    const auto again = store_->materialise(stored(), views(), hollow);
    ASSERT_OK(again);
    EXPECT_EQ(*again, *first);
    EXPECT_EQ(read_file(file(4)).size(), model_.layers[3].size());

    ASSERT_OK(store_->remove(model_name("one")));
    GcOptions options;
    options.grace = std::chrono::milliseconds(0);
    options.views = views();
    ASSERT_OK(store_->collect_garbage(options));
    EXPECT_THAT(entries(views()), IsEmpty());
}

TEST_F(ViewTest, SurvivesAMoveOfTheHome) {
    const auto first = store_->materialise(stored(), views());
    ASSERT_OK(first);
    const auto moved = folder_.path() / "elsewhere";
    std::filesystem::rename(folder_.path() / "home", moved);
    EXPECT_EQ(read_file(moved / "views" / first->parent_path().filename() / first->filename()), model_.layers[0]);
}

TEST_F(ViewTest, ARelativeFolderIsOneInTheCurrentFolder) {
    const std::filesystem::path before = std::filesystem::current_path();
    std::filesystem::current_path(folder_.path());
    const auto first = store_->materialise(stored(), "relative/views/");
    std::filesystem::current_path(before);
    ASSERT_OK(first);
    EXPECT_TRUE(first->is_absolute());
    EXPECT_EQ(read_file(*first), model_.layers[0]);
}

TEST_F(ViewTest, WorksThroughALinkedFolder) {
    std::filesystem::create_directories(folder_.path() / "far/away/views");
    std::filesystem::create_directory_symlink(folder_.path() / "far/away/views", folder_.path() / "linked");
    const auto first = store_->materialise(stored(), folder_.path() / "linked");
    ASSERT_OK(first);
    EXPECT_EQ(read_file(*first), model_.layers[0]);
}

TEST_F(ViewTest, ASpoiledViewIsMadeAnew) {
    const auto first = store_->materialise(stored(), views());
    ASSERT_OK(first);
    std::filesystem::remove(*first);
    std::filesystem::create_symlink("/etc/passwd", *first);
    ASSERT_OK(store_->materialise(stored(), views()));
    EXPECT_EQ(read_file(*first), model_.layers[0]);
    EXPECT_EQ(entries(views()).size(), 1u);
}

TEST_F(ViewTest, AMissingLayerIsNamed) {
    const StoredModel model = stored();
    std::filesystem::remove(store_->blob_path(Digest::of(model_.layers[3])));
    const auto first = store_->materialise(model, views());
    EXPECT_EQ(first.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(status_text(first), HasSubstr("block 1 of one:latest"));
    EXPECT_THAT(entries(views()), IsEmpty());
}

TEST_F(ViewTest, GarbageCollectionTakesViewsOfModelsThatAreGone) {
    ASSERT_OK(write_model(*store_, "two", FakeModel::make("two")));
    const auto kept = store_->materialise(*store_->find(model_name("two")), views());
    ASSERT_OK(kept);
    ASSERT_OK(store_->materialise(stored(), views()));
    std::filesystem::create_directory(views() / ".unfinished-1-2");
    ASSERT_OK(store_->remove(model_name("one")));
    GcOptions options;
    options.grace = std::chrono::milliseconds(0);
    options.views = views();
    ASSERT_OK(store_->collect_garbage(options));
    EXPECT_THAT(entries(views()), ElementsAre(kept->parent_path().filename().native()));
}

} // namespace
} // namespace strata::layers::testing
