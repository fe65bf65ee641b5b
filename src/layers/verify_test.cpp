#include "layers/store.h"
#include "layers/store_testing.h"
#include "layers/verified_blobs.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <chrono>
#include <thread>

namespace strata::layers::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class VerifyTest : public ::testing::Test {
protected:
    void SetUp() override {
        auto opened = Store::open(folder_.path() / "store");
        ASSERT_OK(opened);
        store_ = *std::move(opened);
        const auto digest = write_model(*store_, "one", model_);
        ASSERT_OK(digest);
        manifest_ = *digest;
        // Big enough for several reads.
        ASSERT_OK(write_model(*store_, "two", FakeModel::make("two", 1, 3'000'000)));
    }
    std::filesystem::path block() const { return store_->blob_path(Digest::of(model_.layers[3])); }
    std::vector<BlobProblem> verify(std::optional<ModelName> name = std::nullopt) const {
        const auto found = store_->verify(name, nullptr);
        EXPECT_OK(found);
        return found.ok() ? *found : std::vector<BlobProblem>();
    }

    TempFolder folder_;
    FakeModel model_ = FakeModel::make("one");
    std::unique_ptr<Store> store_;
    Digest manifest_;
};

TEST_F(VerifyTest, FindsNothingInAStoreThatIsWell) {
    EXPECT_THAT(verify(), IsEmpty());
    EXPECT_THAT(verify(model_name("one")), IsEmpty());
    EXPECT_EQ(store_->verify(model_name("three"), nullptr).status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(entries(folder_.path() / "store/leases"), IsEmpty());
}

TEST_F(VerifyTest, AFlippedByteIsFoundAndItsTensorNamed) {
    std::string bytes = model_.layers[3];
    bytes[bytes.size() - 1] ^= 1;
    write_file(block(), bytes);
    const auto found = verify();
    ASSERT_THAT(found, SizeIs(1));
    EXPECT_EQ(found[0].digest, Digest::of(model_.layers[3]));
    EXPECT_THAT(found[0].sentence,
                AllOf(HasSubstr(Digest::of(model_.layers[3]).to_string()), HasSubstr("block 1 of one:latest"),
                      HasSubstr("is damaged"), HasSubstr("damaged: blk.3.tensor_1.weight;"),
                      HasSubstr("import or pull the model again")));
    EXPECT_THAT(verify(model_name("one")), SizeIs(1));
    EXPECT_THAT(verify(model_name("two")), IsEmpty());
}

// Until all blobs look old: the file system's own time can't be set.
void settle(const std::filesystem::path & blobs) {
    const auto any_fresh = [&blobs] {
        const auto files = std::filesystem::directory_iterator(blobs);
        return std::any_of(begin(files), end(files),
                           [](const auto & entry) { return FileStamp::of(*open_regular(entry.path()))->is_fresh(); });
    };
    while (any_fresh()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

TEST_F(VerifyTest, WhatWasHashedAndNotChangedSinceIsNotHashedForUse) {
    uint64_t total = 0;
    const auto for_use = [&] {
        total = 0;
        const auto found = store_->verify_for_use(model_name("one"), [&total](uint64_t, uint64_t all) {
            total = all;
            return true;
        });
        EXPECT_OK(found);
        return found.ok() ? found->size() : 0;
    };
    EXPECT_EQ(for_use(), 0u);
    EXPECT_GT(total, 0u);
    settle(block().parent_path());
    EXPECT_EQ(for_use(), 0u); // hashed and remembered
    EXPECT_EQ(for_use(), 0u);
    EXPECT_EQ(total, 0u);

    // Another byte, and the time of writing as it was.
    const auto written = std::filesystem::last_write_time(block());
    std::string bytes = model_.layers[3];
    bytes[100] ^= 1;
    write_file(block(), bytes);
    std::filesystem::last_write_time(block(), written);
    EXPECT_EQ(for_use(), 1u);
    settle(block().parent_path());
    EXPECT_EQ(for_use(), 1u) << "damage is not remembered as whole";

    // A list that is damaged costs time only.
    write_file(folder_.path() / "store/verified", "\xff 1 2\nabc");
    EXPECT_EQ(for_use(), 1u);
    EXPECT_GT(total, 0u);
}

TEST_F(VerifyTest, AMappedBlobWasHashed) {
    const Digest digest = Digest::of(model_.layers[3]);
    const auto mapped = store_->map(digest);
    ASSERT_OK(mapped);
    EXPECT_EQ(std::string(mapped->bytes.begin(), mapped->bytes.end()), model_.layers[3]);
    ASSERT_OK(store_->remember_whole(digest));
    ASSERT_OK(store_->map(digest));

    std::string damaged = model_.layers[3];
    damaged[700] ^= 1;
    write_file(store_->blob_path(digest), damaged);
    const auto refused = store_->map(digest);
    EXPECT_TRUE(absl::IsDataLoss(refused.status())) << refused.status();
    EXPECT_TRUE(absl::IsNotFound(store_->map(Digest::of("nothing")).status()));
}

TEST_F(VerifyTest, DamageOutsideOfTensorsIsCalledSo) {
    std::string bytes = model_.layers[3];
    bytes[0] ^= 1;
    write_file(block(), bytes);
    ASSERT_THAT(verify(), SizeIs(1));
    EXPECT_THAT(verify()[0].sentence, HasSubstr("in its header or padding"));
}

TEST_F(VerifyTest, MissingAndCutBlobsAreFound) {
    std::filesystem::remove(block());
    std::filesystem::resize_file(store_->blob_path(Digest::of(model_.layers[1])), 10);
    const auto found = verify(model_name("one"));
    ASSERT_THAT(found, SizeIs(2));
    std::string text;
    for (const BlobProblem & problem : found) text += problem.sentence + "\n";
    EXPECT_THAT(text, HasSubstr("(block 1 of one:latest) is missing"));
    EXPECT_THAT(text, HasSubstr("(the embedding of one:latest) has 10 bytes instead of 1000"));
}

TEST_F(VerifyTest, DamagedDocumentsAreFoundAlthoughTheModelIsCached) {
    const auto model = store_->find(model_name("one"));
    ASSERT_OK(model);
    std::string manifest = read_file(store_->blob_path(manifest_));
    manifest[10] ^= 1;
    write_file(store_->blob_path(manifest_), manifest);
    const auto found = verify();
    ASSERT_THAT(found, SizeIs(1));
    EXPECT_THAT(found[0].sentence, HasSubstr("the manifest of one:latest"));
    EXPECT_EQ(found[0].digest, manifest_);

    // Another process, without the cache, does not take it for a model.
    auto other = Store::open(folder_.path() / "store");
    ASSERT_OK(other);
    EXPECT_EQ((*other)->find(model_name("one")).status().code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ((*other)->list()->size(), 1u);
    EXPECT_EQ(problems(**other), found[0].sentence + "\n");
}

TEST_F(VerifyTest, BlobsOfNoModelAreCheckedToo) {
    const auto digest = store_->put("alone");
    ASSERT_OK(digest);
    EXPECT_THAT(verify(), IsEmpty());
    write_file(store_->blob_path(*digest), "ALONE");
    ASSERT_THAT(verify(), SizeIs(1));
    EXPECT_THAT(verify()[0].sentence, HasSubstr("of no model"));
}

TEST_F(VerifyTest, ReportsProgressAndCanBeCancelled) {
    uint64_t last = 0;
    uint64_t total = 0;
    ASSERT_OK(store_->verify(std::nullopt, [&](uint64_t done, uint64_t of) {
        EXPECT_GE(done, last);
        last = done;
        total = of;
        return true;
    }));
    EXPECT_EQ(last, total);
    EXPECT_EQ(total, *store_->size_bytes());

    int calls = 0;
    const auto cancelled = store_->verify(std::nullopt, [&](uint64_t, uint64_t) { return ++calls < 2; });
    EXPECT_EQ(cancelled.status().code(), absl::StatusCode::kCancelled);
}

} // namespace
} // namespace strata::layers::testing
