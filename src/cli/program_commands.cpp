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

absl::Status report_started(const Context & context, std::string_view what) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    STRATA_ASSIGN_OR_RETURN(const v1::Node node, client.node());
    if (context.output.json) {
        context.output.document(to_json(node));
    } else {
        context.output.line(fmt::format("{}: http://{}, process {}, log {}", what, safe_text(node.http_address()),
                                        node.pid(), daemon_log(context.home).native()));
    }
    return absl::OkStatus();
}

absl::StatusOr<int> serve(const Context & context, bool detach, const std::vector<std::string> & arguments) {
    if (!detach) return exec_daemon(context.home, arguments);
    if (daemon_listens(context.home)) {
        if (!arguments.empty()) {
            return absl::AlreadyExistsError("a daemon runs already, with the options it was started with; end it with "
                                            "`strata stop --daemon` first");
        }
        STRATA_RETURN_IF_ERROR(report_started(context, "a daemon runs already"));
        return 0;
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
    context.output.line(fmt::format("the daemon on {} is {}, process {}, http://{}", context.home.root.native(),
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
    auto detach = std::make_shared<bool>(false);
    // The parser fills the list of what it doesn't know; it is stratad that knows.
    auto serve_app = std::make_shared<CLI::App *>(nullptr);
    CLI::App & added = commands.add(
        kGroup, "serve",
        "Run the daemon: the HTTP API, and models loaded on demand\n"
        "All other options are the daemon's own, such as --listen 127.0.0.1:7420; `stratad --help` lists them.",
        "  strata serve\n"
        "  strata serve --detach --listen 127.0.0.1:8080",
        [detach, serve_app](const Context & context) { return serve(context, *detach, (*serve_app)->remaining()); });
    *serve_app = &added;
    added.allow_extras();
    added.add_flag("-d,--detach", *detach, "In the background; returns once it answers");

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
                fmt::print("{}", script);
            }
            return 0;
        });
    completion_app.add_option("SHELL", *shell, "bash")->required()->check(CLI::IsMember({"bash"}).description(""));
}

} // namespace strata::cli
