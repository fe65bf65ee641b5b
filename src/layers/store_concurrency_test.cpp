#include "layers/store.h"
#include "layers/store_testing.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace strata::layers::testing {
namespace {

constexpr int kWriters = 3;
constexpr int kModels = 8;

// Two of three layers are shared by all writers, so that they meet on the same blobs.
FakeModel model_of(int writer, int number) {
    FakeModel model = FakeModel::make("shared");
    model.layers[3] = FakeModel::make(fmt::format("writer {} model {}", writer, number)).layers[3];
    return model;
}

// Writes models, takes some away again, and collects garbage without grace all the time.
absl::Status write_models(const std::filesystem::path & root, int writer) {
    STRATA_ASSIGN_OR_RETURN(const auto store, Store::open(root));
    GcOptions no_grace;
    no_grace.grace = std::chrono::milliseconds(0);
    for (int i = 0; i < kModels; ++i) {
        const std::string name = fmt::format("writer-{}:{}", writer, i);
        STRATA_RETURN_IF_ERROR(write_model(*store, name, model_of(writer, i)).status());
        STRATA_RETURN_IF_ERROR(store->collect_garbage(no_grace).status());
        STRATA_ASSIGN_OR_RETURN(const StoredModel model, store->find(model_name(name)));
        STRATA_ASSIGN_OR_RETURN(const Lease lease, store->lease("test", model.blobs));
        STRATA_RETURN_IF_ERROR(store->materialise(model, root.parent_path() / "views").status());
        STRATA_RETURN_IF_ERROR(store->list().status());
        if (i % 2 == 1) STRATA_RETURN_IF_ERROR(store->remove(model.name));
    }
    return absl::OkStatus();
}

void expect_all_there(const std::filesystem::path & root) {
    auto store = Store::open(root);
    ASSERT_OK(store);
    const auto models = (*store)->list();
    ASSERT_OK(models);
    EXPECT_EQ(models->size(), static_cast<size_t>(kWriters * kModels / 2));
    EXPECT_EQ(problems(**store), "");
}

TEST(StoreConcurrency, ProcessesShareAStore) {
    const TempFolder folder;
    const std::filesystem::path root = folder.path() / "store";
    std::vector<pid_t> children;
    for (int writer = 0; writer < kWriters; ++writer) {
        const pid_t child = ::fork();
        if (child == 0) {
            const absl::Status status = write_models(root, writer);
            if (!status.ok()) fmt::print(stderr, "{}\n", status.ToString());
            ::_exit(status.ok() ? 0 : 1);
        }
        children.push_back(child);
    }
    for (const pid_t child : children) {
        int status = -1;
        ASSERT_EQ(::waitpid(child, &status, 0), child);
        EXPECT_EQ(status, 0);
    }
    expect_all_there(root);
}

TEST(StoreConcurrency, ThreadsShareAStore) {
    const TempFolder folder;
    const std::filesystem::path root = folder.path() / "store";
    std::vector<std::thread> threads;
    for (int writer = 0; writer < kWriters; ++writer) {
        threads.emplace_back([&root, writer] { EXPECT_OK(write_models(root, writer)); });
    }
    for (std::thread & thread : threads) thread.join();
    expect_all_there(root);
}

TEST(StoreConcurrency, ThreadsShareAStoreObject) {
    const TempFolder folder;
    auto store = Store::open(folder.path() / "store");
    ASSERT_OK(store);
    std::vector<std::thread> threads;
    for (int writer = 0; writer < kWriters; ++writer) {
        threads.emplace_back([&store, writer] {
            for (int i = 0; i < kModels; ++i) {
                const std::string name = fmt::format("writer-{}:{}", writer, i);
                ASSERT_OK(write_model(**store, name, model_of(writer, i)));
                ASSERT_OK((*store)->list());
                ASSERT_OK((*store)->verify(model_name(name), nullptr));
            }
        });
    }
    for (std::thread & thread : threads) thread.join();
    EXPECT_EQ((*store)->list()->size(), static_cast<size_t>(kWriters * kModels));
    EXPECT_EQ(problems(**store), "");
}

} // namespace
} // namespace strata::layers::testing
