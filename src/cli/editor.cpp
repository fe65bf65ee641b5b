#include "cli/editor.h"

#include "base/unique_fd.h"
#include "cli/input.h"
#include "cli/interrupt.h"
#include "cli/text.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <histedit.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cwchar>
#include <utility>
#include <vector>

namespace strata::cli {

namespace {

constexpr std::string_view kQuotes = "\"\"\"";
constexpr int kHistoryLines = 1000;
constexpr uintmax_t kMaxHistoryBytes = 1 << 20; // then the file is cut to its last lines
constexpr size_t kMaxPasteBytes = 4 << 20;
constexpr int kPasteSilenceMs = 2000; // a terminal that never marks the end of a paste
constexpr std::string_view kPasteEnd = "\x1b[201~";

void write_out(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

} // namespace

std::optional<std::string> MessageAssembler::add(std::string_view line) {
    if (begun_) text_ += '\n';
    if (!begun_ && line.starts_with(kQuotes)) {
        quoted_ = true;
        line.remove_prefix(kQuotes.size());
    }
    begun_ = true;
    bool complete = !quoted_;
    if (quoted_ && line.ends_with(kQuotes)) {
        line.remove_suffix(kQuotes.size());
        complete = true;
    } else if (!quoted_ && line.ends_with('\\')) {
        line.remove_suffix(1);
        complete = false;
    }
    text_ += line;
    if (!complete) return std::nullopt;

    std::string message = std::exchange(text_, {});
    // Quotes on lines of their own add no empty line.
    if (quoted_ && message.starts_with('\n')) message.erase(0, 1);
    if (quoted_ && message.ends_with('\n')) message.pop_back();
    reset();
    return message;
}

void MessageAssembler::reset() {
    text_.clear();
    begun_ = false;
    quoted_ = false;
}

struct LineEditor::State {
    explicit State(const std::filesystem::path & file)
        : history_file(file) {}

    std::filesystem::path history_file;
    UniqueFd wake{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)}; // written by Ctrl-C
    EditLine * editor = nullptr;
    History * history = nullptr;
    std::string prompt;
    bool interrupted = false;
    std::vector<std::pair<std::string, std::string>> pasted; // what stands in the line, and what it stands for

    // One byte of the terminal: 1; 0 at its end; -1 when interrupted or after `timeout_ms` of silence.
    int read_byte(char & byte, int timeout_ms) {
        while (true) {
            pollfd waits[2] = {{STDIN_FILENO, POLLIN, 0}, {wake.get(), POLLIN, 0}};
            const int ready = ::poll(waits, 2, timeout_ms);
            if (ready < 0 && errno == EINTR) continue; // the window was resized
            if (ready <= 0) return -1;
            if ((waits[1].revents & POLLIN) != 0) {
                interrupted = true;
                return -1;
            }
            const ssize_t got = ::read(STDIN_FILENO, &byte, 1);
            if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
            return got == 1 ? 1 : 0; // EIO: the terminal is gone
        }
    }

    // Reads a paste to its end and puts it, or what stands for its lines, into the line.
    unsigned char take_paste() {
        std::string text;
        char byte = 0;
        while (text.size() < kMaxPasteBytes && !text.ends_with(kPasteEnd) && read_byte(byte, kPasteSilenceMs) == 1) {
            text += byte;
        }
        if (text.ends_with(kPasteEnd)) text.resize(text.size() - kPasteEnd.size());
        std::replace(text.begin(), text.end(), '\r', '\n'); // what terminals send for the end of a line
        while (text.ends_with('\n')) text.pop_back();
        text = safe_text(text, true);
        const auto lines = static_cast<size_t>(std::count(text.begin(), text.end(), '\n')) + 1;
        if (lines > 1) {
            pasted.emplace_back(fmt::format("[pasted {}: {} lines]", pasted.size() + 1, lines), text);
            text = pasted.back().first;
        }
        std::replace(text.begin(), text.end(), '\t', ' '); // the editor shows one column for each character
        return el_insertstr(editor, text.c_str()) == 0 ? CC_REFRESH : CC_ERROR;
    }

    std::string unfold_pastes(std::string line) {
        for (const auto & [label, text] : std::exchange(pasted, {})) {
            if (const size_t at = line.find(label); at != std::string::npos) line.replace(at, label.size(), text);
        }
        return line;
    }

    // The file has one entry a line, so that it can be read and edited by people too. libedit's own format repeats
    // entries when they are appended.
    void load_history() {
        const std::string entries = last_lines(history_file, kHistoryLines);
        std::error_code error;
        if (std::filesystem::file_size(history_file, error) > kMaxHistoryBytes && !error) rewrite(entries);
        HistEvent event;
        for (size_t start = 0; start < entries.size();) {
            const size_t end = std::min(entries.find('\n', start), entries.size());
            ::history(history, &event, H_ENTER, (entries.substr(start, end - start) + "\n").c_str());
            start = end + 1;
        }
    }

    void remember(const std::string & line) {
        if (line.empty()) return;
        HistEvent event;
        const std::string entry = line + "\n";
        ::history(history, &event, H_ENTER, entry.c_str());
        // Line by line, so that neither a kill nor another program with the same file loses any.
        append(history_file, O_APPEND, entry);
    }

    void rewrite(const std::string & entries) {
        std::filesystem::path temporary = history_file;
        temporary += ".new";
        std::error_code ignored; // the history is a convenience
        if (append(temporary, O_TRUNC, entries + "\n")) std::filesystem::rename(temporary, history_file, ignored);
    }

    // Only the user may read what was typed.
    static bool append(const std::filesystem::path & path, int flags, std::string_view text) {
        const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0600));
        return file.valid() && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
    }
};

namespace {

LineEditor::State & state_of(EditLine * editor) {
    void * data = nullptr;
    el_get(editor, EL_CLIENTDATA, &data);
    return *static_cast<LineEditor::State *>(data);
}

char * prompt_of(EditLine * editor) {
    return state_of(editor).prompt.data();
}

// libedit wants whole characters.
int get_character(EditLine * editor, wchar_t * out) {
    std::mbstate_t shift{};
    while (true) {
        char byte = 0;
        const int got = state_of(editor).read_byte(byte, -1);
        if (got != 1) return got;
        const size_t length = std::mbrtowc(out, &byte, 1, &shift);
        if (length == static_cast<size_t>(-2)) continue; // in the middle of one
        if (length == static_cast<size_t>(-1)) {
            shift = {}; // not UTF-8: dropped
            continue;
        }
        return 1;
    }
}

unsigned char paste(EditLine * editor, int /*key*/) {
    return state_of(editor).take_paste();
}

} // namespace

LineEditor::LineEditor(const std::filesystem::path & history_file)
    : state_(std::make_unique<State>(history_file)) {
    HistEvent event;
    state_->history = history_init();
    history(state_->history, &event, H_SETSIZE, kHistoryLines);
    history(state_->history, &event, H_SETUNIQUE, 1);
    state_->load_history();

    EditLine * editor = el_init("strata", stdin, stdout, stderr);
    state_->editor = editor;
    el_set(editor, EL_CLIENTDATA, state_.get());
    el_set(editor, EL_PROMPT, prompt_of);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, history, state_->history);
    el_set(editor, EL_SIGNAL, 1); // restores the terminal when the program is stopped or ended, follows its size
    el_set(editor, EL_GETCFN, get_character);
    el_set(editor, EL_ADDFN, "strata-paste", "Take text that is pasted", paste);
    constexpr std::pair<const char *, const char *> kKeys[] = {
        {"\\e[200~", "strata-paste"},      {"^R", "em-inc-search-prev"}, {"\\e[H", "ed-move-to-beg"},
        {"\\e[F", "ed-move-to-end"},       {"\\e[1~", "ed-move-to-beg"}, {"\\e[4~", "ed-move-to-end"},
        {"\\e[3~", "ed-delete-next-char"}, {"\\e[1;5D", "ed-prev-word"}, {"\\e[1;5C", "em-next-word"},
        {"\\e[A", "ed-prev-history"},      {"\\e[B", "ed-next-history"},
    };
    for (const auto & [key, function] : kKeys) el_set(editor, EL_BIND, key, function, nullptr);
    el_source(editor, nullptr); // ~/.editrc
}

LineEditor::~LineEditor() {
    el_end(state_->editor);
    history_end(state_->history);
}

LineEditor::Result LineEditor::read_line(std::string_view prompt) {
    State & state = *state_;
    state.prompt = prompt;
    state.interrupted = false;
    state.pasted.clear();
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t drained = ::read(state.wake.get(), &count, sizeof count);
    const InterruptScope interrupt([fd = state.wake.get()] {
        const uint64_t one = 1;
        [[maybe_unused]] const ssize_t written = ::write(fd, &one, sizeof one);
    });

    constexpr std::string_view kMarkPastes = "\x1b[?2004h";
    constexpr std::string_view kDontMarkPastes = "\x1b[?2004l";
    write_out(kMarkPastes);
    // libedit takes the terminal over only after it has shown the prompt; a Ctrl-D typed in between would be lost.
    el_set(state.editor, EL_PREP_TERM, 1);
    int length = 0;
    const char * line = el_gets(state.editor, &length);
    write_out(kDontMarkPastes);

    if (line == nullptr || length <= 0) {
        if (!state.interrupted) return {LineEditor::End::kEndOfInput, {}};
        const LineInfo * line_info = el_line(state.editor);
        const bool typed = line_info->lastchar != line_info->buffer;
        el_reset(state.editor);
        write_out("\n");
        return {LineEditor::End::kInterrupted, {}, typed};
    }
    std::string text(line, static_cast<size_t>(length));
    while (text.ends_with('\n') || text.ends_with('\r')) text.pop_back();
    if (state.pasted.empty()) state.remember(text);
    return {LineEditor::End::kLine, state.unfold_pastes(std::move(text))};
}

LineEditor::Result LineEditor::read_message(std::string_view prompt, std::string_view continuation_prompt) {
    MessageAssembler assembler;
    while (true) {
        Result result = read_line(assembler.empty() ? prompt : continuation_prompt);
        if (result.end != End::kLine) {
            result.typed = result.typed || !assembler.empty(); // Ctrl-C gives up the lines before as well
            return result;
        }
        if (std::optional<std::string> message = assembler.add(result.text)) return {End::kLine, std::move(*message)};
    }
}

} // namespace strata::cli
