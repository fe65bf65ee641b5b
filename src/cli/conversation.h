#pragma once

#include "base/status.h"
#include "cli/chat.h"

#include <string>
#include <string_view>
#include <vector>

namespace strata::cli {

// A conversation with a model, and the commands ("/…") that change it. Not thread-safe.
class Conversation {
public:
    Conversation(std::string model, std::string system, ChatOptions options)
        : model_(std::move(model))
        , system_(std::move(system))
        , options_(std::move(options)) {}

    static bool is_command(std::string_view line) { return line.starts_with('/'); }
    // Does what the line says and returns what to show. An error says how it should have been written.
    absl::StatusOr<std::string> command(std::string_view line);
    bool ended() const { return ended_; } // by /bye

    // The request for the answer to `question`, after all that was said before.
    std::string request(std::string_view question) const;
    // What was said becomes part of the conversation.
    void add(std::string question, std::string answer);

    bool verbose() const { return verbose_; }
    const std::vector<ChatMessage> & messages() const { return messages_; }
    const ChatOptions & options() const { return options_; }

private:
    absl::StatusOr<std::string> set(std::string_view arguments);
    absl::StatusOr<std::string> save(std::string_view file) const;
    std::string settings() const;
    std::vector<ChatMessage> with_system() const;

    std::string model_;
    std::string system_;
    ChatOptions options_;
    std::vector<ChatMessage> messages_; // without the system's
    bool verbose_ = true;
    bool ended_ = false;
};

} // namespace strata::cli
