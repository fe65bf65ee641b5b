#include "daemon/state.h"

#include "base/database.h"

#include <fmt/format.h>
#include <google/protobuf/util/json_util.h>
#include <nlohmann/json.hpp>

#include <array>
#include <utility>

namespace strata::daemon {

namespace {

using Row = Database::Row;

// Step N brings a file of version N to version N + 1. Never change one that was released; add another.
constexpr std::array kMigrations = {
    "CREATE TABLE deployments ("
    "  model TEXT PRIMARY KEY, options TEXT NOT NULL, keep INTEGER NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE engines ("
    "  model TEXT PRIMARY KEY, pid INTEGER NOT NULL, start_ticks INTEGER NOT NULL, boot_id TEXT NOT NULL,"
    "  socket TEXT NOT NULL, build TEXT NOT NULL, model_digest TEXT NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE sequences (name TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;",
    "CREATE TABLE membership ("
    "  only INTEGER PRIMARY KEY CHECK (only = 1), cluster TEXT NOT NULL, name TEXT NOT NULL, address TEXT NOT NULL,"
    "  leader TEXT NOT NULL, removed TEXT NOT NULL);",
};

class SqliteState final : public StateStore {
public:
    static absl::StatusOr<std::unique_ptr<StateStore>> open(const std::filesystem::path & file) {
        STRATA_ASSIGN_OR_RETURN(auto database,
                                Database::open(file, {.migrations = kMigrations,
                                                      .loss = "models are not touched, only kept deployments and their "
                                                              "options are lost"}));
        return std::unique_ptr<StateStore>(new SqliteState(std::move(database), file));
    }

    absl::StatusOr<std::vector<SavedDeployment>> deployments() override {
        STRATA_ASSIGN_OR_RETURN(const auto rows,
                                database_->query("SELECT model, options, keep FROM deployments ORDER BY model"));
        std::vector<SavedDeployment> deployments;
        for (const Row & row : rows) {
            SavedDeployment deployment;
            deployment.model = Database::text(row[0]);
            google::protobuf::util::JsonParseOptions lenient;
            lenient.ignore_unknown_fields = true; // of a newer release
            const auto parsed =
                google::protobuf::util::JsonStringToMessage(Database::text(row[1]), &deployment.options, lenient);
            if (!parsed.ok()) {
                return absl::DataLossError(fmt::format("{}: the options of {} can't be read: {}", file_.native(),
                                                       deployment.model, parsed.ToString()));
            }
            deployment.keep = Database::number(row[2]) != 0;
            deployments.push_back(std::move(deployment));
        }
        return deployments;
    }

    absl::Status save(const SavedDeployment & deployment) override {
        std::string options;
        const auto written = google::protobuf::util::MessageToJsonString(deployment.options, &options);
        if (!written.ok()) return absl::InternalError(written.ToString());
        return database_
            ->query("INSERT OR REPLACE INTO deployments (model, options, keep) VALUES (?, ?, ?)",
                    {deployment.model, options, int64_t{deployment.keep}})
            .status();
    }

    absl::Status forget_deployment(const std::string & model) override {
        return database_->query("DELETE FROM deployments WHERE model = ?", {model}).status();
    }

    absl::StatusOr<std::vector<SavedEngine>> engines() override {
        STRATA_ASSIGN_OR_RETURN(
            const auto rows,
            database_->query(
                "SELECT model, pid, start_ticks, boot_id, socket, build, model_digest FROM engines ORDER BY model"));
        std::vector<SavedEngine> engines;
        for (const Row & row : rows) {
            engines.push_back(
                SavedEngine{Database::text(row[0]),
                            ProcessId{static_cast<pid_t>(Database::number(row[1])),
                                      static_cast<uint64_t>(Database::number(row[2])), Database::text(row[3])},
                            Database::text(row[4]), Database::text(row[5]), Database::text(row[6])});
        }
        return engines;
    }

    absl::Status save(const SavedEngine & engine) override {
        return database_
            ->query("INSERT OR REPLACE INTO engines (model, pid, start_ticks, boot_id, socket, build, model_digest) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    {engine.model, int64_t{engine.process.pid}, static_cast<int64_t>(engine.process.start_ticks),
                     engine.process.boot_id, engine.socket, engine.build, engine.model_digest})
            .status();
    }

    absl::Status forget_engine(const std::string & model) override {
        return database_->query("DELETE FROM engines WHERE model = ?", {model}).status();
    }

    absl::StatusOr<SavedMembership> membership() override {
        STRATA_ASSIGN_OR_RETURN(const auto rows,
                                database_->query("SELECT cluster, name, address, leader, removed FROM membership"));
        if (rows.empty()) return SavedMembership{};
        const Row & row = rows[0];
        SavedMembership membership{Database::text(row[0]), Database::text(row[1]), Database::text(row[2]),
                                   Database::text(row[3])};
        const auto removed = nlohmann::json::parse(Database::text(row[4]), nullptr, false);
        for (const auto & admission : removed) {
            if (admission.is_string()) membership.removed.push_back(admission);
        }
        return membership;
    }

    absl::Status save(const SavedMembership & membership) override {
        return database_
            ->query("INSERT OR REPLACE INTO membership (only, cluster, name, address, leader, removed) "
                    "VALUES (1, ?, ?, ?, ?, ?)",
                    {membership.cluster, membership.name, membership.address, membership.leader,
                     nlohmann::json(membership.removed).dump()})
            .status();
    }

    absl::StatusOr<int64_t> next_number(const std::string & sequence) override {
        STRATA_ASSIGN_OR_RETURN(const auto rows,
                                database_->query("INSERT INTO sequences (name, last) VALUES (?, 1) "
                                                 "ON CONFLICT (name) DO UPDATE SET last = last + 1 RETURNING last",
                                                 {sequence}));
        if (rows.empty()) return absl::InternalError("the state store gave no number");
        return Database::number(rows[0][0]);
    }

private:
    SqliteState(std::unique_ptr<Database> database, std::filesystem::path file)
        : database_(std::move(database))
        , file_(std::move(file)) {}

    const std::unique_ptr<Database> database_;
    const std::filesystem::path file_;
};

} // namespace

absl::StatusOr<std::unique_ptr<StateStore>> open_sqlite_state(const std::filesystem::path & file) {
    return SqliteState::open(file);
}

} // namespace strata::daemon
