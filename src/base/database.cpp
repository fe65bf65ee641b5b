#include "base/database.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <system_error>

namespace strata {

namespace {

constexpr int kBusyTimeoutMs = 5000;
constexpr int kBackupPages = -1; // all at once: writers wait anyway

struct Finalize {
    void operator()(sqlite3_stmt * statement) const { sqlite3_finalize(statement); }
};

void bind(sqlite3_stmt * statement, int position, const Database::Value & value) {
    if (const auto * number = std::get_if<int64_t>(&value)) {
        sqlite3_bind_int64(statement, position, *number);
    } else if (const auto * text = std::get_if<std::string>(&value)) {
        sqlite3_bind_text64(statement, position, text->data(), text->size(), SQLITE_TRANSIENT, SQLITE_UTF8);
    } else {
        sqlite3_bind_null(statement, position);
    }
}

Database::Value column(sqlite3_stmt * statement, int position) {
    switch (sqlite3_column_type(statement, position)) {
    case SQLITE_NULL:
        return {};
    case SQLITE_INTEGER:
        return int64_t{sqlite3_column_int64(statement, position)};
    default:
        const auto * bytes = reinterpret_cast<const char *>(sqlite3_column_text(statement, position));
        const auto length = static_cast<size_t>(sqlite3_column_bytes(statement, position));
        return bytes == nullptr ? std::string() : std::string(bytes, length);
    }
}

} // namespace

void Database::Close::operator()(sqlite3 * db) const {
    sqlite3_close(db);
}

Database::Database(sqlite3 * db, std::filesystem::path file, std::string loss)
    : db_(db)
    , file_(std::move(file))
    , loss_(std::move(loss)) {}

Database::~Database() = default;

absl::StatusOr<std::unique_ptr<Database>> Database::open(const std::filesystem::path & file, const Options & options) {
    sqlite3 * raw = nullptr;
    const int opened = sqlite3_open_v2(file.c_str(), &raw,
                                       SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX, nullptr);
    std::unique_ptr<Database> database(new Database(raw, file, options.loss));
    if (opened != SQLITE_OK) return database->failure("open");
    sqlite3_busy_timeout(raw, kBusyTimeoutMs);
    STRATA_RETURN_IF_ERROR(database->check(options.durable));
    STRATA_RETURN_IF_ERROR(database->migrate(options.migrations));
    return database;
}

std::string Database::text(const Value & value) {
    const auto * found = std::get_if<std::string>(&value);
    return found == nullptr ? std::string() : *found;
}

int64_t Database::number(const Value & value) {
    const auto * found = std::get_if<int64_t>(&value);
    return found == nullptr ? 0 : *found;
}

absl::StatusOr<std::vector<Database::Row>> Database::query(const char * sql, const std::vector<Value> & values) {
    const std::lock_guard lock(mutex_);
    return run(sql, values);
}

absl::Status Database::transaction(absl::FunctionRef<absl::Status(Query)> work) {
    const std::lock_guard lock(mutex_);
    STRATA_RETURN_IF_ERROR(run("BEGIN IMMEDIATE", {}).status());
    absl::Status status =
        work([this](const char * sql, const std::vector<Value> & values) { return run(sql, values); });
    if (status.ok()) status = run("COMMIT", {}).status();
    // Some errors end the transaction by themselves; then there is nothing to roll back.
    if (!status.ok() && sqlite3_get_autocommit(db_.get()) == 0) run("ROLLBACK", {}).IgnoreError();
    return status;
}

absl::Status Database::back_up(const std::filesystem::path & to) {
    const std::filesystem::path unfinished = to.native() + ".unfinished";
    std::error_code failed;
    std::filesystem::remove(unfinished, failed);
    {
        const std::lock_guard lock(mutex_);
        sqlite3 * raw = nullptr;
        const int opened = sqlite3_open(unfinished.c_str(), &raw);
        const std::unique_ptr<sqlite3, Close> copy(raw);
        sqlite3_backup * backup = opened == SQLITE_OK ? sqlite3_backup_init(raw, "main", db_.get(), "main") : nullptr;
        if (backup != nullptr) sqlite3_backup_step(backup, kBackupPages);
        if (backup == nullptr || sqlite3_backup_finish(backup) != SQLITE_OK) {
            absl::Status status = absl::InternalError(fmt::format(
                "cannot back up to {}: {}", to.native(), raw == nullptr ? "out of memory" : sqlite3_errmsg(raw)));
            std::filesystem::remove(unfinished, failed);
            return status;
        }
    }
    std::filesystem::rename(unfinished, to, failed);
    return failed ? errno_status(failed.value(), "replace", to.native()) : absl::OkStatus();
}

absl::Status Database::failure(std::string_view what) const {
    const int code = db_ == nullptr ? SQLITE_NOMEM : sqlite3_errcode(db_.get());
    const char * message = db_ == nullptr ? "out of memory" : sqlite3_errmsg(db_.get());
    if (code == SQLITE_CORRUPT || code == SQLITE_NOTADB) return damaged(message);
    const std::string sentence = fmt::format("cannot {} {}: {}", what, file_.native(), message);
    if (code == SQLITE_FULL) return absl::ResourceExhaustedError(sentence + "; free some space and try again");
    return absl::InternalError(sentence);
}

absl::Status Database::damaged(std::string_view how) const {
    return absl::DataLossError(fmt::format(
        "{0} is damaged ({1}); move it away (mv {0} {0}.damaged) and start again: {2}", file_.native(), how, loss_));
}

absl::Status Database::check(bool durable) {
    STRATA_ASSIGN_OR_RETURN(const auto rows, query("PRAGMA quick_check(1)"));
    if (rows.empty() || text(rows[0][0]) != "ok") return damaged(rows.empty() ? "no answer" : text(rows[0][0]));
    STRATA_RETURN_IF_ERROR(query("PRAGMA journal_mode = WAL").status());
    return query(durable ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL").status();
}

absl::Status Database::migrate(std::span<const char * const> migrations) {
    STRATA_ASSIGN_OR_RETURN(const auto rows, query("PRAGMA user_version"));
    size_t version = rows.empty() ? 0 : static_cast<size_t>(number(rows[0][0]));
    if (version > migrations.size()) {
        return absl::FailedPreconditionError(
            fmt::format("{} was written by a newer strata (format {}, this one knows {}); use that release",
                        file_.native(), version, migrations.size()));
    }
    for (; version < migrations.size(); ++version) {
        const std::string step =
            fmt::format("BEGIN IMMEDIATE; {} PRAGMA user_version = {}; COMMIT;", migrations[version], version + 1);
        if (sqlite3_exec(db_.get(), step.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) {
            absl::Status failed = failure("prepare");
            sqlite3_exec(db_.get(), "ROLLBACK", nullptr, nullptr, nullptr);
            return failed;
        }
    }
    return absl::OkStatus();
}

absl::StatusOr<std::vector<Database::Row>> Database::run(const char * sql, const std::vector<Value> & values) {
    sqlite3_stmt * raw = nullptr;
    if (sqlite3_prepare_v2(db_.get(), sql, -1, &raw, nullptr) != SQLITE_OK) return failure("use");
    const std::unique_ptr<sqlite3_stmt, Finalize> statement(raw);
    for (size_t i = 0; i < values.size(); ++i) bind(raw, static_cast<int>(i) + 1, values[i]);
    std::vector<Row> rows;
    int step = 0;
    while ((step = sqlite3_step(raw)) == SQLITE_ROW) {
        Row & row = rows.emplace_back();
        for (int i = 0; i < sqlite3_column_count(raw); ++i) row.push_back(column(raw, i));
    }
    if (step != SQLITE_DONE) return failure("use");
    return rows;
}

} // namespace strata
