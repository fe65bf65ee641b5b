#include "daemon/state.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <sqlite3.h>

#include <array>
#include <mutex>
#include <variant>

namespace strata::daemon {

namespace {

using Value = std::variant<int64_t, std::string>;
using Row = std::vector<Value>;

constexpr int kBusyTimeoutMs = 5000;

// Step N brings a file of version N to version N + 1. Never change one that was released; add another.
constexpr std::array kMigrations = {
    "CREATE TABLE deployments ("
    "  model TEXT PRIMARY KEY, options TEXT NOT NULL, keep INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE engines ("
    "  model TEXT PRIMARY KEY, pid INTEGER NOT NULL, start_ticks INTEGER NOT NULL, boot_id TEXT NOT NULL,"
    "  socket TEXT NOT NULL, build TEXT NOT NULL, model_digest TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE sequences (name TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;",
};

struct CloseDatabase {
    void operator()(sqlite3 * db) const { sqlite3_close(db); }
};
struct FinalizeStatement {
    void operator()(sqlite3_stmt * statement) const { sqlite3_finalize(statement); }
};

class SqliteState final : public StateStore {
public:
    static absl::StatusOr<std::unique_ptr<StateStore>> open(const std::filesystem::path & file) {
        sqlite3 * raw = nullptr;
        const int opened = sqlite3_open_v2(file.c_str(), &raw,
                                           SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
        auto state = std::unique_ptr<SqliteState>(new SqliteState(raw, file));
        if (opened != SQLITE_OK) return state->failure("open");
        sqlite3_busy_timeout(raw, kBusyTimeoutMs);
        STRATA_RETURN_IF_ERROR(state->check());
        STRATA_RETURN_IF_ERROR(state->migrate());
        return state;
    }

    absl::StatusOr<std::vector<SavedDeployment>> deployments() override {
        STRATA_ASSIGN_OR_RETURN(const auto rows, query("SELECT model, options, keep FROM deployments ORDER BY model"));
        std::vector<SavedDeployment> deployments;
        for (const Row & row : rows) {
            SavedDeployment deployment;
            deployment.model = text(row[0]);
            google::protobuf::util::JsonParseOptions lenient;
            lenient.ignore_unknown_fields = true; // of a newer release
            const auto parsed = google::protobuf::util::JsonStringToMessage(text(row[1]), &deployment.options, lenient);
            if (!parsed.ok()) {
                return absl::DataLossError(fmt::format("{}: the options of {} can't be read: {}", file_.native(),
                                                       deployment.model, parsed.ToString()));
            }
            deployment.keep = number(row[2]) != 0;
            deployments.push_back(std::move(deployment));
        }
        return deployments;
    }

    absl::Status save(const SavedDeployment & deployment) override {
        std::string options;
        const auto written = google::protobuf::util::MessageToJsonString(deployment.options, &options);
        if (!written.ok()) return absl::InternalError(written.ToString());
        return query("INSERT OR REPLACE INTO deployments (model, options, keep) VALUES (?, ?, ?)",
                     {deployment.model, options, int64_t{deployment.keep}})
            .status();
    }

    absl::Status forget_deployment(const std::string & model) override {
        return query("DELETE FROM deployments WHERE model = ?", {model}).status();
    }

    absl::StatusOr<std::vector<SavedEngine>> engines() override {
        STRATA_ASSIGN_OR_RETURN(
            const auto rows,
            query("SELECT model, pid, start_ticks, boot_id, socket, build, model_digest FROM engines ORDER BY model"));
        std::vector<SavedEngine> engines;
        for (const Row & row : rows) {
            engines.push_back(SavedEngine{
                text(row[0]),
                ProcessId{static_cast<pid_t>(number(row[1])), static_cast<uint64_t>(number(row[2])), text(row[3])},
                text(row[4]), text(row[5]), text(row[6])});
        }
        return engines;
    }

    absl::Status save(const SavedEngine & engine) override {
        return query("INSERT OR REPLACE INTO engines (model, pid, start_ticks, boot_id, socket, build, model_digest) "
                     "VALUES (?, ?, ?, ?, ?, ?, ?)",
                     {engine.model, int64_t{engine.process.pid}, static_cast<int64_t>(engine.process.start_ticks),
                      engine.process.boot_id, engine.socket, engine.build, engine.model_digest})
            .status();
    }

    absl::Status forget_engine(const std::string & model) override {
        return query("DELETE FROM engines WHERE model = ?", {model}).status();
    }

    absl::StatusOr<int64_t> next_number(const std::string & sequence) override {
        STRATA_ASSIGN_OR_RETURN(const auto rows,
                                query("INSERT INTO sequences (name, last) VALUES (?, 1) "
                                      "ON CONFLICT (name) DO UPDATE SET last = last + 1 RETURNING last",
                                      {sequence}));
        if (rows.empty()) return absl::InternalError("the state store gave no number");
        return number(rows[0][0]);
    }

private:
    SqliteState(sqlite3 * db, std::filesystem::path file)
        : db_(db)
        , file_(std::move(file)) {}

    static std::string text(const Value & value) {
        const auto * found = std::get_if<std::string>(&value);
        return found == nullptr ? std::string() : *found;
    }
    static int64_t number(const Value & value) {
        const auto * found = std::get_if<int64_t>(&value);
        return found == nullptr ? 0 : *found;
    }

    absl::Status failure(std::string_view what) const {
        const int code = db_ == nullptr ? SQLITE_NOMEM : sqlite3_errcode(db_.get());
        const char * message = db_ == nullptr ? "out of memory" : sqlite3_errmsg(db_.get());
        if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB) return damaged(message);
        const std::string sentence = fmt::format("cannot {} {}: {}", what, file_.native(), message);
        if (code == SQLITE_FULL) return absl::ResourceExhaustedError(sentence + "; free some space and try again");
        return absl::InternalError(sentence);
    }

    absl::Status damaged(std::string_view how) const {
        return absl::DataLossError(
            fmt::format("{0} is damaged ({1}); move it away (mv {0} {0}.damaged) and start again: "
                        "models are not touched, only kept deployments and their options are lost",
                        file_.native(), how));
    }

    absl::Status check() {
        STRATA_ASSIGN_OR_RETURN(const auto rows, query("PRAGMA quick_check(1)"));
        if (rows.empty() || text(rows[0][0]) != "ok") return damaged(rows.empty() ? "no answer" : text(rows[0][0]));
        STRATA_RETURN_IF_ERROR(query("PRAGMA journal_mode = WAL").status());
        return query("PRAGMA synchronous = NORMAL").status();
    }

    absl::Status migrate() {
        STRATA_ASSIGN_OR_RETURN(const auto rows, query("PRAGMA user_version"));
        int64_t version = rows.empty() ? 0 : number(rows[0][0]);
        if (version > static_cast<int64_t>(kMigrations.size())) {
            return absl::FailedPreconditionError(
                fmt::format("{} was written by a newer strata (format {}, this one knows {}); use that release",
                            file_.native(), version, kMigrations.size()));
        }
        for (; version < static_cast<int64_t>(kMigrations.size()); ++version) {
            const std::string step = fmt::format("BEGIN IMMEDIATE; {} PRAGMA user_version = {}; COMMIT;",
                                                 kMigrations[static_cast<size_t>(version)], version + 1);
            if (sqlite3_exec(db_.get(), step.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) {
                absl::Status failed = failure("prepare");
                sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
                return failed;
            }
        }
        return absl::OkStatus();
    }

    absl::StatusOr<std::vector<Row>> query(const char * sql, const std::vector<Value> & values = {}) {
        const std::lock_guard lock(mutex_); // sqlite3_errmsg belongs to the last call of any thread
        sqlite3_stmt * raw = nullptr;
        if (sqlite3_prepare_v2(db_.get(), sql, -1, &raw, nullptr) != SQLITE_OK) return failure("use");
        const std::unique_ptr<sqlite3_stmt, FinalizeStatement> statement(raw);
        for (size_t i = 0; i < values.size(); ++i) {
            const int position = static_cast<int>(i) + 1;
            if (const auto * integer = std::get_if<int64_t>(&values[i])) {
                sqlite3_bind_int64(raw, position, *integer);
            } else {
                const auto & string = std::get<std::string>(values[i]);
                sqlite3_bind_text64(raw, position, string.data(), string.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
            }
        }
        std::vector<Row> rows;
        int step = 0;
        while ((step = sqlite3_step(raw)) == SQLITE_ROW) {
            Row & row = rows.emplace_back();
            for (int column = 0; column < sqlite3_column_count(raw); ++column) {
                if (sqlite3_column_type(raw, column) == SQLITE_INTEGER) {
                    row.emplace_back(int64_t{sqlite3_column_int64(raw, column)});
                } else {
                    const auto * bytes = reinterpret_cast<const char *>(sqlite3_column_text(raw, column));
                    const auto length = static_cast<size_t>(sqlite3_column_bytes(raw, column));
                    row.emplace_back(bytes == nullptr ? std::string() : std::string(bytes, length));
                }
            }
        }
        if (step != SQLITE_DONE) return failure("use");
        return rows;
    }

    std::unique_ptr<sqlite3, CloseDatabase> db_;
    std::filesystem::path file_;
    std::mutex mutex_;
};

} // namespace

absl::StatusOr<std::unique_ptr<StateStore>> open_sqlite_state(const std::filesystem::path & file) {
    return SqliteState::open(file);
}

} // namespace strata::daemon
