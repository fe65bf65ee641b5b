#pragma once

#include "base/home.h"
#include "base/status.h"
#include "cli/client.h"
#include "cli/output.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>

#include <functional>
#include <string>

namespace strata::cli {

// What every command gets.
struct Context {
    Home home;
    Output output;
    bool may_start_daemon = true; // --no-start clears it

    // The daemon's client. `client_or_start` starts a daemon in the background when none runs; commands that only look
    // at what runs use `client`.
    absl::StatusOr<Client> client() const { return Client::connect(home); }
    absl::StatusOr<Client> client_or_start() const;
};

// What a command does; the exit status is 0, or 1 when it did its job and what it found is bad. An error is shown by
// main.
using Action = std::function<absl::StatusOr<int>(const Context &)>;

// A wrong use of a command that the parser can't see. main shows it and ends with exit status 2.
absl::Status usage_error(std::string_view message);
bool is_usage_error(const absl::Status & status);

// The commands of the program. Each add_… function below adds some.
class Commands {
public:
    explicit Commands(CLI::App & app)
        : app_(app) {}

    // Adds a command; `description` is one line for the list and, after a newline, the rest for its own help.
    CLI::App & add(const std::string & group, const std::string & name, const std::string & description,
                   const std::string & examples, Action action);
    // Of the command that was given.
    const Action & chosen() const { return chosen_; }
    const CLI::App & app() const { return app_; }

private:
    CLI::App & app_;
    Action chosen_;
};

void add_run_command(Commands & commands);         // run
void add_embed_command(Commands & commands);       // embed
void add_transfer_commands(Commands & commands);   // import, pull
void add_model_commands(Commands & commands);      // ls, show, verify, rm, gc
void add_deployment_commands(Commands & commands); // ps, stop, logs
void add_cluster_commands(Commands & commands);    // nodes, node, token, join, leave, deploy, ...
void add_program_commands(Commands & commands);    // serve, version, completion

} // namespace strata::cli
