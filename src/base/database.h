#pragma once

#include "base/status.h"

#include <absl/functional/function_ref.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

struct sqlite3;

namespace strata {

// A SQLite file. Thread-safe; calls wait for each other and for the disk.
class Database {
public:
    using Value = std::variant<std::monostate, int64_t, std::string>; // NULL, INTEGER, TEXT
    using Row = std::vector<Value>;
    struct Options {
        // Step N brings a file of format N to format N + 1. One that was released is never changed; another is added.
        std::span<const char * const> migrations;
        // Whether a change survives a power failure once the call has returned; else only the end of the process.
        bool durable = false;
        // What is lost by starting with a new file: "models are not touched, only …".
        std::string loss;
    };

    // Made when there is none. An error says what to do: a damaged file, or one that a newer release wrote.
    static absl::StatusOr<std::unique_ptr<Database>> open(const std::filesystem::path & file, const Options & options);
    ~Database();
    Database(const Database &) = delete;
    Database & operator=(const Database &) = delete;

    // One statement, with its "?" in order.
    absl::StatusOr<std::vector<Row>> query(const char * sql, const std::vector<Value> & values = {});

    // Several statements, all of which happen, or none when one of them or `work` fails.
    using Query = absl::FunctionRef<absl::StatusOr<std::vector<Row>>(const char * sql, const std::vector<Value> &)>;
    absl::Status transaction(absl::FunctionRef<absl::Status(Query)> work);

    // A copy of the file as it is now, while others use it. Replaces `to`, whole or not at all.
    absl::Status back_up(const std::filesystem::path & to);

    // Of a value of that type, else empty or 0.
    static std::string text(const Value & value);
    static int64_t number(const Value & value);

private:
    struct Close {
        void operator()(sqlite3 * db) const;
    };
    Database(sqlite3 * db, std::filesystem::path file, std::string loss);

    absl::Status failure(std::string_view what) const;
    absl::Status damaged(std::string_view how) const;
    absl::Status check(bool durable);
    absl::Status migrate(std::span<const char * const> migrations);
    absl::StatusOr<std::vector<Row>> run(const char * sql, const std::vector<Value> & values); // mutex_ held

    std::unique_ptr<sqlite3, Close> db_;
    const std::filesystem::path file_;
    const std::string loss_;
    std::mutex mutex_; // sqlite3_errmsg belongs to the last call of any thread
};

} // namespace strata
