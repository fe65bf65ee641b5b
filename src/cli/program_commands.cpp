// serve, version, completion.

#include "base/version.h"
#include "cli/command.h"
#include "cli/completion.h"
#include "cli/daemon.h"
#include "cli/text.h"

#include <fmt/format.h>

#include <memory>

namespace strata::cli {

namespace {

struct DaemonOption {
    const char * name;
    const char * type;
    const char * description;
};

// What stratad takes; it checks the values.
constexpr DaemonOption kDaemonOptions[] = {
    {"--listen", "ADDRESS:PORT", "Of the HTTP API; loopback only; port 0 picks one"},
    {"--cluster", "ADDRESS[:PORT]", "Begin a cluster that other nodes join there; default port 7421, and the next one"},
    {"--node-name", "NAME", "Of this node, when it begins a cluster; default: the host's"},
    {"--executor-threads", "N", "With which this node works on the models of its cluster; 0: one for each core"},
    {"--idle-timeout", "TIME", "Unload a model after this time without requests (\"10m\"); 0: never"},
    {"--max-loaded", "N", "Models loaded at once; the one used longest ago goes; 0: any"},
    {"--drain", "TIME", "What running requests get to end when the daemon is stopped"},
    {"--allow-host", "NAME", "Name that a Host or Origin header may carry besides loopback's; may be repeated"},
    {"--engine", "FILE", "The engine program instead of strata-engine beside stratad"},
    {"--log-level", "LEVEL", "trace, debug, info, warn or error"},
};

struct ServeOptions {
    bool detach = false;
    std::vector<std::string> arguments; // for stratad
};

absl::Status report_started(const Context & context, std::string_view what) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    STRATA_ASSIGN_OR_RETURN(const v1::Node node, client.node());
    if (context.output.json) {
        context.output.document(to_json(node));
    } else {
        context.output.line(fmt::format("{}: {}, process {}, log {}", what, safe_text(node.http_address()), node.pid(),
                                        daemon_log(context.home).native()));
        if (!node.cluster().empty()) context.output.note("`strata token create` prints how another machine joins");
    }
    return absl::OkStatus();
}

absl::StatusOr<int> serve(const Context & context, const ServeOptions & options) {
    std::vector<std::string> arguments = options.arguments;
    if (daemon_listens(context.home)) {
        if (!arguments.empty()) {
            return absl::AlreadyExistsError("a daemon runs already, with the options it was started with; end it with "
                                            "`strata stop --daemon` first");
        }
        STRATA_RETURN_IF_ERROR(report_started(context, "a daemon runs already"));
        return 0;
    }
    if (!options.detach) {
        if (context.output.json) arguments.emplace_back("--json");
        return exec_daemon(context.home, arguments);
    }
    STRATA_RETURN_IF_ERROR(start_daemon(context.home, arguments, context.output));
    STRATA_RETURN_IF_ERROR(report_started(context, "the daemon runs"));
    return 0;
}

absl::StatusOr<int> version(const Context & context) {
    Json document = {
        {"version", STRATA_VERSION_STRING}, {"engineBuild", STRATA_ENGINE_BUILD_STRING}, {"daemon", nullptr}};
    absl::StatusOr<v1::Node> node = absl::NotFoundError("");
    if (absl::StatusOr<Client> client = context.client(); client.ok()) node = client->node();
    if (context.output.json) {
        if (node.ok()) document["daemon"] = to_json(*node);
        context.output.document(document);
        return 0;
    }
    context.output.line("strata " STRATA_VERSION_STRING);
    context.output.line("engine build " STRATA_ENGINE_BUILD_STRING);
    if (!node.ok()) {
        context.output.line("no daemon runs on " + context.home.root.native());
        return 0;
    }
    context.output.line(fmt::format("the daemon on {} is {}, process {}, {}", context.home.root.native(),
                                    safe_text(node->version()), node->pid(), safe_text(node->http_address())));
    if (node->version() != STRATA_VERSION_STRING || node->engine_build() != STRATA_ENGINE_BUILD_STRING) {
        context.output.note(
            "it is of another build; `strata stop --daemon` ends it, and the next command starts this one's");
    }
    return 0;
}

} // namespace

void add_program_commands(Commands & commands) {
    constexpr char kGroup[] = "The program";
    auto serve_options = std::make_shared<ServeOptions>();
    CLI::App & serve_app = commands.add(
        kGroup, "serve",
        "Run the daemon: the HTTP API, and models loaded on demand\n"
        "Other commands start it by themselves, in the background, when none runs. `stratad --help` has the defaults.",
        "  strata serve\n"
        "  strata serve --detach --listen 127.0.0.1:8080",
        [serve_options](const Context & context) { return serve(context, *serve_options); });
    serve_app.add_flag("-d,--detach", serve_options->detach, "In the background; returns once it answers");
    for (const DaemonOption & option : kDaemonOptions) {
        // Each goes to stratad as it is: "--name value".
        serve_app
            .add_option_function<std::string>(
                option.name,
                [serve_options, name = option.name](const std::string & value) {
                    serve_options->arguments.insert(serve_options->arguments.end(), {name, value});
                },
                option.description)
            ->trigger_on_parse()
            ->type_name(option.type);
    }

    commands.add(kGroup, "version",
                 "Print the versions of the program and of the daemon that runs\n"
                 "Also the engine build: only engines of one build work on a model together.",
                 "  strata version --json", version);

    auto shell = std::make_shared<std::string>();
    CLI::App & completion_app = commands.add(
        kGroup, "completion",
        "Print a completion script for the shell\n"
        "Installed packages bring it; for a build of your own, load it from ~/.bashrc.",
        "  source <(strata completion bash)", [shell, &commands](const Context & context) -> absl::StatusOr<int> {
            const std::string script = bash_completion(commands.app());
            if (context.output.json) {
                context.output.document({{"shell", *shell}, {"script", script}});
            } else {
                context.output.text(script);
            }
            return 0;
        });
    completion_app.add_option("SHELL", *shell, "bash")->required()->check(CLI::IsMember({"bash"}).description(""));
}

} // namespace strata::cli
