#include "layers/store.h"
#include "layers/store_testing.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

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

TEST_F(StoreTest, EqualModelsHaveEqualDigestsWhateverTheirName) {
    const auto one = write_model(*store_, "one", FakeModel::make("a"), fake_lineage("here.gguf"));
    const auto two = write_model(*store_, "two:v2", FakeModel::make("a"), fake_lineage("there.gguf"));
    ASSERT_OK(one);
    ASSERT_OK(two);
    EXPECT_EQ(*one, *two);
    // The newest lineage is the one that is kept.
    EXPECT_EQ(store_->find(model_name("one"))->lineage->origin, "there.gguf");
    EXPECT_EQ(store_->find(model_name("two:v2"))->lineage->origin, "there.gguf");
}

TEST_F(StoreTest, ANameMovesToTheNewModel) {
    ASSERT_OK(write_model(*store_, "m", FakeModel::make("old")));
    const auto fresh = write_model(*store_, "m", FakeModel::make("new"));
    ASSERT_OK(fresh);
    const auto models = store_->list();
    ASSERT_OK(models);
    ASSERT_EQ(models->size(), 1u);
    EXPECT_EQ(models->front().manifest, *fresh);
}

TEST_F(StoreTest, ListIsSortedAndSizesAreOfAllBlobs) {
    ASSERT_OK(write_model(*store_, "b", FakeModel::make("b")));
    ASSERT_OK(write_model(*store_, "a:2", FakeModel::make("a")));
    ASSERT_OK(write_model(*store_, "a:1", FakeModel::make("a")));
    const auto models = store_->list();
    ASSERT_OK(models);
    std::vector<std::string> names;
    for (const StoredModel & model : *models) {
        names.push_back(model.name.to_string());
        uint64_t bytes = 0;
        for (const Digest & digest : model.blobs) bytes += std::filesystem::file_size(store_->blob_path(digest));
        EXPECT_EQ(model.size, bytes);
        EXPECT_EQ(model.blobs.size(), model.index->layers.size() + 3);
    }
    EXPECT_THAT(names, ElementsAre("a:1", "a:2", "b:latest"));
}

TEST_F(StoreTest, SharedLayersAreSeen) {
    FakeModel two = FakeModel::make("one");
    two.layers[3] = FakeModel::make("two").layers[3];
    ASSERT_OK(write_model(*store_, "one", FakeModel::make("one")));
    const auto before = store_->size_bytes();
    ASSERT_OK(write_model(*store_, "two", two));
    // A layer of 1000 bytes and documents, not a model of 5000.
    EXPECT_LT(*store_->size_bytes() - *before - FakeModel::make("two").layers[3].size(), 6000u);
    const auto users = models_by_layer(*store_->list());
    EXPECT_THAT(users.at(Digest::of(two.layers[1])), ElementsAre(model_name("one"), model_name("two")));
    EXPECT_THAT(users.at(Digest::of(two.layers[3])), ElementsAre(model_name("two")));
}

TEST_F(StoreTest, AModelThatIsNotThereSaysWhichAre) {
    EXPECT_THAT(status_text(store_->find(model_name("x"))), HasSubstr("the store is empty"));
    ASSERT_OK(write_model(*store_, "one", FakeModel::make("one")));
    const auto found = store_->find(model_name("x"));
    EXPECT_EQ(found.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(status_text(found), HasSubstr("there are one:latest"));
    EXPECT_EQ(store_->remove(model_name("x")).code(), absl::StatusCode::kNotFound);
}

TEST_F(StoreTest, ABlobOfTheWrongSizeIsReplaced) {
    write_file(store_->blob_path(Digest::of("whole")), "wh");
    ASSERT_OK(store_->put("whole"));
    EXPECT_EQ(read_file(store_->blob_path(Digest::of("whole"))), "whole");
}

TEST_F(StoreTest, ADamagedBlobIsReplaced) {
    write_file(store_->blob_path(Digest::of("whole")), "whale");
    ASSERT_OK(store_->put("whole"));
    EXPECT_EQ(read_file(store_->blob_path(Digest::of("whole"))), "whole");
}

TEST_F(StoreTest, ABlobThatIsThereIsLeftAsItIs) {
    const auto digest = store_->put("blob");
    ASSERT_OK(digest);
    struct stat before {};
    struct stat after {};
    ASSERT_EQ(::stat(store_->blob_path(*digest).c_str(), &before), 0);
    ASSERT_OK(store_->put("blob"));
    ASSERT_EQ(::stat(store_->blob_path(*digest).c_str(), &after), 0);
    EXPECT_EQ(before.st_ino, after.st_ino); // what maps it keeps the pages
}

TEST_F(StoreTest, ImportOfALayoutTakesNameLineageAndBlobs) {
    const auto digest = write_model(*store_, "one", FakeModel::make("one"), fake_lineage("first.gguf"));
    ASSERT_OK(digest);
    auto other = Store::open(folder_.path() / "other");
    ASSERT_OK(other);
    uint64_t last = 0;
    int checked = 0;
    const auto imported = (*other)->import_oci(
        root(), "", model_name("mine:v1"),
        [&](uint64_t done, uint64_t total) {
            EXPECT_GT(done, last);
            EXPECT_LE(done, total);
            last = done;
            return true;
        },
        [&](const LayerEntry & layer, const std::filesystem::path & blob) {
            ++checked;
            return Digest::of(read_file(blob)) == layer.digest ? absl::OkStatus() : absl::InternalError("other bytes");
        });
    ASSERT_OK(imported);
    EXPECT_EQ(*imported, *digest);
    EXPECT_EQ(checked, 5);
    const auto model = (*other)->find(model_name("mine:v1"));
    ASSERT_OK(model);
    EXPECT_EQ(last, model->size);
    EXPECT_EQ(model->lineage->origin, "first.gguf");
    EXPECT_EQ(problems(**other), "");
}

TEST_F(StoreTest, ImportOfALayoutAsksWhichModel) {
    ASSERT_OK(write_model(*store_, "one", FakeModel::make("one")));
    const auto two = write_model(*store_, "two", FakeModel::make("two"));
    ASSERT_OK(two);
    auto other = Store::open(folder_.path() / "other");
    ASSERT_OK(other);
    const auto several = (*other)->import_oci(root(), "", model_name("x"), nullptr);
    EXPECT_EQ(several.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(status_text(several), HasSubstr("one:latest, two:latest"));
    EXPECT_EQ((*other)->import_oci(root(), "three", model_name("x"), nullptr).status().code(),
              absl::StatusCode::kNotFound);
    ASSERT_OK((*other)->import_oci(root(), two->to_string(), model_name("x"), nullptr));
    EXPECT_EQ((*other)->find(model_name("x"))->manifest, *two);
    EXPECT_THAT(status_text((*other)->import_oci(folder_.path(), "", model_name("x"), nullptr)),
                HasSubstr("is not an OCI image layout"));
}

TEST_F(StoreTest, ARefusedImportOfALayoutLeavesNothing) {
    const FakeModel model = FakeModel::make("one", 1, 3'000'000);
    ASSERT_OK(write_model(*store_, "one", model));
    auto other = Store::open(folder_.path() / "other");
    ASSERT_OK(other);
    const auto expect_nothing = [&] {
        EXPECT_THAT(entries(folder_.path() / "other/blobs/sha256"), IsEmpty());
        EXPECT_THAT(entries(folder_.path() / "other/tmp"), IsEmpty());
        EXPECT_THAT(entries(folder_.path() / "other/leases"), IsEmpty());
        EXPECT_THAT(*(*other)->list(), IsEmpty());
    };
    // By the check of a layer,
    const auto refused =
        (*other)->import_oci(root(), "", model_name("x"), nullptr, [](const auto & layer, const auto &) {
            return layer.kind == LayerKind::kTail ? absl::InvalidArgumentError("odd tail") : absl::OkStatus();
        });
    EXPECT_THAT(status_text(refused), HasSubstr("odd tail"));
    expect_nothing();
    // by the person,
    int calls = 0;
    EXPECT_EQ((*other)
                  ->import_oci(root(), "", model_name("x"), [&](uint64_t, uint64_t) { return ++calls < 6; })
                  .status()
                  .code(),
              absl::StatusCode::kCancelled);
    expect_nothing();
    // and by a flipped byte.
    std::string bytes = model.layers[2];
    bytes[2'000'000] ^= 1;
    write_file(store_->blob_path(Digest::of(model.layers[2])), bytes);
    const auto damaged = (*other)->import_oci(root(), "", model_name("x"), nullptr);
    EXPECT_EQ(damaged.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(status_text(damaged), HasSubstr(Digest::of(model.layers[2]).hex()));
    expect_nothing();
}

} // namespace
} // namespace strata::layers::testing
