#include "layers/faulty_disk.h"
#include "layers/store.h"
#include "layers/store_testing.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

namespace strata::layers::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

GcOptions no_grace() {
    GcOptions options;
    options.grace = std::chrono::milliseconds(0);
    return options;
}

class GarbageTest : public ::testing::Test {
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

TEST_F(GarbageTest, KeepsWhatNamesReachAndRemovesTheRest) {
    const FakeModel one = FakeModel::make("one");
    FakeModel two = one;
    two.layers[3] = "another block, long enough for two tensors: ----------------------------------------";
    ASSERT_OK(write_model(*store_, "one", one));
    ASSERT_OK(write_model(*store_, "two", two));
    const auto before = store_->size_bytes();
    ASSERT_OK(before);
    ASSERT_OK(store_->remove(model_name("two")));

    GcOptions dry = no_grace();
    dry.dry_run = true;
    const auto would = store_->collect_garbage(dry);
    ASSERT_OK(would);
    EXPECT_EQ(*store_->size_bytes(), *before);

    const auto result = store_->collect_garbage(no_grace());
    ASSERT_OK(result);
    EXPECT_EQ(result->removed_blobs, would->removed_blobs);
    EXPECT_EQ(result->freed_bytes, would->freed_bytes);
    // The block, index, config, manifest and list of referrers with the lineage's manifest; not what "one" shares.
    EXPECT_EQ(result->removed_blobs, 6);
    EXPECT_EQ(*before - *store_->size_bytes(), static_cast<uint64_t>(result->freed_bytes));
    EXPECT_FALSE(store_->has(Digest::of(two.layers[3])));
    EXPECT_EQ(problems(*store_), "");
    ASSERT_OK(store_->find(model_name("one")));
    EXPECT_EQ(store_->collect_garbage(no_grace())->removed_blobs, 0);
}

TEST_F(GarbageTest, SparesYoungBlobs) {
    const auto young = store_->put("young");
    const auto old = store_->put("old");
    ASSERT_OK(young);
    ASSERT_OK(old);
    const auto age = [this](const Digest & digest, int seconds) {
        const timespec then{::time(nullptr) - seconds, 0};
        const timespec times[] = {then, then};
        ASSERT_EQ(::utimensat(AT_FDCWD, store_->blob_path(digest).c_str(), times, 0), 0);
    };
    age(*old, 7200);
    ASSERT_OK(store_->collect_garbage({}));
    EXPECT_TRUE(store_->has(*young));
    EXPECT_FALSE(store_->has(*old));

    // Writing a blob that is there makes it young again.
    age(*young, 7200);
    ASSERT_OK(store_->put("young"));
    ASSERT_OK(store_->collect_garbage({}));
    EXPECT_TRUE(store_->has(*young));
}

TEST_F(GarbageTest, ALeaseKeepsBlobsUntilItEnds) {
    ASSERT_OK(write_model(*store_, "one", FakeModel::make("one")));
    const auto model = store_->find(model_name("one"));
    ASSERT_OK(model);
    {
        const auto lease = store_->lease("test", model->blobs);
        ASSERT_OK(lease);
        ASSERT_OK(store_->remove(model_name("one")));
        ASSERT_OK(store_->collect_garbage(no_grace()));
        for (const Digest & digest : model->blobs) EXPECT_TRUE(store_->has(digest));
    }
    ASSERT_OK(store_->collect_garbage(no_grace()));
    for (const Digest & digest : model->blobs) EXPECT_FALSE(store_->has(digest));
    EXPECT_THAT(entries(root() / "leases"), IsEmpty());
}

TEST_F(GarbageTest, ALeaseOfWhatIsNotThereIsRefused) {
    const auto there = store_->put("there");
    ASSERT_OK(there);
    const auto lease = store_->lease("test", {*there, Digest::of("not there")});
    EXPECT_EQ(lease.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(entries(root() / "leases"), IsEmpty());
}

TEST_F(GarbageTest, BlobsWrittenUnderALeaseAreKeptFromTheStart) {
    auto lease = store_->lease("import", {});
    ASSERT_OK(lease);
    const auto kept = store_->put("kept", &*lease);
    const auto lost = store_->put("lost");
    ASSERT_OK(kept);
    ASSERT_OK(lost);
    ASSERT_OK(store_->collect_garbage(no_grace()));
    EXPECT_TRUE(store_->has(*kept));
    EXPECT_FALSE(store_->has(*lost));
    // A model can be made of them still.
    ASSERT_OK(write_model(*store_, "one", FakeModel::make("one")));
}

TEST_F(GarbageTest, DiscardTakesOnlyWhatNobodyNeeds) {
    const FakeModel model = FakeModel::make("one");
    ASSERT_OK(write_model(*store_, "one", model));
    auto lease = store_->lease("other", {});
    ASSERT_OK(lease);
    const auto leased = store_->put("leased", &*lease);
    const auto free = store_->put("free");
    ASSERT_OK(leased);
    ASSERT_OK(free);
    ASSERT_OK(store_->discard({*leased, *free, Digest::of(model.layers[1]), Digest::of("never there")}));
    EXPECT_TRUE(store_->has(*leased));
    EXPECT_FALSE(store_->has(*free));
    EXPECT_EQ(problems(*store_), "");
}

// A process that takes a lease or begins a blob, and then hangs until it is killed.
class Child {
public:
    template <typename Work>
    explicit Child(Work work) {
        int ready[2];
        if (::pipe(ready) != 0) std::abort();
        pid_ = ::fork();
        if (pid_ == 0) {
            work([fd = ready[1]] {
                if (::write(fd, "x", 1) != 1) ::_exit(1);
                while (true) ::pause();
            });
            ::_exit(1);
        }
        ::close(ready[1]);
        char byte = 0;
        ready_ = ::read(ready[0], &byte, 1) == 1;
        ::close(ready[0]);
    }
    ~Child() { kill(); }

    bool ready() const { return ready_; }
    void kill() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = -1;
    }

private:
    pid_t pid_ = -1;
    bool ready_ = false;
};

TEST_F(GarbageTest, TheLeaseOfAKilledProcessEnds) {
    const auto blob = store_->put("blob");
    ASSERT_OK(blob);
    Child child([&](const auto & wait) {
        auto own = Store::open(root());
        auto lease = own.ok() ? (*own)->lease("child", {*blob}) : own.status();
        if (lease.ok()) wait();
    });
    ASSERT_TRUE(child.ready());
    ASSERT_OK(store_->collect_garbage(no_grace()));
    EXPECT_TRUE(store_->has(*blob));

    child.kill();
    ASSERT_OK(store_->collect_garbage(no_grace()));
    EXPECT_FALSE(store_->has(*blob));
    EXPECT_THAT(entries(root() / "leases"), IsEmpty());
}

TEST_F(GarbageTest, TheTemporaryFileOfAKilledProcessGoesAndThatOfALivingOneStays) {
    Child child([&](const auto & wait) {
        auto own = Store::open(root());
        auto writer = own.ok() ? (*own)->new_blob() : own.status();
        if (writer.ok() && writer->append(std::as_bytes(std::span("half", 4))).ok()) wait();
    });
    ASSERT_TRUE(child.ready());
    ASSERT_OK(store_->collect_garbage(no_grace()));
    EXPECT_EQ(entries(root() / "tmp").size(), 1u);

    child.kill();
    const auto result = store_->collect_garbage(no_grace());
    ASSERT_OK(result);
    EXPECT_EQ(result->freed_bytes, 4);
    EXPECT_THAT(entries(root() / "tmp"), IsEmpty());
}

TEST_F(GarbageTest, ADamagedManifestStopsItWithAdvice) {
    const auto digest = write_model(*store_, "one", FakeModel::make("one"));
    ASSERT_OK(digest);
    ASSERT_OK(write_model(*store_, "two", FakeModel::make("two")));
    write_file(store_->blob_path(*digest), "{}");
    const auto size = store_->size_bytes();
    const auto result = store_->collect_garbage(no_grace());
    EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(status_text(result), HasSubstr("remove that model"));
    EXPECT_THAT(status_text(result), HasSubstr("one:latest"));
    EXPECT_EQ(*store_->size_bytes(), *size);
    ASSERT_OK(store_->remove(model_name("one")));
    ASSERT_OK(store_->collect_garbage(no_grace()));
    EXPECT_EQ(problems(*store_), "");
}

TEST_F(GarbageTest, FilesThatAreNoBlobsAreLeftAlone) {
    write_file(root() / "blobs/sha256/notes.txt", "mine");
    std::filesystem::create_symlink("/etc/passwd", root() / "blobs/sha256" / Digest::of("x").hex());
    ASSERT_OK(store_->collect_garbage(no_grace()));
    EXPECT_EQ(entries(root() / "blobs/sha256").size(), 2u);
    EXPECT_FALSE(store_->has(Digest::of("x")));
    EXPECT_FALSE(store_->get(Digest::of("x"), 1 << 20).ok());
}

} // namespace
} // namespace strata::layers::testing
