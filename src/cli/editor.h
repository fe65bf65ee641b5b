#pragma once

#include "base/status.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace strata::cli {

// Joins lines to one message: a backslash at the end of a line goes on with the next one, and what stands between two
// """ may have any number of lines.
class MessageAssembler {
public:
    // The message, when the line completes one.
    std::optional<std::string> add(std::string_view line);
    bool empty() const { return !begun_; }
    void reset();

private:
    std::string text_;
    bool begun_ = false;
    bool quoted_ = false;
};

// Reads lines from the terminal with editing (Emacs keys, or as ~/.editrc says) and a history that outlives the
// program. Text that is pasted with several lines stays one message, when the terminal marks what is pasted. One at a
// time in a process; used by one thread.
class LineEditor {
public:
    explicit LineEditor(const std::filesystem::path & history_file);
    ~LineEditor();
    LineEditor(const LineEditor &) = delete;
    LineEditor & operator=(const LineEditor &) = delete;

    enum class End { kLine, kInterrupted, kEndOfInput };
    struct Result {
        End end = End::kEndOfInput;
        std::string text;   // without the newline
        bool typed = false; // of kInterrupted: whether there was anything to give up
    };
    Result read_line(std::string_view prompt);
    // A whole message, that may take several lines.
    Result read_message(std::string_view prompt, std::string_view continuation_prompt);

    struct State;

private:
    std::unique_ptr<State> state_;
};

} // namespace strata::cli
