// A store folder that somebody else has filled: everything in it may lie.
#include "layers/limits.h"
#include "layers/model_json.h"
#include "layers/oci.h"
#include "layers/store.h"
#include "layers/store_testing.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/stat.h>

namespace strata::layers::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

void replace(std::string & text, const std::string & what, const std::string & with) {
    const size_t at = text.find(what);
    ASSERT_NE(at, std::string::npos) << what;
    text.replace(at, what.size(), with);
}

class HostileStoreTest : public ::testing::Test {
protected:
    void SetUp() override { open(); }

    void open() {
        auto opened = Store::open(root());
        ASSERT_OK(opened);
        store_ = *std::move(opened);
    }
    std::filesystem::path root() const { return folder_.path() / "store"; }

    // A model whose index and manifest were changed by `change_index` and `change_manifest` before they were written.
    using Change = std::function<void(std::string &)>;
    void plant(const Change & change_index, const Change & change_manifest) {
        for (const std::string & layer : model_.layers) ASSERT_OK(store_->put(layer));
        std::string index_text = model_index_to_json(model_.index());
        if (change_index) change_index(index_text);
        oci::Descriptor index_layer = put(index_text, oci::kMediaWeightConfig);
        std::string manifest_text =
            oci::to_json(make_model_manifest(model_.index(), put("{}", oci::kMediaModelConfig), index_layer));
        if (change_manifest) change_manifest(manifest_text);
        name(put(manifest_text, oci::kMediaManifest));
    }
    oci::Descriptor put(const std::string & bytes, const char * media_type) {
        EXPECT_OK(store_->put(bytes));
        return oci::describe(bytes, media_type);
    }
    // Makes it the only entry of index.json, "bad:latest".
    void name(oci::Descriptor manifest) {
        manifest.media_type = oci::kMediaManifest;
        manifest.artifact_type = oci::kArtifactModel;
        manifest.annotations[oci::kAnnotationRefName] = "bad:latest";
        write_file(root() / "index.json", oci::to_json(oci::Index{{manifest}}));
    }

    // Finding fails, listing goes on, and garbage collection and removal do no harm.
    void expect_refused(const std::string & reason) {
        const auto found = store_->find(model_name("bad"));
        EXPECT_FALSE(found.ok());
        EXPECT_THAT(status_text(found), AllOf(HasSubstr("bad:latest"), HasSubstr(reason)));
        const auto models = store_->list();
        ASSERT_OK(models);
        EXPECT_THAT(*models, IsEmpty());
        ASSERT_OK(store_->remove(model_name("bad")));
        ASSERT_OK(store_->collect_garbage({}));
    }

    TempFolder folder_;
    FakeModel model_ = FakeModel::make("bad");
    std::unique_ptr<Store> store_;
};

TEST_F(HostileStoreTest, TheUnchangedModelIsTaken) {
    plant(nullptr, nullptr);
    ASSERT_OK(store_->find(model_name("bad")));
    auto other = Store::open(folder_.path() / "other");
    ASSERT_OK(other);
    for (const auto & [reference, origin] : {std::pair("", ""), {"bad:latest", ":bad:latest"}}) {
        ASSERT_OK((*other)->import_oci(root(), reference, model_name("x"), nullptr));
        EXPECT_EQ((*other)->find(model_name("x"))->lineage->origin, "oci:" + root().native() + origin);
    }
}

TEST_F(HostileStoreTest, ADigestThatIsAPathIsRefused) {
    plant(nullptr, [&](std::string & manifest) {
        replace(manifest, Digest::of(model_.layers[2]).to_string(), "sha256:../../../../../../../etc/passwd");
    });
    expect_refused("etc/passwd");
}

TEST_F(HostileStoreTest, AnIndexWithADigestThatIsAPathIsRefused) {
    plant([&](std::string & index) { replace(index, Digest::of(model_.layers[2]).to_string(), "sha256:../x"); },
          nullptr);
    expect_refused("not a SHA-256 digest");
}

TEST_F(HostileStoreTest, AManifestOfGigabytesIsRefusedWithoutReadingIt) {
    const Digest digest = Digest::of("huge");
    write_file(store_->blob_path(digest), "");
    std::error_code error;
    std::filesystem::resize_file(store_->blob_path(digest), uint64_t{8} << 30, error); // sparse
    ASSERT_FALSE(error) << error.message();
    oci::Descriptor manifest;
    manifest.digest = digest;
    manifest.size = uint64_t{8} << 30;
    name(manifest);
    expect_refused("at most 4.19 MB are read");
}

TEST_F(HostileStoreTest, ATensorIndexOfGigabytesIsRefusedWithoutReadingIt) {
    const Digest digest = Digest::of("huge");
    write_file(store_->blob_path(digest), "");
    std::filesystem::resize_file(store_->blob_path(digest), uint64_t{8} << 30);
    const Digest index = Digest::of(model_index_to_json(model_.index()));
    plant(nullptr, [&](std::string & manifest) { replace(manifest, index.to_string(), digest.to_string()); });
    expect_refused("are read");
}

TEST_F(HostileStoreTest, SizesThatDifferAreRefused) {
    const size_t size = model_index_to_json(model_.index()).size();
    plant(nullptr, [&](std::string & manifest) {
        replace(manifest, fmt::format("\"size\":{}", size), fmt::format("\"size\":{}", size + 1));
    });
    expect_refused("were announced");
}

TEST_F(HostileStoreTest, LayersThatTheManifestDoesNotNameAreRefused) {
    plant(
        [&](std::string & index) {
            replace(index, Digest::of(model_.layers[2]).to_string(), Digest::of(model_.layers[3]).to_string());
        },
        nullptr);
    expect_refused("name different layers");
}

TEST_F(HostileStoreTest, TensorsOutsideOfTheirBlobAreRefused) {
    for (const std::string offset : {"1001", "18446744073709551615"}) {
        plant([&](std::string & index) { replace(index, "\"offset\":32", "\"offset\":" + offset); }, nullptr);
        expect_refused("outside of its blob");
    }
}

TEST_F(HostileStoreTest, OtherOddIndexesAreRefused) {
    const std::tuple<const char *, const char *, const char *> cases[] = {
        {"\"kind\":\"head\"", "\"kind\":\"tail\"", "head"},
        {"\"kind\":\"embedding\"", "\"kind\":\"soul\"", "soul"},
        {"\"block\":1", "\"block\":7", "block 7"},
        {"\"block\":1", "\"block\":4294967296", "too large"},
        {"\"version\":1", "\"version\":2", "use a newer one"},
        {"\"shape\":[", "\"shape\":[-1,", "no dimension"},
        {"\"shape\":[", "\"shape\":[1,1,1,", "more than 4"},
        {"blk.1.tensor_0.weight", "blk\\n1", "control characters"},
        {"blk.1.tensor_0.weight", "", "a name is 1 to"},
        {"\"architecture\":\"llama\"", "\"architecture\":\"\\u001b[2J\"", "control characters"},
        {"\"architecture\":\"llama\"", "\"architecture\":{}", "not a string"},
        {"\"layers\":[", "\"layers\":[],\"layers\":[", "twice"},
        {"\"layers\":[", "\"layerz\":[", "has 0 layers"},
    };
    for (const auto & [what, with, reason] : cases) {
        SCOPED_TRACE(with);
        plant([&, what = what, with = with](std::string & index) { replace(index, what, with); }, nullptr);
        expect_refused(reason);
    }
}

TEST_F(HostileStoreTest, ManifestsThatAreNoModelsAreRefused) {
    plant(nullptr, [](std::string & manifest) { replace(manifest, oci::kArtifactModel, "application/x"); });
    expect_refused("is not a ModelPack model");
    plant(nullptr, [](std::string & manifest) { replace(manifest, "tensor-index.json", "readme.json"); });
    expect_refused("has no tensor index");
    plant(nullptr, [](std::string & manifest) {
        replace(manifest, oci::kMediaWeight, "application/vnd.cncf.model.weight.v1.tar+gzip");
    });
    expect_refused("was it compressed");
    plant(nullptr, [](std::string & manifest) { manifest.resize(manifest.size() / 2); });
    expect_refused("not valid JSON");
}

TEST_F(HostileStoreTest, AFileNameThatIsNotTheLayersIsNotImported) {
    for (const char * path : {"../../../../home/me/.bashrc", "model-00002-of-00005.gguf", ""}) {
        plant(nullptr, [&](std::string & manifest) { replace(manifest, "model-00003-of-00005.gguf", path); });
        auto other = Store::open(folder_.path() / "other");
        ASSERT_OK(other);
        EXPECT_THAT(status_text((*other)->import_oci(root(), "", model_name("x"), nullptr)),
                    HasSubstr(fmt::format("calls its layer 2 \"{}\"", path)));
        EXPECT_THAT(*(*other)->list(), IsEmpty());
    }
}

TEST_F(HostileStoreTest, ATruncatedIndexSaysWhatToDo) {
    plant(nullptr, nullptr);
    std::string text = read_file(root() / "index.json");
    text.resize(text.size() / 2);
    write_file(root() / "index.json", text);
    open(); // the folder opens still
    for (const std::string & error :
         {status_text(store_->list()), status_text(store_->find(model_name("bad"))),
          status_text(store_->remove(model_name("bad"))), status_text(store_->collect_garbage({})),
          status_text(store_->commit_model(model_name("x"), model_.index(), fake_lineage()))}) {
        EXPECT_THAT(error, AllOf(HasSubstr("DATA_LOSS"), HasSubstr("index.json is not valid JSON"),
                                 HasSubstr("move it away and import the models again")));
    }
    // Nothing was written over it, and the advice works.
    EXPECT_EQ(read_file(root() / "index.json"), text);
    std::filesystem::rename(root() / "index.json", root() / "index.json.bad");
    open();
    ASSERT_OK(store_->commit_model(model_name("x"), model_.index(), fake_lineage()));
    EXPECT_EQ(problems(*store_), "");
}

TEST_F(HostileStoreTest, AnIndexOfGigabytesIsRefused) {
    std::filesystem::resize_file(root() / "index.json", uint64_t{8} << 30);
    EXPECT_EQ(store_->list().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(HostileStoreTest, ALinkOrPipeAsABlobIsNotFollowed) {
    plant(nullptr, nullptr);
    const std::filesystem::path layer = store_->blob_path(Digest::of(model_.layers[2]));
    std::filesystem::remove(layer);
    ASSERT_EQ(::mkfifo(layer.c_str(), 0600), 0);
    EXPECT_FALSE(store_->has(Digest::of(model_.layers[2])));
    EXPECT_THAT(problems(*store_), HasSubstr("is not a regular file")); // and does not hang
    std::filesystem::remove(layer);
    std::filesystem::create_symlink("/dev/zero", layer);
    EXPECT_THAT(problems(*store_), HasSubstr("block 0 of bad:latest"));
}

TEST_F(HostileStoreTest, NamesWithControlCharactersAreNotListed) {
    plant(nullptr, nullptr);
    std::string text = read_file(root() / "index.json");
    replace(text, "bad:latest", "bad\\u001b[2J:latest");
    write_file(root() / "index.json", text);
    EXPECT_THAT(*store_->list(), IsEmpty());
    EXPECT_EQ(problems(*store_), "");
    ASSERT_OK(store_->collect_garbage({})); // what it refers to stays
    EXPECT_TRUE(store_->has(Digest::of(model_.layers[2])));
}

TEST_F(HostileStoreTest, WhatCanNotBeReadBackIsNotCommitted) {
    for (const std::string & layer : model_.layers) ASSERT_OK(store_->put(layer));
    ModelIndex index = model_.index();
    index.layers[2].tensors[0].length = 5000;
    EXPECT_EQ(store_->commit_model(model_name("x"), index, fake_lineage()).status().code(),
              absl::StatusCode::kInvalidArgument);
    index = model_.index();
    index.layers[2].digest = Digest::of("not there");
    const auto missing = store_->commit_model(model_name("x"), index, fake_lineage());
    EXPECT_EQ(missing.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status_text(missing), HasSubstr("block 0 of x:latest"));
    EXPECT_THAT(*store_->list(), IsEmpty());
}

TEST_F(HostileStoreTest, TextThatIsNotUtf8IsCommittedReadably) {
    for (const std::string & layer : model_.layers) ASSERT_OK(store_->put(layer));
    ModelIndex index = model_.index();
    index.metadata.emplace_back("odd\xff", "\xc3\x28 and\n\x1b[2J");
    Lineage lineage = fake_lineage("a file\nwith\xff line break.gguf");
    ASSERT_OK(store_->commit_model(model_name("x"), index, lineage));
    const auto found = store_->find(model_name("x"));
    ASSERT_OK(found);
    ASSERT_TRUE(found->lineage.has_value());
    EXPECT_EQ(found->lineage->origin, "a file?with\xef\xbf\xbd line break.gguf");
    EXPECT_EQ(found->index->metadata.back().second, "\xef\xbf\xbd( and\n\x1b[2J");
}

} // namespace
} // namespace strata::layers::testing
