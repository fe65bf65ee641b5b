#pragma once

#include "base/digest.h"
#include "base/status.h"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace strata::layers {

// Parses one JSON document strictly: no comments, valid UTF-8, and no key twice in an object (parsers differ in which
// one they believe, so such a document could mean one thing to us and another to the tool beside us). Depth and number
// of values are bounded by limits.h, and with them the memory. `what` names the document in errors (kInvalidArgument).
absl::StatusOr<nlohmann::json> parse_json(std::string_view text, std::string_view what);

// The document as text; bytes that are not UTF-8 become U+FFFD.
std::string dump_json(const nlohmann::ordered_json & document, int indent = -1);

// Reads typed fields of one JSON object. The first thing that is wrong is remembered and what is read after it is
// empty, so a caller reads all that it wants and asks for the status once. The object and `what` must outlive the
// reader.
class JsonFields {
public:
    // `what` and `number` name the object in errors, e.g. "manifest sha256:… layer", 3.
    JsonFields(const nlohmann::json & object, std::string_view what, std::optional<size_t> number = std::nullopt);

    // Printable text: control characters are refused. Absent is an error.
    std::string text(const char * key, size_t limit);
    // Any text.
    std::string raw_text(const char * key, size_t limit);
    uint64_t number(const char * key);
    int64_t signed_number(const char * key);
    Digest digest(const char * key); // "sha256:…"
    // Empty when absent or of another type; the latter is an error.
    const nlohmann::json & array(const char * key, size_t limit);
    const nlohmann::json & object(const char * key);

    bool has(const char * key) const;
    // Remembers an error that the caller found in what it read.
    void fail(std::string_view sentence);
    bool ok() const { return status_.ok(); }
    const absl::Status & status() const { return status_; }

private:
    std::string name() const;
    const nlohmann::json * find(const char * key);

    const nlohmann::json & object_;
    const std::string_view what_;
    const std::optional<size_t> number_;
    absl::Status status_;
};

} // namespace strata::layers
