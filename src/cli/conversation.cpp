#include "cli/conversation.h"

#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

namespace strata::cli {

namespace {

constexpr char kHelp[] = R"(/help               this list
/clear              forget the conversation
/system TEXT        set the system prompt (without TEXT: show it)
/set                show the settings
/set NAME VALUE     temperature, top-p, max-tokens, seed or stats; VALUE "default" undoes
/save FILE          write the conversation, as JSON when FILE ends in .json
/bye                leave (or Ctrl-D)

A \ at the end of a line goes on with the next; """ begins and ends several lines.
Ctrl-C ends the answer. Ctrl-R searches what you typed before.)";

std::string_view trim(std::string_view text) {
    while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
    while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
    return text;
}

// "NAME the rest": the first word, and what follows it.
std::pair<std::string_view, std::string_view> first_word(std::string_view text) {
    text = trim(text);
    const size_t end = text.find_first_of(" \n");
    if (end == std::string_view::npos) return {text, {}};
    return {text.substr(0, end), trim(text.substr(end + 1))};
}

template <typename Number>
std::optional<Number> parse_number(std::string_view text) {
    Number number{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return number;
}

// Sets `value` from text within [low, high].
template <typename Number>
absl::StatusOr<std::string> set_number(std::optional<Number> & value, std::string_view name, std::string_view text,
                                       Number low, Number high) {
    if (text == "default") {
        value.reset();
        return fmt::format("{} is the model's default", name);
    }
    const std::optional<Number> number = parse_number<Number>(text);
    if (!number || !(*number >= low && *number <= high)) {
        return absl::InvalidArgumentError(fmt::format("{} is a number from {} to {}, or \"default\"", name, low, high));
    }
    value = number;
    return fmt::format("{} is {}", name, *number);
}

template <typename Number>
std::string shown(const std::optional<Number> & value) {
    return value ? fmt::format("{}", *value) : "default";
}

std::filesystem::path expand_home(std::string_view file) {
    const char * home = std::getenv("HOME");
    if (home != nullptr && file.starts_with("~/")) return std::filesystem::path(home) / file.substr(2);
    return file;
}

} // namespace

absl::StatusOr<std::string> Conversation::command(std::string_view line) {
    const auto [name, rest] = first_word(line);
    if (name == "/help" || name == "/?") return std::string(kHelp);
    if (name == "/bye" || name == "/exit" || name == "/quit") {
        ended_ = true;
        return std::string();
    }
    if (name == "/clear") {
        messages_.clear();
        return std::string("the conversation is forgotten");
    }
    if (name == "/system") {
        if (rest.empty()) return system_.empty() ? std::string("there is no system prompt") : system_;
        system_ = rest;
        return std::string("the system prompt is set");
    }
    if (name == "/set") return set(rest);
    if (name == "/save") return save(rest);
    return absl::InvalidArgumentError(fmt::format("there is no {}; /help lists what there is", name));
}

std::string Conversation::request(std::string_view question) const {
    std::vector<ChatMessage> messages = with_system();
    messages.push_back({"user", std::string(question)});
    return chat_body(model_, messages, options_);
}

void Conversation::add(std::string question, std::string answer) {
    messages_.push_back({"user", std::move(question)});
    messages_.push_back({"assistant", std::move(answer)});
}

std::vector<ChatMessage> Conversation::with_system() const {
    std::vector<ChatMessage> all;
    if (!system_.empty()) all.push_back({"system", system_});
    all.insert(all.end(), messages_.begin(), messages_.end());
    return all;
}

absl::StatusOr<std::string> Conversation::set(std::string_view arguments) {
    const auto [name, value] = first_word(arguments);
    if (name.empty()) return settings();
    if (name == "temperature") return set_number(options_.temperature, name, value, 0.0, 100.0);
    if (name == "top-p") return set_number(options_.top_p, name, value, 0.0, 1.0);
    if (name == "max-tokens") return set_number<int64_t>(options_.max_tokens, name, value, 1, INT32_MAX);
    if (name == "seed") return set_number<int64_t>(options_.seed, name, value, 0, UINT32_MAX);
    if (name == "stats") {
        if (value != "on" && value != "off" && value != "default") {
            return absl::InvalidArgumentError("stats is on or off");
        }
        verbose_ = value != "off";
        return fmt::format("stats are {}", verbose_ ? "on" : "off");
    }
    return absl::InvalidArgumentError(
        fmt::format("there is no setting {}; there are temperature, top-p, max-tokens, seed and stats", name));
}

std::string Conversation::settings() const {
    return fmt::format("temperature  {}\ntop-p        {}\nmax-tokens   {}\nseed         {}\nstats        {}",
                       shown(options_.temperature), shown(options_.top_p), shown(options_.max_tokens),
                       shown(options_.seed), verbose_ ? "on" : "off");
}

absl::StatusOr<std::string> Conversation::save(std::string_view file) const {
    if (file.empty()) return absl::InvalidArgumentError("/save needs the name of a file");
    const std::filesystem::path path = expand_home(file);
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    if (path.extension() == ".json") {
        Json json = {{"model", model_}, {"messages", Json::array()}};
        for (const ChatMessage & message : with_system()) {
            json["messages"].push_back({{"role", message.role}, {"content", message.content}});
        }
        out << json.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
    } else {
        for (const ChatMessage & message : with_system())
            out << "## " << message.role << "\n\n" << message.content << "\n\n";
    }
    out.close();
    if (!out) return errno_status(errno, "write", path.native());
    return fmt::format("{} messages in {}", with_system().size(), path.native());
}

} // namespace strata::cli
