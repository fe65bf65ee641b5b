// strata: the command line. Talks to stratad over its unix socket.

#include "base/version.h"
#include "cli/command.h"
#include "cli/formatter.h"
#include "cli/interrupt.h"
#include "cli/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <sstream>
#include <string_view>
#include <vector>

namespace strata::cli {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

// What failed while the arguments were read, in the form of all errors.
int report_usage(const Output & output, const absl::Status & status, const CLI::App & app) {
    const auto parsed = app.get_subcommands();
    const std::string command = parsed.empty() ? "strata" : "strata " + parsed.front()->get_name();
    std::string message(status.message().data(), status.message().size());
    const bool word_in_capitals = message.size() > 1 && std::isupper(static_cast<unsigned char>(message[1])) != 0;
    if (!message.empty() && !word_in_capitals)
        message[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(message[0])));
    output.error(absl::InvalidArgumentError(message + "; see `" + command + " --help`"));
    return kUsage;
}

// Where no command was found, the word that stands in its place says more than that one is missing.
std::string what_failed(const CLI::ParseError & error, const CLI::App & app) {
    const std::vector<std::string> unknown = app.remaining();
    const auto first = std::find_if(unknown.begin(), unknown.end(), [](const std::string & w) { return w != "--"; });
    if (first == unknown.end() || !app.get_subcommands().empty()) return error.what();
    return fmt::format("there is no {} \"{}\"", first->starts_with('-') ? "option" : "command", safe_text(*first));
}

// Everybody on the machine may read the words of a command while it runs.
void hide_tokens(int argc, char ** argv) {
    constexpr std::string_view kOption = "--token";
    for (int i = 1; i < argc; ++i) {
        const std::string_view word = argv[i];
        char * secret = nullptr;
        if (word == kOption && i + 1 < argc) secret = argv[i + 1];
        if (word.starts_with(kOption) && word.substr(kOption.size()).starts_with('='))
            secret = argv[i] + kOption.size() + 1;
        if (secret != nullptr) std::fill_n(secret, std::strlen(secret), '*');
    }
}

int run(int argc, char ** argv) {
    CLI::App app{"One engine for large language models, made of the machines you have.", "strata"};
    app.formatter(std::make_shared<HelpFormatter>());
    app.require_subcommand(1);
    std::string home;
    bool json = false;
    bool no_color = false;
    bool no_start = false;
    app.add_option("--home", home, "Folder of models, state and logs [$STRATA_HOME, else ~/.local/share/strata]")
        ->type_name("DIR");
    app.add_flag("--json", json, "One JSON document on stdout, or JSON lines where a command streams");
    app.add_flag("--no-color", no_color, "Plain text also on a terminal, as with NO_COLOR=1");
    app.add_flag("--no-start", no_start, "Fail rather than start a daemon when none runs");
    app.set_version_flag("--version", "strata " STRATA_VERSION_STRING, "Print the version");
    app.footer("Examples:\n"
               "  strata run model.gguf                 talk to a model; imports it and starts a daemon first\n"
               "  strata ls                             the models of this machine\n"
               "  strata serve                          the API on http://127.0.0.1:7420\n"
               "`strata COMMAND --help` says more about a command.");

    Commands commands(app);
    add_run_command(commands);
    add_embed_command(commands);
    add_transfer_commands(commands);
    add_model_commands(commands);
    add_deployment_commands(commands);
    add_cluster_commands(commands);
    add_program_commands(commands);

    if (argc == 1) {
        fmt::print(stderr, "{}", app.help());
        return kUsage;
    }
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success & asked) { // --help, --version
        std::ostringstream text;
        const int status = app.exit(asked, text, text);
        Output().text(text.str());
        return status;
    } catch (const CLI::ParseError & error) {
        // The parser stopped before it had set `json`.
        const bool wants_json =
            std::any_of(argv, argv + argc, [](const char * a) { return std::string_view(a) == "--json"; });
        return report_usage(Output::detect(wants_json, no_color), absl::InvalidArgumentError(what_failed(error, app)),
                            app);
    }

    hide_tokens(argc, argv);
    const Context context{Home::find(home), Output::detect(json, no_color), !no_start};
    const absl::StatusOr<int> result = commands.chosen()(context);
    if (result.ok()) return *result;
    if (is_usage_error(result.status())) return report_usage(context.output, result.status(), app);
    if (absl::IsCancelled(result.status())) {
        if (json) context.output.error(result.status());
        return kInterruptedExitCode;
    }
    context.output.error(result.status());
    return kFailed;
}

// Half a list on a full disk must not pass for a whole one.
bool all_written() {
    const absl::Status written = Output::written();
    if (!written.ok()) Output().error(written);
    return written.ok();
}

} // namespace
} // namespace strata::cli

int main(int argc, char ** argv) {
    strata::cli::use_utf8_locale();
    strata::cli::start_interrupt_thread();
    const int status = strata::cli::run(argc, argv);
    return strata::cli::all_written() ? status : strata::cli::kFailed;
}
