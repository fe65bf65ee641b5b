#include "cluster/sqlite_store.h"

#include "base/check.h"
#include "base/database.h"
#include "cluster/keys.h"
#include "cluster/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <utility>

namespace strata::cluster {

namespace {

using std::chrono::milliseconds;
using Time = std::chrono::steady_clock::time_point;
using Row = Database::Row;

// A row of `changes` without a value says that the key was removed. `numbers` has the store's revision, and the last
// one whose changes are forgotten.
constexpr std::array kMigrations = {
    "CREATE TABLE entries ("
    "  key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL, lease INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE INDEX entries_of_lease ON entries (lease) WHERE lease != 0;"
    "CREATE TABLE changes (revision INTEGER, key TEXT, value TEXT, PRIMARY KEY (revision, key)) WITHOUT ROWID;"
    "CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL);"
    "CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;"
    "INSERT INTO numbers VALUES ('revision', 0), ('forgotten', 0);",
};

absl::Status lease_is_gone(int64_t lease) {
    return absl::NotFoundError(fmt::format("lease {} has ended", lease));
}

class Sqlite final : public SqliteStore {
public:
    Sqlite(std::unique_ptr<Database> database, Runtime & runtime)
        : runtime_(runtime)
        , database_(std::move(database)) {}

    absl::Status begin() {
        STRATA_ASSIGN_OR_RETURN(const auto rows, database_->query("SELECT id, ttl_ms FROM leases"));
        for (const Row & row : rows) {
            const milliseconds ttl(Database::number(row[1]));
            leases_[Database::number(row[0])] = {ttl, runtime_.clock().now() + ttl};
        }
        worker_ = runtime_.start([this] { return work(); });
        worker_->wake();
        return absl::OkStatus();
    }

    ~Sqlite() override {
        worker_.reset();
        STRATA_CHECK(watches_.empty());
    }

    absl::StatusOr<std::optional<Entry>> get(std::string_view key) override {
        STRATA_RETURN_IF_ERROR(check_key(key));
        STRATA_ASSIGN_OR_RETURN(
            const auto rows, database_->query("SELECT value, revision FROM entries WHERE key = ?", {std::string(key)}));
        if (rows.empty()) return std::nullopt;
        return Entry{std::string(key), Database::text(rows[0][0]), Database::number(rows[0][1])};
    }

    absl::StatusOr<Listing> list(std::string_view prefix) override {
        Listing listing;
        STRATA_RETURN_IF_ERROR(database_->transaction([&](Database::Query query) -> absl::Status {
            STRATA_ASSIGN_OR_RETURN(listing.revision, number(query, "revision"));
            STRATA_ASSIGN_OR_RETURN(
                const auto rows,
                query("SELECT key, value, revision FROM entries WHERE key >= ? AND key < ? ORDER BY key",
                      {std::string(prefix), behind(prefix)}));
            for (const Row & row : rows) {
                listing.entries.push_back({Database::text(row[0]), Database::text(row[1]), Database::number(row[2])});
            }
            return absl::OkStatus();
        }));
        return listing;
    }

    absl::StatusOr<int64_t> commit(const Transaction & transaction) override {
        STRATA_RETURN_IF_ERROR(check(transaction));
        int64_t revision = 0;
        STRATA_RETURN_IF_ERROR(database_->transaction([&](Database::Query query) -> absl::Status {
            for (const auto & condition : transaction.conditions) {
                STRATA_ASSIGN_OR_RETURN(const auto rows,
                                        query("SELECT revision FROM entries WHERE key = ?", {condition.key}));
                const int64_t found = rows.empty() ? 0 : Database::number(rows[0][0]);
                if (found == condition.revision) continue;
                return absl::AbortedError(fmt::format("{} was changed meanwhile (revision {}, not {})", condition.key,
                                                      found, condition.revision));
            }
            std::vector<Change> changes;
            for (const auto & put : transaction.puts) changes.push_back({put.key, put.value});
            for (const auto & key : transaction.removals) {
                STRATA_ASSIGN_OR_RETURN(const auto rows, query("SELECT 1 FROM entries WHERE key = ?", {key}));
                if (!rows.empty()) changes.push_back({key, std::nullopt});
            }
            for (const auto & put : transaction.puts) {
                if (put.lease == 0) continue;
                STRATA_ASSIGN_OR_RETURN(const auto rows, query("SELECT 1 FROM leases WHERE id = ?", {put.lease}));
                if (rows.empty()) return lease_is_gone(put.lease);
            }
            STRATA_ASSIGN_OR_RETURN(revision, write(query, changes));
            for (const auto & put : transaction.puts) {
                STRATA_RETURN_IF_ERROR(
                    query("UPDATE entries SET lease = ? WHERE key = ?", {put.lease, put.key}).status());
            }
            return absl::OkStatus();
        }));
        worker_->wake();
        return revision;
    }

    absl::StatusOr<int64_t> grant_lease(int64_t ttl_ms) override {
        STRATA_RETURN_IF_ERROR(check_lease_time(ttl_ms));
        const std::lock_guard lock(leases_mutex_);
        if (leases_.size() >= limits::kLeases) {
            return absl::ResourceExhaustedError(fmt::format("there are {} leases already", leases_.size()));
        }
        STRATA_ASSIGN_OR_RETURN(const auto rows,
                                database_->query("INSERT INTO leases (ttl_ms) VALUES (?) RETURNING id", {ttl_ms}));
        const int64_t lease = Database::number(rows.at(0).at(0));
        leases_[lease] = {milliseconds(ttl_ms), runtime_.clock().now() + milliseconds(ttl_ms)};
        worker_->wake(); // it may be the first one to end
        return lease;
    }

    absl::Status renew_lease(int64_t lease) override {
        const std::lock_guard lock(leases_mutex_);
        const auto found = leases_.find(lease);
        if (found == leases_.end()) return lease_is_gone(lease);
        found->second.ends = runtime_.clock().now() + found->second.ttl;
        return absl::OkStatus();
    }

    absl::Status end_lease(int64_t lease) override {
        {
            const std::lock_guard lock(leases_mutex_);
            if (leases_.count(lease) == 0) return lease_is_gone(lease);
            STRATA_RETURN_IF_ERROR(remove_lease(lease));
            leases_.erase(lease);
        }
        worker_->wake();
        return absl::OkStatus();
    }

    absl::StatusOr<std::unique_ptr<Watch>> watch(std::string_view prefix, int64_t after, OnChanges changes,
                                                 OnEnd ended) override {
        STRATA_ASSIGN_OR_RETURN(
            const int64_t forgotten,
            number([&](const char * sql, const auto & values) { return database_->query(sql, values); }, "forgotten"));
        if (after < forgotten) return too_old(after, forgotten);
        auto watch = std::make_unique<Watcher>(*this, std::string(prefix), after, std::move(changes), std::move(ended));
        worker_->wake();
        return watch;
    }

    absl::Status back_up(const std::filesystem::path & to) override { return database_->back_up(to); }

private:
    struct LeaseTime {
        milliseconds ttl{};
        Time ends;
    };

    struct Watcher final : Watch {
        Watcher(Sqlite & store, std::string prefix, int64_t after, OnChanges changes, OnEnd ended)
            : store(store)
            , prefix(std::move(prefix))
            , seen(after)
            , changes(std::move(changes))
            , ended(std::move(ended)) {
            const std::lock_guard lock(store.watches_mutex_);
            at = store.watches_.insert(store.watches_.end(), this);
        }
        ~Watcher() override {
            const std::lock_guard lock(store.watches_mutex_); // held while watchers are called
            store.watches_.erase(at);
        }

        Sqlite & store;
        const std::string prefix;
        int64_t seen; // revision; under watches_mutex_
        const OnChanges changes;
        OnEnd ended; // empty: it has been called
        std::list<Watcher *>::iterator at;
    };

    static absl::Status too_old(int64_t after, int64_t forgotten) {
        return absl::OutOfRangeError(
            fmt::format("what changed after revision {} is known from revision {} on only", after, forgotten));
    }

    static absl::StatusOr<int64_t> number(Database::Query query, const char * name) {
        STRATA_ASSIGN_OR_RETURN(const auto rows,
                                query("SELECT value FROM numbers WHERE name = ?", {std::string(name)}));
        if (rows.empty()) return absl::DataLossError(fmt::format("the state store has lost its {}", name));
        return Database::number(rows[0][0]);
    }

    // Writes changes at the next revision, which it returns; without any, the present one.
    static absl::StatusOr<int64_t> write(Database::Query query, const std::vector<Change> & changes) {
        STRATA_ASSIGN_OR_RETURN(int64_t revision, number(query, "revision"));
        if (changes.empty()) return revision;
        ++revision;
        for (const Change & change : changes) {
            const Database::Value value = change.value ? Database::Value(*change.value) : Database::Value();
            STRATA_RETURN_IF_ERROR(
                query("INSERT INTO changes (revision, key, value) VALUES (?, ?, ?)", {revision, change.key, value})
                    .status());
            if (change.value) {
                STRATA_RETURN_IF_ERROR(query("INSERT INTO entries (key, value, revision, lease) VALUES (?, ?, ?, 0) "
                                             "ON CONFLICT (key) DO UPDATE SET value = excluded.value, "
                                             "revision = excluded.revision, lease = 0",
                                             {change.key, *change.value, revision})
                                           .status());
            } else {
                STRATA_RETURN_IF_ERROR(query("DELETE FROM entries WHERE key = ?", {change.key}).status());
            }
        }
        const int64_t forgotten = std::max<int64_t>(revision - limits::kKeptRevisions, 0);
        STRATA_RETURN_IF_ERROR(query("DELETE FROM changes WHERE revision <= ?", {forgotten}).status());
        STRATA_RETURN_IF_ERROR(
            query("UPDATE numbers SET value = CASE name WHEN 'revision' THEN ? ELSE ? END", {revision, forgotten})
                .status());
        return revision;
    }

    absl::Status remove_lease(int64_t lease) {
        return database_->transaction([&](Database::Query query) -> absl::Status {
            STRATA_ASSIGN_OR_RETURN(const auto rows, query("SELECT key FROM entries WHERE lease = ?", {lease}));
            std::vector<Change> changes;
            for (const Row & row : rows) changes.push_back({Database::text(row[0]), std::nullopt});
            STRATA_RETURN_IF_ERROR(write(query, changes).status());
            return query("DELETE FROM leases WHERE id = ?", {lease}).status();
        });
    }

    // ---------------------------------------------------------------- of the worker

    std::chrono::nanoseconds work() {
        const std::chrono::nanoseconds next = end_leases();
        const std::lock_guard lock(watches_mutex_);
        bool behind = false;
        for (Watcher * watcher : watches_) behind = !tell(*watcher) || behind;
        return behind ? Runtime::kMore : next;
    }

    // Ends those whose time is over; when the next one's will be.
    std::chrono::nanoseconds end_leases() {
        const std::lock_guard lock(leases_mutex_);
        const Time now = runtime_.clock().now();
        std::chrono::nanoseconds next = Runtime::kUntilWoken;
        for (auto lease = leases_.begin(); lease != leases_.end();) {
            if (lease->second.ends > now) {
                next = std::min(next, std::chrono::nanoseconds(lease->second.ends - now));
                ++lease;
            } else if (remove_lease(lease->first).ok()) {
                lease = leases_.erase(lease);
            } else { // a full disk, maybe
                next = std::min<std::chrono::nanoseconds>(next, kRetry);
                ++lease;
            }
        }
        return next;
    }

    // The next changes, as many as may be in memory at once; false: there are more.
    bool tell(Watcher & watcher) {
        if (!watcher.ended) return true;
        std::vector<Row> rows;
        int64_t revision = 0, until = 0;
        const absl::Status status = database_->transaction([&](Database::Query query) -> absl::Status {
            STRATA_ASSIGN_OR_RETURN(const int64_t forgotten, number(query, "forgotten"));
            if (watcher.seen < forgotten) return too_old(watcher.seen, forgotten);
            STRATA_ASSIGN_OR_RETURN(revision, number(query, "revision"));
            until = std::min(revision, watcher.seen + kRevisionsAtOnce);
            STRATA_ASSIGN_OR_RETURN(rows, query("SELECT revision, key, value FROM changes WHERE revision > ? AND "
                                                "revision <= ? AND key >= ? AND key < ? ORDER BY revision, key",
                                                {watcher.seen, until, watcher.prefix, behind(watcher.prefix)}));
            return absl::OkStatus();
        });
        if (!status.ok()) {
            std::exchange(watcher.ended, nullptr)(status);
            return true;
        }
        std::vector<Change> changes;
        for (size_t i = 0; i < rows.size(); ++i) {
            const Database::Value & value = rows[i][2];
            changes.push_back(
                {Database::text(rows[i][1]),
                 std::holds_alternative<std::string>(value) ? std::optional(Database::text(value)) : std::nullopt,
                 Database::number(rows[i][0])});
            if (i + 1 < rows.size() && rows[i + 1][0] == rows[i][0]) continue;
            watcher.changes(std::exchange(changes, {}));
        }
        watcher.seen = until;
        return until == revision;
    }

    static constexpr milliseconds kRetry{1000};
    static constexpr int64_t kRevisionsAtOnce = 64;

    Runtime & runtime_;
    const std::unique_ptr<Database> database_;

    std::mutex leases_mutex_; // before the database's
    std::map<int64_t, LeaseTime> leases_;

    std::mutex watches_mutex_; // before the database's
    std::list<Watcher *> watches_;

    std::unique_ptr<Runtime::Worker> worker_; // last: it uses the others
};

} // namespace

absl::StatusOr<std::unique_ptr<SqliteStore>> SqliteStore::open(const std::filesystem::path & file, Runtime & runtime) {
    STRATA_ASSIGN_OR_RETURN(
        auto database,
        Database::open(file, {.migrations = kMigrations,
                              .durable = true,
                              .loss = "the cluster is lost then, unless there is a backup to put in its place; models "
                                      "are not touched"}));
    auto store = std::make_unique<Sqlite>(std::move(database), runtime);
    STRATA_RETURN_IF_ERROR(store->begin());
    return store;
}

} // namespace strata::cluster
