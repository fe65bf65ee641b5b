#pragma once

#include "base/status.h"

#include <google/protobuf/message.h>
#include <nlohmann/json.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace strata::cli {

using Json = nlohmann::ordered_json;

enum class Style { kPlain, kBold, kDim, kRed, kGreen, kYellow, kCyan };

// Where a command writes: what was asked for goes to stdout, everything else to stderr. Used by one thread.
struct Output {
    bool json = false;         // one JSON document, or JSON lines where a command streams
    bool out_terminal = false; // stdout is a terminal
    bool err_terminal = false;
    bool out_color = false;
    bool err_color = false;

    // Looks at the terminals, NO_COLOR and TERM.
    static Output detect(bool json, bool no_color);

    void text(std::string_view text) const;  // to stdout as it is, flushed
    void line(std::string_view text) const;  // to stdout, with a newline
    void note(std::string_view text) const;  // to stderr, dim, with a newline; nothing in JSON mode
    void document(const Json & json) const;  // a whole document
    void json_line(const Json & json) const; // one of several, flushed
    // "strata: what happened; what to do" on stderr, or {"error":{code,message}} on stdout.
    void error(const absl::Status & status) const;
    // Whether all that went to stdout was written: a disk may be full. For the end of the program.
    static absl::Status written();

    std::string out_style(Style style, std::string_view text) const;
    std::string err_style(Style style, std::string_view text) const;
};

// A message in protobuf's JSON mapping, as the daemon's HTTP API has it too, but with all fields present (absent
// sub-messages are null) and with 64-bit numbers as numbers, for the sake of scripts.
Json to_json(const google::protobuf::Message & message);

// A table for people: columns aligned by what they take on a terminal.
class Table {
public:
    enum class Align { kLeft, kRight };
    struct Column {
        std::string title;
        Align align = Align::kLeft;
    };
    struct Cell {
        std::string text; // made safe for a terminal here
        Style style = Style::kPlain;

        Cell(std::string t, Style s = Style::kPlain)
            : text(std::move(t))
            , style(s) {} // NOLINT: meant to convert
        Cell(const char * t)
            : text(t) {} // NOLINT
    };

    explicit Table(std::vector<Column> columns)
        : columns_(std::move(columns)) {}
    void add(std::vector<Cell> row); // as many cells as there are columns
    std::string render(const Output & output) const;

private:
    std::vector<Column> columns_;
    std::vector<std::vector<Cell>> rows_;
};

} // namespace strata::cli
