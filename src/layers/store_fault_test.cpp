// The store is valid whatever happens in the middle: each case runs one sequence of operations again and again, with a
// fault at another operation of the disk each time.
#include "layers/faulty_disk.h"
#include "layers/store.h"
#include "layers/store_testing.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

namespace strata::layers::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Fault = FaultyDisk::Fault;

struct Place {
    TempFolder folder;
    std::filesystem::path store() const { return folder.path() / "store"; }
    std::filesystem::path views() const { return folder.path() / "views"; }
};

GcOptions no_grace(const Place & place) {
    GcOptions options;
    options.grace = std::chrono::milliseconds(0);
    options.views = place.views();
    return options;
}

// What a node's life is made of: two models that share layers, a name that moves on to another model, a model that
// goes, its blobs that go, and a view.
absl::Status live(const Place & place, Disk & disk) {
    STRATA_ASSIGN_OR_RETURN(const auto store, Store::open(place.store(), disk));
    const FakeModel one = FakeModel::make("one");
    FakeModel two = one;
    two.layers[3] = FakeModel::make("two").layers[3];
    STRATA_RETURN_IF_ERROR(write_model(*store, "one", one).status());
    STRATA_RETURN_IF_ERROR(write_model(*store, "two", two).status());
    STRATA_ASSIGN_OR_RETURN(const StoredModel first, store->find(model_name("one")));
    STRATA_RETURN_IF_ERROR(store->materialise(first, place.views()).status());
    STRATA_RETURN_IF_ERROR(write_model(*store, "one", FakeModel::make("three")).status());
    STRATA_RETURN_IF_ERROR(store->remove(model_name("two")));
    STRATA_RETURN_IF_ERROR(store->collect_garbage(no_grace(place)).status());
    STRATA_ASSIGN_OR_RETURN(const StoredModel last, store->find(model_name("one")));
    return store->materialise(last, place.views()).status();
}

// Every model that is listed is whole, nothing that is named is missing from the list, and views lead to whole models.
void expect_valid(const Place & place) {
    auto opened = Store::open(place.store());
    ASSERT_OK(opened);
    Store & store = **opened;
    EXPECT_EQ(problems(store), "");
    const auto models = store.list();
    ASSERT_OK(models);
    for (const StoredModel & model : *models) {
        EXPECT_THAT(model.name.name, AnyOf("one", "two"));
        EXPECT_TRUE(model.lineage.has_value());
        const auto first = store.materialise(model, place.views());
        ASSERT_OK(first);
        for (const auto & link : std::filesystem::directory_iterator(first->parent_path())) {
            EXPECT_TRUE(std::filesystem::is_regular_file(link.path())) << link.path();
        }
    }
    // What the fault left behind goes with the next collection.
    ASSERT_OK(store.collect_garbage(no_grace(place)));
    EXPECT_THAT(entries(place.store() / "tmp"), IsEmpty());
    EXPECT_THAT(entries(place.store() / "leases"), IsEmpty());
    if (std::filesystem::exists(place.views())) {
        EXPECT_EQ(entries(place.views()).size(), models->size());
    }
    EXPECT_EQ(problems(store), "");
}

void expect_succeeds_now(const Place & place) {
    ASSERT_OK(live(place, Disk::real()));
    auto store = Store::open(place.store());
    ASSERT_OK(store);
    const auto models = (*store)->list();
    ASSERT_OK(models);
    ASSERT_EQ(models->size(), 1u);
    EXPECT_EQ(models->front().index->layers[3].digest, Digest::of(FakeModel::make("three").layers[3]));
    EXPECT_EQ(problems(**store), "");
}

int operations_of_a_life() {
    const Place place;
    FaultyDisk disk(Fault::kNone, 0);
    EXPECT_OK(live(place, disk));
    return disk.operations();
}

TEST(StoreFault, ALifeTouchesTheDiskOften) {
    EXPECT_GT(operations_of_a_life(), 100);
}

TEST(StoreFault, AKillAtAnyOperationLeavesItValid) {
    const int operations = operations_of_a_life();
    for (int n = 1; n <= operations && !HasFailure(); ++n) {
        SCOPED_TRACE(fmt::format("killed at operation {}", n));
        const Place place;
        FaultyDisk disk(Fault::kKill, n);
        live(place, disk).IgnoreError(); // what fails last may be a removal that nobody waits for
        expect_valid(place);
        expect_succeeds_now(place);
    }
}

TEST(StoreFault, APowerCutAtAnyOperationLeavesItValid) {
    const int operations = operations_of_a_life();
    for (int n = 1; n <= operations && !HasFailure(); ++n) {
        SCOPED_TRACE(fmt::format("power cut at operation {}", n));
        const Place place;
        FaultyDisk disk(Fault::kPowerCut, n);
        live(place, disk).IgnoreError();
        disk.power_cut();
        expect_valid(place);
        expect_succeeds_now(place);
    }
}

TEST(StoreFault, AFullDiskAtAnyOperationIsAClearErrorAndLeavesItValid) {
    const int operations = operations_of_a_life();
    int failures = 0;
    for (int n = 1; n <= operations && !HasFailure(); ++n) {
        SCOPED_TRACE(fmt::format("disk full at operation {}", n));
        const Place place;
        FaultyDisk disk(Fault::kFull, n);
        const absl::Status status = live(place, disk);
        if (!status.ok()) {
            ++failures;
            EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
            EXPECT_THAT(status.ToString(), HasSubstr("No space left on device; free some space and try again"));
            // The process lives, so it has cleaned up itself.
            if (std::filesystem::exists(place.store() / "tmp")) {
                EXPECT_THAT(entries(place.store() / "tmp"), IsEmpty());
            }
        }
        expect_valid(place);
        expect_succeeds_now(place);
    }
    EXPECT_GT(failures, operations / 2);
}

TEST(StoreFault, NothingDurableIsLostToAPowerCut) {
    const Place place;
    FaultyDisk disk(Fault::kPowerCut, 1'000'000);
    Digest digest;
    {
        auto store = Store::open(place.store(), disk);
        ASSERT_OK(store);
        const auto written = write_model(**store, "one", FakeModel::make("one"));
        ASSERT_OK(written);
        digest = *written;
    }
    disk.power_cut();
    auto store = Store::open(place.store());
    ASSERT_OK(store);
    const auto found = (*store)->find(model_name("one"));
    ASSERT_OK(found);
    EXPECT_EQ(found->manifest, digest);
    EXPECT_EQ(problems(**store), "");
}

} // namespace
} // namespace strata::layers::testing
