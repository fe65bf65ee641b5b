// What every state store must do. Each test runs with each store.
#include "base/temp_folder_testing.h"
#include "cluster/etcd_store.h"
#include "cluster/etcd_testing.h"
#include "cluster/limits.h"
#include "cluster/sqlite_store.h"
#include "etcd/rpc.grpc.pb.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

namespace strata::cluster {
namespace {

using strata::testing::TempFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A kind of store, somewhere. It can be opened again with what was in it.
class Place {
public:
    virtual ~Place() = default;
    virtual absl::StatusOr<std::unique_ptr<Store>> open() = 0;
};

class SqlitePlace final : public Place {
public:
    absl::StatusOr<std::unique_ptr<Store>> open() override {
        STRATA_ASSIGN_OR_RETURN(std::unique_ptr<Store> store,
                                SqliteStore::open(folder_.path() / "cluster.db", Runtime::real()));
        return store;
    }

private:
    TempFolder folder_;
};

// A part of an etcd of three members, which all tests share.
class EtcdPlace final : public Place {
public:
    absl::StatusOr<std::unique_ptr<Store>> open() override {
        return open_etcd_store({cluster().endpoints(), {}, prefix_});
    }

private:
    static EtcdCluster & cluster() {
        static EtcdCluster cluster(3);
        return cluster;
    }

    static inline int places_ = 0;
    const std::string prefix_ = fmt::format("place-{}/", ++places_);
};

struct Kind {
    const char * name;
    std::function<std::unique_ptr<Place>()> make;
};

class StoreTest : public ::testing::TestWithParam<Kind> {
protected:
    void SetUp() override { open(); }

    void open() {
        store_.reset();
        auto opened = place_->open();
        ASSERT_TRUE(opened.ok()) << opened.status();
        store_ = *std::move(opened);
    }

    int64_t put(const std::string & key, const std::string & value, int64_t lease = 0) {
        const auto revision = store_->commit({.puts = {{key, value, lease}}});
        EXPECT_TRUE(revision.ok()) << revision.status();
        return revision.value_or(-1);
    }
    int64_t remove(const std::string & key) { return store_->commit({.removals = {key}}).value_or(-1); }

    std::string value(const std::string & key) {
        const auto entry = store_->get(key);
        EXPECT_TRUE(entry.ok()) << entry.status();
        return entry.ok() && *entry ? (*entry)->value : "(none)";
    }

    std::unique_ptr<Place> place_ = GetParam().make();
    std::unique_ptr<Store> store_;
};

// What a watch has told, in words: "a=1", "-a", "ended".
class Told {
public:
    Store::OnChanges changes() {
        return [this](const std::vector<Change> & changes) {
            std::string text;
            for (const Change & change : changes) {
                if (!text.empty()) text += " ";
                text += change.value ? fmt::format("{}={}", change.key, *change.value) : fmt::format("-{}", change.key);
                last_revision = change.revision;
            }
            add(text);
        };
    }
    Store::OnEnd ended() {
        return [this](const absl::Status & why) {
            EXPECT_TRUE(absl::IsOutOfRange(why)) << why;
            add("ended");
        };
    }

    // Waits for it.
    std::string next() {
        std::unique_lock lock(mutex_);
        if (!changed_.wait_for(lock, std::chrono::seconds(30), [this] { return !told_.empty(); })) return "(nothing)";
        std::string text = std::move(told_.front());
        told_.pop_front();
        return text;
    }

    int64_t last_revision = 0;

private:
    void add(std::string text) {
        const std::lock_guard lock(mutex_);
        told_.push_back(std::move(text));
        changed_.notify_all();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::string> told_;
};

TEST_P(StoreTest, keeps_what_was_committed) {
    EXPECT_EQ(value("a"), "(none)");
    const int64_t first = put("a", "1");
    const int64_t second = put("a", "2");
    EXPECT_GT(first, 0);
    EXPECT_GT(second, first);
    EXPECT_EQ(value("a"), "2");
    EXPECT_EQ((*store_->get("a"))->revision, second);
    EXPECT_GT(remove("a"), second);
    EXPECT_EQ(value("a"), "(none)");
}

TEST_P(StoreTest, opened_again_it_has_the_same) {
    put("a", "1");
    const int64_t revision = put("b", "ünï\"cödé\n");
    open();
    EXPECT_EQ(value("a"), "1");
    EXPECT_EQ(value("b"), "ünï\"cödé\n");
    EXPECT_GT(put("c", "3"), revision);
}

TEST_P(StoreTest, lists_a_prefix_in_order) {
    put("nodes/b", "2");
    put("nodes/a", "1");
    put("nodes/a/x", "3");
    put("nodesx", "no");
    put("node", "no");
    const int64_t last = put("other", "no");
    const auto listing = store_->list("nodes/");
    ASSERT_TRUE(listing.ok());
    std::vector<std::string> keys;
    for (const Entry & entry : listing->entries) keys.push_back(entry.key);
    EXPECT_THAT(keys, ElementsAre("nodes/a", "nodes/a/x", "nodes/b"));
    EXPECT_EQ(listing->revision, last);
    EXPECT_EQ(store_->list("")->entries.size(), 6);
    EXPECT_THAT(store_->list("none/")->entries, IsEmpty());
}

TEST_P(StoreTest, a_transaction_happens_whole_or_not_at_all) {
    const int64_t a = put("a", "1");
    const auto failed = store_->commit({.conditions = {{"a", a}, {"b", 1}}, .puts = {{"c", "3"}}, .removals = {"a"}});
    EXPECT_TRUE(absl::IsAborted(failed.status())) << failed.status();
    EXPECT_EQ(value("a"), "1");
    EXPECT_EQ(value("c"), "(none)");

    const auto done =
        store_->commit({.conditions = {{"a", a}, {"b", 0}}, .puts = {{"b", "2"}, {"c", "3"}}, .removals = {"a"}});
    ASSERT_TRUE(done.ok()) << done.status();
    EXPECT_EQ(value("a"), "(none)");
    EXPECT_EQ((*store_->get("b"))->revision, *done);
    EXPECT_EQ((*store_->get("c"))->revision, *done);
}

TEST_P(StoreTest, nothing_changed_is_no_revision) {
    const int64_t before = put("a", "1");
    EXPECT_EQ(remove("b"), before);
    EXPECT_EQ(store_->commit({.conditions = {{"a", before}}}).value_or(-1), before);
}

// A counter that many add to at once loses nothing.
TEST_P(StoreTest, compare_and_swap) {
    constexpr int kThreads = 4, kAdditions = 25;
    put("counter", "0");
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&] {
            for (int added = 0; added < kAdditions;) {
                const auto entry = **store_->get("counter");
                const std::string next = std::to_string(std::stoi(entry.value) + 1);
                const auto done =
                    store_->commit({.conditions = {{"counter", entry.revision}}, .puts = {{"counter", next}}});
                if (done.ok()) ++added;
                ASSERT_TRUE(done.ok() || absl::IsAborted(done.status())) << done.status();
            }
        });
    }
    for (std::thread & thread : threads) thread.join();
    EXPECT_EQ(value("counter"), std::to_string(kThreads * kAdditions));
}

TEST_P(StoreTest, refuses_what_is_out_of_bounds) {
    const auto code = [&](const Transaction & transaction) { return store_->commit(transaction).status().code(); };
    EXPECT_EQ(code({.puts = {{"", "1"}}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({.puts = {{"a b", "1"}}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({.puts = {{"a\xff", "1"}}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({.puts = {{std::string(limits::kKeyBytes + 1, 'a'), "1"}}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({.puts = {{"a", std::string(limits::kValueBytes + 1, 'a')}}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({.puts = {{"a", "1"}}, .removals = {"a"}}), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(code({.removals = std::vector<std::string>(limits::kTransactionKeys + 1, "a")}),
              absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(store_->grant_lease(0).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(store_->get(std::string("a\0b", 3)).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(store_->list("")->entries, IsEmpty());
    put("a", std::string(limits::kValueBytes, 'a'));
    EXPECT_EQ(value("a").size(), limits::kValueBytes);
}

TEST_P(StoreTest, a_lease_takes_its_keys_along) {
    const int64_t lease = store_->grant_lease(60'000).value();
    put("mine", "1", lease);
    put("was-mine", "1", lease);
    put("was-mine", "2");
    put("other", "1");
    EXPECT_TRUE(store_->renew_lease(lease).ok());
    EXPECT_TRUE(store_->end_lease(lease).ok());
    EXPECT_EQ(value("mine"), "(none)");
    EXPECT_EQ(value("was-mine"), "2");
    EXPECT_EQ(value("other"), "1");
    EXPECT_TRUE(absl::IsNotFound(store_->renew_lease(lease)));
    EXPECT_TRUE(absl::IsNotFound(store_->end_lease(lease)));
    EXPECT_TRUE(absl::IsNotFound(store_->commit({.puts = {{"mine", "1", lease}}}).status()));
    EXPECT_EQ(value("mine"), "(none)");
}

TEST_P(StoreTest, a_lease_that_nobody_renews_ends) {
    Told told;
    const auto watch = store_->watch("", 0, told.changes(), told.ended()).value();
    const int64_t kept = store_->grant_lease(60'000).value();
    const int64_t lease = store_->grant_lease(limits::kShortestLeaseMs).value();
    put("a", "1", lease);
    put("b", "1", kept);
    EXPECT_EQ(told.next(), "a=1");
    EXPECT_EQ(told.next(), "b=1");
    EXPECT_EQ(told.next(), "-a");
    EXPECT_TRUE(absl::IsNotFound(store_->renew_lease(lease)));
    EXPECT_EQ(value("b"), "1");
}

TEST_P(StoreTest, leases_outlive_the_program) {
    const int64_t lease = store_->grant_lease(limits::kShortestLeaseMs).value();
    put("a", "1", lease);
    open();
    Told told;
    const auto watch = store_->watch("", 0, told.changes(), told.ended()).value();
    EXPECT_EQ(told.next(), "a=1");
    EXPECT_EQ(told.next(), "-a");
}

TEST_P(StoreTest, a_watch_tells_every_change_in_order) {
    put("x/before", "0");
    const int64_t after = put("x/a", "1");
    put("x/a", "2");
    Told told;
    auto watch = store_->watch("x/", after, told.changes(), told.ended()).value();
    EXPECT_EQ(told.next(), "x/a=2");
    put("y", "other");
    ASSERT_TRUE(store_->commit({.puts = {{"x/c", "3"}, {"x/b", "2"}, {"y", "0"}}, .removals = {"x/a"}}).ok());
    EXPECT_EQ(told.next(), "-x/a x/b=2 x/c=3");
    for (int i = 0; i < 200; ++i) put("x/n", std::to_string(i));
    for (int i = 0; i < 200; ++i) ASSERT_EQ(told.next(), fmt::format("x/n={}", i));

    // One that was away goes on where it was.
    const int64_t seen = told.last_revision;
    watch.reset();
    remove("x/n");
    put("x/n", "again");
    watch = store_->watch("x/", seen, told.changes(), told.ended()).value();
    EXPECT_EQ(told.next(), "-x/n");
    EXPECT_EQ(told.next(), "x/n=again");
}

TEST_P(StoreTest, a_watch_may_use_the_store) {
    Told told;
    const auto copy = store_
                          ->watch(
                              "from/", 0,
                              [this](const std::vector<Change> & changes) {
                                  for (const Change & change : changes)
                                      put(fmt::format("to/{}", change.key.substr(5)), *change.value);
                              },
                              told.ended())
                          .value();
    const auto watch = store_->watch("to/", 0, told.changes(), told.ended()).value();
    put("from/a", "1");
    EXPECT_EQ(told.next(), "to/a=1");
}

INSTANTIATE_TEST_SUITE_P(Stores, StoreTest,
                         ::testing::Values(Kind{"sqlite", [] { return std::make_unique<SqlitePlace>(); }},
                                           Kind{"etcd", [] { return std::make_unique<EtcdPlace>(); }}),
                         [](const auto & tested) { return std::string(tested.param.name); });

// ------------------------------------------------------------------------------------------------ SQLite alone

class SqliteStoreTest : public ::testing::Test {
protected:
    std::unique_ptr<SqliteStore> open(const std::string & name) {
        auto opened = SqliteStore::open(folder_.path() / name, Runtime::real());
        EXPECT_TRUE(opened.ok()) << opened.status();
        return opened.ok() ? *std::move(opened) : nullptr;
    }

    TempFolder folder_;
};

TEST_F(SqliteStoreTest, a_backup_is_the_store_as_it_was) {
    const auto store = open("cluster.db");
    ASSERT_TRUE(store->commit({.puts = {{"a", "1"}}}).ok());
    ASSERT_TRUE(store->back_up(folder_.path() / "backup.db").ok());
    ASSERT_TRUE(store->commit({.puts = {{"a", "2"}}}).ok());
    EXPECT_EQ((**open("backup.db")->get("a")).value, "1");
    ASSERT_TRUE(store->back_up(folder_.path() / "backup.db").ok());
    EXPECT_EQ((**open("backup.db")->get("a")).value, "2");
    EXPECT_FALSE(store->back_up(folder_.path() / "none" / "backup.db").ok());
}

TEST_F(SqliteStoreTest, what_changed_long_ago_is_forgotten) {
    const auto store = open("cluster.db");
    const auto put = [&](int64_t i) { ASSERT_TRUE(store->commit({.puts = {{"a", std::to_string(i)}}}).ok()); };
    for (int64_t i = 0; i < limits::kKeptRevisions + 5; ++i) put(i);
    Told told;
    const auto too_old = store->watch("", 4, told.changes(), told.ended());
    EXPECT_TRUE(absl::IsOutOfRange(too_old.status())) << too_old.status();
    const auto watch = store->watch("", limits::kKeptRevisions, told.changes(), told.ended()).value();
    for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(told.next(), fmt::format("a={}", limits::kKeptRevisions + i));
    EXPECT_EQ((**store->get("a")).value, std::to_string(limits::kKeptRevisions + 4));
}

TEST_F(SqliteStoreTest, a_damaged_file_is_refused) {
    {
        const auto store = open("cluster.db");
        for (int i = 0; i < 100; ++i)
            ASSERT_TRUE(store->commit({.puts = {{fmt::format("a{}", i), std::string(1000, 'x')}}}).ok());
    }
    std::filesystem::resize_file(folder_.path() / "cluster.db", 9000);
    const auto opened = SqliteStore::open(folder_.path() / "cluster.db", Runtime::real());
    EXPECT_TRUE(absl::IsDataLoss(opened.status())) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr("backup"));
}

// ------------------------------------------------------------------------------------------------ etcd alone

constexpr std::chrono::milliseconds kShort{500};

TEST(EtcdStoreTest, survives_the_loss_of_each_member) {
    EtcdCluster cluster(3);
    const EtcdOptions options{cluster.endpoints(), {}, "strata/"};
    const auto store = open_etcd_store(options).value();
    Told told;
    const auto watch = store->watch("counter", 0, told.changes(), told.ended()).value();
    int committed = 0, unknown = 0;
    const auto count_up = [&] {
        const auto entry = store->get("counter");
        ASSERT_TRUE(entry.ok()) << entry.status();
        const int64_t revision = *entry ? (*entry)->revision : 0;
        const int next = *entry ? std::stoi((*entry)->value) + 1 : 1;
        const auto done =
            store->commit({.conditions = {{"counter", revision}}, .puts = {{"counter", std::to_string(next)}}});
        if (done.ok()) {
            ++committed;
        } else {
            ASSERT_TRUE(absl::IsUnavailable(done.status()) || absl::IsAborted(done.status())) << done.status();
            ++unknown;
        }
    };
    const auto kept = store->grant_lease(60'000).value();
    for (size_t member = 0; member < 3; ++member) {
        for (int i = 0; i < 20; ++i) count_up();
        cluster.kill(member);
        for (int i = 0; i < 20; ++i) count_up();
        EXPECT_TRUE(store->renew_lease(kept).ok());
        cluster.restart(member);
        // Until it takes part again, no other one may go.
        const auto back = open_etcd_store({{cluster.endpoints()[member]}, {}, "strata/"});
        ASSERT_TRUE(back.ok()) << back.status();
    }
    const int last = std::stoi((**store->get("counter")).value);
    EXPECT_GE(last, committed);
    EXPECT_LE(last, committed + unknown);
    EXPECT_GT(committed, 100);
    // Every change was told, once.
    for (int i = 1; i <= last; ++i) ASSERT_EQ(told.next(), fmt::format("counter={}", i));
}

TEST(EtcdStoreTest, speaks_tls) {
    const EtcdCluster cluster(1, true);
    const auto store = open_etcd_store({cluster.endpoints(), cluster.tls(), "strata/"});
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->commit({.puts = {{"a", "1"}}}).ok());
    EXPECT_EQ((**(*store)->get("a")).value, "1");
    EXPECT_TRUE(absl::IsUnavailable(open_etcd_store({cluster.endpoints(), {}, "strata/", kShort}).status()));
}

TEST(EtcdStoreTest, what_was_compacted_ends_a_watch) {
    const EtcdCluster cluster(1);
    const auto store = open_etcd_store({cluster.endpoints(), {}, "strata/"}).value();
    int64_t revision = 0;
    for (int i = 0; i < 5; ++i) revision = store->commit({.puts = {{"a", std::to_string(i)}}}).value();
    const auto kv =
        etcdserverpb::KV::NewStub(grpc::CreateChannel(cluster.endpoints()[0], grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    etcdserverpb::CompactionRequest request;
    request.set_revision(revision);
    etcdserverpb::CompactionResponse response;
    ASSERT_TRUE(kv->Compact(&context, request, &response).ok());
    Told old;
    const auto too_old = store->watch("", revision - 3, old.changes(), old.ended());
    if (too_old.ok()) { // etcd says it a moment later
        EXPECT_EQ(old.next(), "ended");
    }
    EXPECT_TRUE(too_old.ok() || absl::IsOutOfRange(too_old.status())) << too_old.status();
    Told told;
    const auto watch = store->watch("", revision, told.changes(), told.ended()).value();
    ASSERT_TRUE(store->commit({.puts = {{"a", "new"}}}).ok());
    EXPECT_EQ(told.next(), "a=new");
}

TEST(EtcdStoreTest, one_that_is_not_there_says_so) {
    const auto opened = open_etcd_store({{"127.0.0.1:1"}, {}, "strata/", kShort});
    EXPECT_TRUE(absl::IsUnavailable(opened.status())) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr("127.0.0.1:1"));
}

TEST(EtcdOptionsTest, are_a_url) {
    const auto options = EtcdOptions::parse("etcd://a:1,[::1]:2,c/mine");
    ASSERT_TRUE(options.ok()) << options.status();
    EXPECT_THAT(options->endpoints, ElementsAre("a:1", "[::1]:2", "c:2379"));
    EXPECT_EQ(options->prefix, "mine/");
    EXPECT_EQ(EtcdOptions::parse("etcd://a")->prefix, "strata/");
    for (const char * bad : {"", "etcd://", "http://a", "etcd://a,,b", "etcd://a/b c", "etcd://a b"}) {
        EXPECT_FALSE(EtcdOptions::parse(bad).ok()) << bad;
    }
}

} // namespace
} // namespace strata::cluster
