#include "layers/faulty_disk.h"
#include "layers/gguf_testing.h"
#include "layers/import.h"
#include "layers/store_testing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace strata::layers {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::small_model;

class ImportTest : public ::testing::Test {
protected:
    void SetUp() override {
        auto store = Store::open(folder_.path() / "store");
        ASSERT_OK(store);
        store_ = *std::move(store);
    }
    std::filesystem::path write(const std::string & name, const std::string & bytes) {
        testing::write_file(folder_.path() / name, bytes);
        return folder_.path() / name;
    }
    absl::StatusOr<Digest> import(const std::vector<std::filesystem::path> & files, const std::string & name = "small",
                                  const ImportOptions & options = {}) {
        return import_gguf(*store_, files, testing::model_name(name), options);
    }
    std::vector<std::string> blobs() const { return testing::entries(store_->root() / "blobs/sha256"); }
    std::vector<std::string> temporary() const { return testing::entries(store_->root() / "tmp"); }

    testing::TempFolder folder_;
    std::unique_ptr<Store> store_;
};

TEST_F(ImportTest, TheIndexSaysWhatTheBlobsAre) {
    const GgufBuilder builder = small_model(2);
    ASSERT_OK(import({write("Small.gguf", builder.build())}));
    const auto model = store_->find(testing::model_name("small"));
    ASSERT_OK(model);
    const ModelIndex & index = *model->index;
    EXPECT_EQ(index.architecture, "llama");
    EXPECT_EQ(index.quantization, "Q4_1");
    EXPECT_EQ(index.context_tokens, 128u);
    EXPECT_EQ(index.parameters, 128u + 2 * (64 + 33) + 32);
    EXPECT_THAT(index.metadata, ::testing::Contains(std::pair<std::string, std::string>("general.name", "Small")));
    ASSERT_EQ(index.layers.size(), 5u);
    EXPECT_EQ(index.layers[3].kind, LayerKind::kBlock);
    EXPECT_EQ(index.layers[3].block, 1);
    ASSERT_TRUE(model->lineage.has_value());
    EXPECT_EQ(model->lineage->operation, "import");
    EXPECT_EQ(model->lineage->origin, "Small.gguf");

    size_t tensors = 0;
    for (const LayerEntry & layer : index.layers) {
        const std::string blob = testing::read_file(store_->blob_path(layer.digest));
        EXPECT_EQ(blob.size(), layer.size);
        EXPECT_EQ(Digest::of(blob), layer.digest);
        EXPECT_OK(check_layer(layer, store_->blob_path(layer.digest)));
        for (const TensorEntry & tensor : layer.tensors) {
            EXPECT_EQ(Digest::of(blob.substr(tensor.offset, tensor.length)), tensor.sha256) << tensor.name;
            const auto source = std::find_if(builder.tensors.begin(), builder.tensors.end(),
                                             [&](const auto & other) { return other.name == tensor.name; });
            ASSERT_NE(source, builder.tensors.end());
            EXPECT_EQ(tensor.sha256, Digest::of(source->data));
            EXPECT_EQ(tensor.shape, source->shape);
            ++tensors;
        }
    }
    EXPECT_EQ(tensors, builder.tensors.size());
    EXPECT_EQ(testing::problems(*store_), "");
    EXPECT_TRUE(temporary().empty());
}

TEST_F(ImportTest, ModelsThatDifferInOneBlockShareTheOthers) {
    ASSERT_OK(import({write("one.gguf", small_model(3).build())}, "one"));
    const size_t before = blobs().size();
    GgufBuilder other = small_model(3);
    other.tensors[3].data[0] ^= 1; // in block 1
    ASSERT_OK(import({write("two.gguf", other.build())}, "two"));
    const auto one = store_->find(testing::model_name("one"));
    const auto two = store_->find(testing::model_name("two"));
    ASSERT_OK(one);
    ASSERT_OK(two);
    for (size_t i = 0; i < one->index->layers.size(); ++i) {
        EXPECT_EQ(one->index->layers[i].digest != two->index->layers[i].digest, i == 3) << i;
    }
    EXPECT_GT(blobs().size(), before);
}

TEST_F(ImportTest, TheSameModelAgainHasTheSameDigest) {
    const auto file = write("one.gguf", small_model().build());
    const auto first = import({file});
    const auto second = import({file}, "again");
    ASSERT_OK(first);
    ASSERT_OK(second);
    EXPECT_EQ(*first, *second);
}

TEST_F(ImportTest, TensorsOfManyChunksAndThreads) {
    GgufBuilder builder = small_model(3);
    builder.tensor("output.weight", {1000, 777}, 7); // 3 MB, of no round length
    builder.tensor("blk.2.ffn_up.weight", {1 << 18}, 8);
    const auto file = write("large.gguf", builder.build());
    std::optional<Digest> first;
    for (const int threads : {1, 2, 7, -1, 10000}) {
        ImportOptions options;
        options.threads = threads;
        const auto digest = import({file}, "large", options);
        ASSERT_OK(digest);
        EXPECT_EQ(first.value_or(*digest), *digest);
        first = *digest;
    }
    EXPECT_EQ(testing::problems(*store_), "");
}

TEST_F(ImportTest, NothingStaysOfARefusedModel) {
    const std::string whole = small_model().build();
    for (const std::string & bytes : {std::string(), std::string("GGUF"), whole.substr(0, whole.size() - 40),
                                      small_model().text("general.name", "x").build()}) {
        const auto file = write("bad.gguf", bytes);
        const auto result = import({file});
        EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(result.status().message()), HasSubstr(file.string()));
        EXPECT_TRUE(blobs().empty());
        EXPECT_TRUE(temporary().empty());
    }
    EXPECT_TRUE(store_->list()->empty());
}

TEST_F(ImportTest, ProgressReachesTheEndAndCancels) {
    const auto file = write("one.gguf", small_model().build());
    uint64_t last = 0;
    uint64_t all = 0;
    ImportOptions options;
    options.progress = [&](uint64_t done, uint64_t total) {
        EXPECT_GE(done, last);
        EXPECT_LE(done, total);
        last = done;
        all = total;
        return true;
    };
    ASSERT_OK(import({file}, "one", options));
    EXPECT_GT(all, 0u);
    EXPECT_EQ(last, all);

    const std::vector<std::string> before = blobs();
    GgufBuilder other = small_model();
    other.text("general.author", "x");
    int calls = 0;
    options.progress = [&](uint64_t, uint64_t) { return ++calls < 4; };
    const auto cancelled = import({write("two.gguf", other.build())}, "two", options);
    EXPECT_EQ(cancelled.status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(blobs(), before);
    EXPECT_TRUE(temporary().empty());
}

TEST_F(ImportTest, AFullDiskAtAnyOperation) {
    const auto file = write("one.gguf", small_model().build());
    for (int at = 1;; ++at) {
        testing::TempFolder home;
        testing::FaultyDisk disk(testing::FaultyDisk::Fault::kFull, at);
        const auto store = Store::open(home.path() / "store", disk);
        if (!store.ok()) continue; // the disk was full before there was a store
        const auto result = import_gguf(**store, {file}, testing::model_name("full"), {});
        if (!disk.struck()) {
            ASSERT_OK(result);
            break;
        }
        const bool named = !(*store)->list()->empty();
        // The last step may fail after the name is to be seen; then the model is whole.
        EXPECT_TRUE(named || !result.ok()) << at;
        EXPECT_TRUE(result.ok() || absl::IsResourceExhausted(result.status())) << at << ": " << result.status();
        EXPECT_EQ(testing::problems(**store), "") << at;
        EXPECT_THAT(testing::entries(home.path() / "store/tmp"), ::testing::IsEmpty()) << at;
        // Shards of a model that was not named are taken back at once.
        for (const std::string & blob : testing::entries(home.path() / "store/blobs/sha256")) {
            const std::string bytes = testing::read_file(home.path() / "store/blobs/sha256" / blob);
            EXPECT_TRUE(named || !bytes.starts_with("GGUF")) << at;
        }
    }
}

TEST_F(ImportTest, CheckLayerFindsWhatIsNotInTheIndex) {
    ASSERT_OK(import({write("one.gguf", small_model().build())}));
    const auto model = store_->find(testing::model_name("small"));
    ASSERT_OK(model);
    const LayerEntry & layer = model->index->layers[2];
    const std::filesystem::path blob = store_->blob_path(layer.digest);
    EXPECT_OK(check_layer(layer, blob));
    const auto refused = [&](auto change, const std::string & sentence) {
        LayerEntry other = layer;
        change(other);
        EXPECT_THAT(std::string(check_layer(other, blob).message()), HasSubstr(sentence));
    };
    refused([](LayerEntry & l) { l.size += 1; }, "bytes, but the index of its model says");
    refused([](LayerEntry & l) { l.tensors.pop_back(); }, "has 2 tensors, but the index of its model says 1");
    refused([](LayerEntry & l) { l.tensors[1].offset += 32; }, "tensor \"blk.0.attn_q.weight\": is not what the index");
    refused([](LayerEntry & l) { l.tensors[1].type = "F32"; }, "tensor \"blk.0.attn_q.weight\": is not what the index");
    refused(
        [](LayerEntry & l) {
            l.tensors[0].shape = {32, 1};
        },
        "tensor \"blk.0.attn_norm.weight\": is not what the index");
    // The head of a model that import would have refused.
    EXPECT_OK(check_layer(model->index->layers[0], store_->blob_path(model->index->layers[0].digest)));
    const std::string bad_head = GgufBuilder().text("general.architecture", "llama").u16("split.no", 0).build();
    LayerEntry head = model->index->layers[0];
    head.size = bad_head.size();
    EXPECT_THAT(std::string(check_layer(head, write("head", bad_head)).message()),
                HasSubstr("\"llama.block_count\" is missing"));
    LayerEntry whole = layer;
    const std::string file = small_model().build();
    whole.size = file.size();
    EXPECT_THAT(std::string(check_layer(whole, write("whole", file)).message()), HasSubstr("\"split.no\" is missing"));
}

} // namespace
} // namespace strata::layers
