// ps, stop, logs, and the loading of a model for other commands.

#include "base/text.h"
#include "cli/daemon.h"
#include "cli/deployment.h"
#include "cli/input.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>

namespace strata::cli {

namespace {

using Align = Table::Align;
using std::chrono::milliseconds;

constexpr int32_t kDefaultLogLines = 100;
constexpr int64_t kDefaultDrainMs = 30'000;
constexpr int64_t kNoDrainMs = 1; // 0 would be the daemon's default

std::string state_name(v1::Deployment::State state) {
    switch (state) {
    case v1::Deployment::STATE_STOPPED:
        return "stopped";
    case v1::Deployment::STATE_STARTING:
        return "starting";
    case v1::Deployment::STATE_READY:
        return "ready";
    case v1::Deployment::STATE_STOPPING:
        return "stopping";
    case v1::Deployment::STATE_BACKOFF:
        return "failed";
    default:
        return "unknown";
    }
}

Table::Cell state_cell(const v1::Deployment & deployment) {
    std::string text = state_name(deployment.state());
    switch (deployment.state()) {
    case v1::Deployment::STATE_READY:
        return {text, Style::kGreen};
    case v1::Deployment::STATE_BACKOFF:
        return {fmt::format("{}, again in {}", text, human_duration(milliseconds(deployment.retry_in_ms()))),
                Style::kRed};
    case v1::Deployment::STATE_STARTING:
        return {fmt::format("{} {:.0f}%", text, deployment.load_fraction() * 100), Style::kYellow};
    default:
        return {text, Style::kDim};
    }
}

struct Occupancy {
    int64_t slots = 0;
    int64_t busy = 0;
    int64_t used_tokens = 0;
    int64_t capacity_tokens = 0;
};

Occupancy occupancy_of(const v1::EngineStatus & engine) {
    Occupancy sum;
    for (const v1::SlotStatus & slot : engine.slots()) {
        ++sum.slots;
        sum.busy += slot.busy() ? 1 : 0;
        sum.used_tokens += slot.used_tokens();
        sum.capacity_tokens += slot.context_tokens();
    }
    return sum;
}

std::vector<Table::Cell> row_of(const v1::Deployment & deployment) {
    std::vector<Table::Cell> row = {{deployment.name(), Style::kBold}, state_cell(deployment)};
    if (!deployment.has_engine()) {
        for (int i = 0; i < 6; ++i) row.push_back("-");
    } else {
        const v1::EngineStatus & engine = deployment.engine();
        const Occupancy now = occupancy_of(engine);
        row.push_back(fmt::format("{}/{}", now.busy, now.slots));
        row.push_back(fmt::format("{}/{}", human_count(now.used_tokens), human_count(now.capacity_tokens)));
        row.push_back(fmt::format("{}", engine.waiting_requests()));
        row.push_back(human_bytes(engine.resident_bytes()));
        row.push_back(engine.generated_tokens_per_second() > 0
                          ? fmt::format("{:.1f}", engine.generated_tokens_per_second())
                          : "-");
        row.push_back(human_duration(milliseconds(engine.uptime_ms())));
    }
    row.push_back(deployment.unload_in_ms() > 0 ? human_duration(milliseconds(deployment.unload_in_ms())) : "-");
    return row;
}

// Where the layers of models on a mesh run.
void print_parts(const Context & context, const google::protobuf::RepeatedPtrField<v1::Deployment> & deployments) {
    Table table({{"NAME"},
                 {"EXECUTOR"},
                 {"LAYERS", Align::kRight},
                 {"WEIGHTS", Align::kRight},
                 {"SENT", Align::kRight},
                 {"RECEIVED", Align::kRight},
                 {"MS/GRAPH", Align::kRight}});
    bool any = false;
    for (const v1::Deployment & deployment : deployments) {
        for (const v1::PartStatus & part : deployment.engine().parts()) {
            any = true;
            table.add(
                {{deployment.name(), Style::kBold},
                 safe_text(part.executor()) + (part.lost() ? " (lost)" : ""),
                 fmt::format("{}-{}", part.first_layer(), part.last_layer()),
                 human_bytes(part.weights_bytes()),
                 human_bytes(part.bytes_out()),
                 human_bytes(part.bytes_in()),
                 part.graphs() > 0 ? fmt::format("{:.2f}", part.busy_ms() / static_cast<double>(part.graphs())) : "-"});
        }
    }
    if (any) context.output.text("\n" + table.render(context.output));
}

absl::StatusOr<int> list(const Context & context, bool all) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    STRATA_ASSIGN_OR_RETURN(const auto response, client.list_deployments(all));
    if (context.output.json) {
        context.output.document(to_json(response));
        return 0;
    }
    const auto & deployments = response.deployments();
    if (deployments.empty()) {
        context.output.note("no model is loaded; the first request to one loads it, and so does `strata run MODEL`");
        return 0;
    }
    const bool restarts =
        std::any_of(deployments.begin(), deployments.end(), [](const auto & d) { return d.restarts() > 0; });
    std::vector<Table::Column> columns = {{"NAME"},
                                          {"STATE"},
                                          {"SLOTS", Align::kRight},
                                          {"KV USED", Align::kRight},
                                          {"WAITING", Align::kRight},
                                          {"MEMORY", Align::kRight},
                                          {"TOKENS/S", Align::kRight},
                                          {"UPTIME", Align::kRight},
                                          {"UNLOADS IN", Align::kRight}};
    if (restarts) columns.push_back({"RESTARTS", Align::kRight});
    Table table(std::move(columns));
    for (const v1::Deployment & deployment : deployments) {
        std::vector<Table::Cell> row = row_of(deployment);
        if (restarts) row.push_back({fmt::format("{}", deployment.restarts()), Style::kYellow});
        table.add(std::move(row));
    }
    context.output.text(table.render(context.output));
    print_parts(context, deployments);
    for (const v1::Deployment & deployment : deployments) {
        if (deployment.last_error().empty()) continue;
        context.output.line(fmt::format("{} {}",
                                        context.output.out_style(Style::kRed, safe_text(deployment.name()) + ":"),
                                        safe_text(deployment.last_error())));
    }
    return 0;
}

struct StopOptions {
    std::vector<std::string> models;
    bool all = false;
    bool daemon = false;
    bool now = false;
};

absl::StatusOr<int> stop_the_daemon(const Context & context) {
    if (!daemon_listens(context.home)) {
        // What was asked for is the case: a script may say it twice.
        if (context.output.json) context.output.document({{"stopped", Json::array()}});
        context.output.note(fmt::format("no daemon runs on {}", context.home.root.native()));
        return 0;
    }
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    STRATA_ASSIGN_OR_RETURN(const v1::Node node, client.node());
    STRATA_RETURN_IF_ERROR(stop_daemon(node));
    if (context.output.json) {
        context.output.document({{"stopped", Json::array({"stratad"})}, {"pid", node.pid()}});
    } else {
        context.output.line(fmt::format("stopped the daemon (process {})", node.pid()));
    }
    return 0;
}

absl::StatusOr<int> stop(const Context & context, const StopOptions & options) {
    if ((options.models.empty() ? 0 : 1) + options.all + options.daemon != 1) {
        return usage_error("stop takes models, or --all, or --daemon");
    }
    if (options.daemon) return stop_the_daemon(context);
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    std::vector<std::string> models = options.models;
    if (options.all) {
        STRATA_ASSIGN_OR_RETURN(const auto response, client.list_deployments(false));
        for (const v1::Deployment & deployment : response.deployments()) models.push_back(deployment.name());
    }
    Json stopped = Json::array();
    for (const std::string & model : models) {
        v1::StopDeploymentRequest request;
        request.set_model(model);
        request.set_drain_ms(options.now ? kNoDrainMs : kDefaultDrainMs);
        STRATA_ASSIGN_OR_RETURN(const auto response, client.stop_deployment(request));
        if (response.was_stopped()) {
            context.output.note(safe_text(model) + " was not loaded");
            continue;
        }
        stopped.push_back(model);
        if (!context.output.json) context.output.line("stopped " + safe_text(model));
    }
    if (context.output.json) context.output.document({{"stopped", stopped}});
    return 0;
}

struct LogOptions {
    std::string model;
    int32_t lines = kDefaultLogLines;
    bool follow = false;
};

void print_log(const Output & output, const std::string & text) {
    if (!output.json) {
        output.text(output.out_terminal ? safe_text(text, true) : text);
        return;
    }
    for (size_t start = 0; start < text.size();) {
        const size_t end = std::min(text.find('\n', start), text.size());
        output.json_line({{"line", text.substr(start, end - start)}});
        start = end + 1;
    }
}

absl::StatusOr<int> logs(const Context & context, const LogOptions & options) {
    if (!daemon_listens(context.home) && options.model.empty() && !options.follow) {
        // The log matters most when the daemon has died.
        context.output.note(fmt::format("no daemon runs; this is the end of {}", daemon_log(context.home).native()));
        const std::string text = last_lines(daemon_log(context.home), options.lines);
        print_log(context.output, text.empty() ? text : text + "\n");
        return 0;
    }
    absl::StatusOr<Client> client = context.client();
    if (!client.ok()) {
        return absl::UnavailableError(fmt::format("no daemon runs on {}; the logs of its engines lie in {}",
                                                  context.home.root.native(), context.home.logs().native()));
    }
    v1::LogsRequest request;
    request.set_deployment(options.model);
    request.set_lines(options.lines);
    request.set_follow(options.follow);
    // In JSON mode only whole lines are given on.
    std::string pending;
    const absl::Status status = client->logs(request, [&](const std::string & text) {
        pending += text;
        const size_t end = context.output.json ? pending.rfind('\n') + 1 : pending.size();
        print_log(context.output, pending.substr(0, end));
        pending.erase(0, end);
        return Output::written().ok(); // else the end of the program says what failed
    });
    if (!pending.empty()) print_log(context.output, pending);
    // Ctrl-C is how following ends.
    if (options.follow && absl::IsCancelled(status)) return kInterruptedExitCode;
    STRATA_RETURN_IF_ERROR(status);
    return 0;
}

} // namespace

absl::Status load_model(const Context & context, Client & client, const LoadWish & wish) {
    v1::StartDeploymentRequest request;
    request.set_model(wish.model);
    request.set_keep(wish.keep);
    // Without options the daemon keeps those it remembers.
    if (wish.context_tokens) request.mutable_options()->set_context_tokens(*wish.context_tokens);
    for (const std::string & address : wish.on) request.mutable_options()->add_on(address);
    if (wish.lanes != 0) request.mutable_options()->set_lanes(wish.lanes);
    if (!wish.on_loss.empty()) request.mutable_options()->set_on_loss(wish.on_loss);
    if (!wish.tls.empty()) request.mutable_options()->set_tls(std::filesystem::absolute(wish.tls));
    for (const double share : wish.split) request.mutable_options()->add_split(share);
    request.set_nodes(wish.nodes);
    Progress progress(context.output);
    constexpr uint64_t kSteps = 1000;
    return client.start_deployment(request, [&](const v1::LoadProgress & message) {
        const float fraction = std::clamp(message.fraction(), 0.0F, 1.0F);
        progress.update("loading " + wish.model, static_cast<uint64_t>(fraction * kSteps), kSteps, false);
    });
}

void add_deployment_commands(Commands & commands) {
    constexpr char kGroup[] = "Running models";
    auto all = std::make_shared<bool>(false);
    CLI::App & ps_app =
        commands.add(kGroup, "ps",
                     "List the models that are loaded\n"
                     "With what they do: requests running and waiting, tokens in the KV cache, memory, speed.",
                     "  strata ps\n"
                     "  watch strata ps",
                     [all](const Context & context) { return list(context, *all); });
    ps_app.add_flag("-a,--all", *all, "Also the models that are not loaded");

    auto stop_options = std::make_shared<StopOptions>();
    CLI::App & stop_app = commands.add(
        kGroup, "stop",
        "Unload models, or end the daemon\n"
        "Running requests are finished first, for at most 30 seconds. A later request loads the model again.",
        "  strata stop smollm2\n"
        "  strata stop --daemon",
        [stop_options](const Context & context) { return stop(context, *stop_options); });
    stop_app.add_option("MODEL", stop_options->models, "NAME[:TAG]");
    stop_app.add_flag("--all", stop_options->all, "All models");
    stop_app.add_flag("--daemon", stop_options->daemon, "The daemon with all that it runs; returns when it is gone");
    stop_app.add_flag("--now", stop_options->now, "Cut off running requests");

    auto log_options = std::make_shared<LogOptions>();
    CLI::App & logs_app = commands.add(kGroup, "logs",
                                       "Show what the daemon, or a model's engine, has logged\n"
                                       "Works for the daemon's log also when it does not run.",
                                       "  strata logs -n 20\n"
                                       "  strata logs smollm2 -f",
                                       [log_options](const Context & context) { return logs(context, *log_options); });
    logs_app.add_option("MODEL", log_options->model, "NAME[:TAG]; default: the daemon");
    logs_app.add_flag("-f,--follow", log_options->follow, "Go on with what comes, until Ctrl-C");
    logs_app.add_option("-n,--lines", log_options->lines, "Lines to begin with; default 100")
        ->check(CLI::Range(1, 10'000).description(""))
        ->type_name("N");
}

} // namespace strata::cli
