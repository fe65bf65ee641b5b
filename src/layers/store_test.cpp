#include "layers/store.h"
#include "layers/store_testing.h"

#include <gmock/gmock.h>

namespace strata::layers::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class StoreTest : public ::testing::Test {
protected:
    void SetUp() override {
        auto opened = Store::open(root());
        ASSERT_OK(opened);
        store_ = *std::move(opened);
    }
    std::filesystem::path root() const { return folder_.path() / "store"; }

    TempFolder folder_;
    std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, BlobsAreNamedByTheirDigest) {
    auto writer = store_->new_blob();
    ASSERT_OK(writer);
    ASSERT_OK(writer->append(std::as_bytes(std::span("ab", 2))));
    ASSERT_OK(writer->append(std::as_bytes(std::span("c", 1))));
    const auto digest = writer->finish(Digest::of("abc"));
    ASSERT_OK(digest);
    EXPECT_EQ(*digest, Digest::of("abc"));
    EXPECT_TRUE(store_->has(*digest));
    EXPECT_EQ(read_file(store_->blob_path(*digest)), "abc");
    EXPECT_EQ(*store_->get(*digest, 3), "abc");
    EXPECT_EQ(store_->get(*digest, 2).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(store_->get(Digest::of("other"), 3).status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(entries(root() / "tmp"), IsEmpty());
}

TEST_F(StoreTest, OtherBytesThanExpectedLeaveNothing) {
    auto writer = store_->new_blob();
    ASSERT_OK(writer);
    ASSERT_OK(writer->append(std::as_bytes(std::span("abc", 3))));
    EXPECT_EQ(writer->finish(Digest::of("abd")).status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(entries(root() / "blobs/sha256"), IsEmpty());
    EXPECT_THAT(entries(root() / "tmp"), IsEmpty());
}

TEST_F(StoreTest, AWriterThatGivesUpLeavesNothing) {
    {
        auto writer = store_->new_blob();
        ASSERT_OK(writer);
        ASSERT_OK(writer->append(std::as_bytes(std::span("abc", 3))));
        EXPECT_EQ(entries(root() / "tmp").size(), 1u);
    }
    EXPECT_THAT(entries(root() / "tmp"), IsEmpty());
}

TEST_F(StoreTest, AModelReadsBackAsItWasWritten) {
    const FakeModel model = FakeModel::make("a");
    const auto digest = write_model(*store_, "org/a:q4_1", model);
    ASSERT_OK(digest);
    // By another store object, so that nothing comes from the cache.
    auto again = Store::open(root());
    ASSERT_OK(again);
    const auto found = (*again)->find(model_name("org/a:q4_1"));
    ASSERT_OK(found);
    EXPECT_EQ(found->manifest, *digest);
    EXPECT_EQ(found->index->architecture, "llama");
    EXPECT_EQ(found->index->quantization, "Q4_1");
    EXPECT_EQ(found->index->parameters, 134'515'008u);
    EXPECT_EQ(found->index->context_tokens, 8192u);
    EXPECT_EQ(found->index->metadata, model.index().metadata);
    ASSERT_EQ(found->index->layers.size(), model.layers.size());
    const LayerEntry & block = found->index->layers[2];
    EXPECT_EQ(block.kind, LayerKind::kBlock);
    EXPECT_EQ(block.block, 0);
    EXPECT_EQ(block.digest, Digest::of(model.layers[2]));
    EXPECT_EQ(block.size, model.layers[2].size());
    ASSERT_EQ(block.tensors.size(), 2u);
    const TensorEntry expected = model.index().layers[2].tensors[1];
    EXPECT_EQ(block.tensors[1].name, expected.name);
    EXPECT_EQ(block.tensors[1].type, expected.type);
    EXPECT_EQ(block.tensors[1].shape, expected.shape);
    EXPECT_EQ(block.tensors[1].offset, expected.offset);
    EXPECT_EQ(block.tensors[1].length, expected.length);
    EXPECT_EQ(block.tensors[1].sha256, expected.sha256);
    ASSERT_TRUE(found->lineage.has_value());
    EXPECT_EQ(found->lineage->origin, "fake.gguf");
    EXPECT_EQ(found->lineage->origin_sha256, Digest::of("fake.gguf"));
    EXPECT_EQ(found->lineage->created_unix_ms, 1'700'000'000'000);
}

} // namespace
} // namespace strata::layers::testing
