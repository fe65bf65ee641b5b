// nodes, node, token, join, leave, deploy, up, down: machines as a cluster.

#include "base/clock.h"
#include "base/duration.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/daemon.h"
#include "cli/deployment.h"
#include "cli/progress.h"
#include "cli/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <thread>

namespace strata::cli {

namespace {

namespace fs = std::filesystem;
using Align = Table::Align;
using std::chrono::milliseconds;

constexpr milliseconds kReadyPatience{20'000}, kReadyPause{20};

Table::Cell state_cell(const v1::Node & node) {
    switch (node.state()) {
    case v1::Node::STATE_READY:
        return {"ready", Style::kGreen};
    case v1::Node::STATE_SILENT:
        return {"silent", Style::kRed};
    default:
        return {"alone", Style::kDim};
    }
}

Table::Cell or_dash(const std::string & text) {
    return text.empty() ? "-" : safe_text(text);
}

absl::StatusOr<int> nodes(const Context & context) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    STRATA_ASSIGN_OR_RETURN(const auto response, client.list_nodes());
    if (context.output.json) {
        context.output.document(to_json(response));
        return 0;
    }
    Table table({{"NAME"},
                 {"STATE"},
                 {"ADDRESS"},
                 {"EXECUTOR"},
                 {"CPUS", Align::kRight},
                 {"MEMORY", Align::kRight},
                 {"LAYERS ON DISK", Align::kRight},
                 {"VERSION"},
                 {"HEARD", Align::kRight}});
    for (const v1::Node & node : response.nodes()) {
        const bool here = &node == &response.nodes(0);
        table.add({{safe_text(node.name()), Style::kBold},
                   state_cell(node),
                   or_dash(node.cluster_address()),
                   or_dash(node.executor_address()),
                   node.cpus() > 0 ? fmt::format("{}", node.cpus()) : "-",
                   node.memory_bytes() > 0 ? human_bytes(node.memory_bytes()) : "-",
                   node.store_bytes() > 0 ? human_bytes(node.store_bytes()) : "-",
                   or_dash(node.version()),
                   here ? "here"
                   : node.heard_ms_ago() > 0 || node.state() == v1::Node::STATE_READY
                       ? human_age(milliseconds(node.heard_ms_ago()))
                       : "-"});
    }
    context.output.text(table.render(context.output));
    if (response.nodes(0).cluster().empty()) {
        context.output.note(
            "this node is in no cluster: `strata serve --cluster ADDRESS` begins one, `strata join` takes it into one");
    }
    return 0;
}

struct NodeOptions {
    std::string action;
    std::string name;
};

absl::StatusOr<int> node(const Context & context, const NodeOptions & options) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    if (options.action == "rm") {
        STRATA_RETURN_IF_ERROR(client.remove_node(options.name));
        if (context.output.json) {
            context.output.document({{"removed", options.name}});
        } else {
            context.output.line("removed " + safe_text(options.name));
        }
        return 0;
    }
    STRATA_ASSIGN_OR_RETURN(const auto response, client.list_nodes());
    const auto found = std::find_if(response.nodes().begin(), response.nodes().end(),
                                    [&](const v1::Node & node) { return node.name() == options.name; });
    if (found == response.nodes().end()) {
        return absl::NotFoundError(
            fmt::format("there is no node \"{}\"; `strata nodes` lists them", safe_text(options.name)));
    }
    const Json json = to_json(*found);
    if (context.output.json) {
        context.output.document(json);
        return 0;
    }
    for (const auto & [key, value] : json.items()) {
        context.output.line(
            fmt::format("{:<16} {}", key, safe_text(value.is_string() ? value.get<std::string>() : value.dump())));
    }
    return 0;
}

struct TokenOptions {
    std::string action;
    std::string id;
    std::string ttl = "1h";
    int32_t uses = 0;
};

std::string join_command(const v1::CreateTokenResponse & token) {
    return fmt::format("strata join {} --token {}", token.address(), token.token());
}

absl::StatusOr<int> create_token(const Context & context, Client & client, const TokenOptions & options) {
    STRATA_ASSIGN_OR_RETURN(const milliseconds ttl, parse_duration(options.ttl));
    if (ttl <= milliseconds(0)) return usage_error("--ttl is longer than 0");
    v1::CreateTokenRequest request;
    request.set_ttl_ms(ttl.count());
    request.set_uses(options.uses);
    STRATA_ASSIGN_OR_RETURN(const auto token, client.create_token(request));
    if (context.output.json) {
        Json json = to_json(token);
        json["command"] = join_command(token);
        context.output.document(json);
    } else {
        context.output.note(fmt::format("on the other machine, within {}:", human_duration(ttl)));
        context.output.line(join_command(token));
    }
    return 0;
}

absl::StatusOr<int> token(const Context & context, const TokenOptions & options) {
    if ((options.action == "rm") == options.id.empty())
        return usage_error("`strata token rm` takes the ID of a token, the others none");
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    if (options.action == "create") return create_token(context, client, options);
    if (options.action == "rm") {
        STRATA_RETURN_IF_ERROR(client.revoke_token(options.id));
        if (context.output.json) {
            context.output.document({{"revoked", options.id}});
        } else {
            context.output.line("revoked " + safe_text(options.id));
        }
        return 0;
    }
    STRATA_ASSIGN_OR_RETURN(const auto response, client.list_tokens());
    if (context.output.json) {
        context.output.document(to_json(response));
        return 0;
    }
    if (response.tokens().empty()) {
        context.output.note("no token lets a machine in now; `strata token create` makes one");
        return 0;
    }
    const int64_t now = unix_ms(Clock::real().wall());
    Table table({{"ID"}, {"EXPIRES IN", Align::kRight}, {"USES LEFT", Align::kRight}});
    for (const v1::TokenInfo & info : response.tokens()) {
        table.add({{info.id(), Style::kBold},
                   human_duration(milliseconds(std::max<int64_t>(info.expires_unix_ms() - now, 0))),
                   info.uses_left() < 0 ? "any" : fmt::format("{}", info.uses_left())});
    }
    context.output.text(table.render(context.output));
    return 0;
}

struct JoinOptions {
    std::string address;
    std::string token;
    std::string name;
    std::string listen;
};

absl::StatusOr<v1::Node> join(Client & client, const JoinOptions & options) {
    v1::JoinRequest request;
    request.set_address(options.address);
    request.set_token(options.token);
    request.set_name(options.name);
    request.set_listen(options.listen);
    return client.join(request);
}

// Until so many nodes can work on models, as this one knows them. Not longer than a while: they may come later.
absl::StatusOr<v1::ListNodesResponse> wait_for_nodes(const Context & context, Client & client, int count) {
    Progress progress(context.output);
    const auto until = std::chrono::steady_clock::now() + kReadyPatience;
    while (true) {
        STRATA_ASSIGN_OR_RETURN(auto response, client.list_nodes());
        const auto ready = std::count_if(response.nodes().begin(), response.nodes().end(), [](const v1::Node & node) {
            return node.state() == v1::Node::STATE_READY && !node.executor_address().empty();
        });
        if (ready >= count || std::chrono::steady_clock::now() >= until) return response;
        progress.update("waiting for the nodes", static_cast<uint64_t>(ready), static_cast<uint64_t>(count), false);
        std::this_thread::sleep_for(kReadyPause);
    }
}

absl::StatusOr<int> join(const Context & context, const JoinOptions & options) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    STRATA_RETURN_IF_ERROR(join(client, options).status());
    STRATA_ASSIGN_OR_RETURN(const auto nodes, wait_for_nodes(context, client, 2)); // the first one, and this
    const v1::Node & node = nodes.nodes(0);
    if (context.output.json) {
        context.output.document(to_json(node));
    } else {
        context.output.line(fmt::format("this machine is {} of cluster {}, on {}", safe_text(node.name()),
                                        safe_text(node.cluster()), safe_text(node.cluster_address())));
        context.output.note("`strata nodes` shows the others");
    }
    return 0;
}

absl::StatusOr<int> leave(const Context & context) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    STRATA_ASSIGN_OR_RETURN(const auto left, client.leave());
    if (context.output.json) {
        context.output.document(to_json(left));
    } else {
        context.output.line("this machine is in no cluster any more");
        context.output.note(fmt::format(
            "`strata node rm {}` on the cluster's first node takes its name out of the list", safe_text(left.name())));
    }
    return 0;
}

// -------------------- deploy

struct DeployOptions {
    std::string model;
    int32_t nodes = 0;
    int32_t lanes = 0;
    int32_t context_tokens = 0;
};

absl::StatusOr<int> deploy(const Context & context, const DeployOptions & options) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client());
    LoadWish wish;
    wish.model = options.model;
    wish.keep = true;
    wish.lanes = options.lanes;
    wish.context_tokens = options.context_tokens;
    wish.nodes = options.nodes == 0 ? LoadWish::kAllNodes : options.nodes;
    STRATA_RETURN_IF_ERROR(load_model(context, client, wish));
    STRATA_ASSIGN_OR_RETURN(const auto response, client.list_deployments(false));
    for (const v1::Deployment & deployment : response.deployments()) {
        if (deployment.name() != options.model && deployment.name() != options.model + ":latest") continue;
        if (context.output.json) {
            context.output.document(to_json(deployment));
            return 0;
        }
        context.output.line(fmt::format("{} is ready on {} {}", safe_text(deployment.name()),
                                        deployment.engine().parts_size(),
                                        deployment.engine().parts_size() == 1 ? "executor" : "parts"));
    }
    if (!context.output.json) context.output.note("`strata ps` shows where its layers are; `strata stop` unloads it");
    return 0;
}

// -------------------- a cluster on one machine

constexpr int kMostNodes = 16;

Home home_of(const Home & home, int number) {
    return Home{home.root / "up" / fmt::format("node-{}", number)};
}

// Loopback's addresses are all this machine's: each node gets one for itself, and the usual ports.
std::string address_of(int number) {
    return fmt::format("127.0.0.{}", 10 + number);
}

absl::StatusOr<int> up(const Context & context, int count) {
    // Threads of several nodes on one core would wait for each other.
    const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / count);
    std::string token;
    std::string first;
    Json started = Json::array();
    for (int number = 1; number <= count; ++number) {
        const Home home = home_of(context.home, number);
        const std::string name = fmt::format("node-{}", number);
        if (!daemon_listens(home)) {
            std::vector<std::string> arguments = {"--listen", address_of(number) + ":7420", "--executor-threads",
                                                  fmt::format("{}", threads)};
            if (number == 1) arguments.insert(arguments.end(), {"--cluster", address_of(number), "--node-name", name});
            STRATA_RETURN_IF_ERROR(start_daemon(home, arguments, context.output));
        }
        STRATA_ASSIGN_OR_RETURN(Client client, Client::connect(home));
        STRATA_ASSIGN_OR_RETURN(v1::Node node, client.node());
        if (number == 1) {
            STRATA_ASSIGN_OR_RETURN(const auto made, client.create_token({}));
            token = made.token();
            first = made.address();
        } else if (node.cluster().empty()) {
            STRATA_ASSIGN_OR_RETURN(
                node, join(client, {.address = first, .token = token, .name = name, .listen = address_of(number)}));
        }
    }
    STRATA_ASSIGN_OR_RETURN(Client client, Client::connect(home_of(context.home, 1)));
    STRATA_ASSIGN_OR_RETURN(const auto nodes, wait_for_nodes(context, client, count));
    for (const v1::Node & node : nodes.nodes()) started.push_back(to_json(node));
    if (context.output.json) {
        context.output.document({{"nodes", started}});
        return 0;
    }
    context.output.line(fmt::format("{} nodes on this machine are one cluster", count));
    context.output.note("the first of them is used with");
    context.output.line(fmt::format("export STRATA_HOME={}", home_of(context.home, 1).root.native()));
    context.output.note(
        "`strata nodes` shows them, `strata deploy MODEL` spreads a model over them, `strata down` (without that "
        "STRATA_HOME) removes them");
    return 0;
}

absl::StatusOr<int> down(const Context & context) {
    Json stopped = Json::array();
    const fs::path folder = context.home.root / "up";
    for (int number = kMostNodes; number >= 1; --number) { // the one with the cluster's state last
        const Home home = home_of(context.home, number);
        if (!fs::exists(home.state_db())) continue;
        // One that was killed has left engines behind: the next one takes them over, and ends them with itself.
        if (!daemon_listens(home)) {
            STRATA_RETURN_IF_ERROR(start_daemon(home, {"--listen", address_of(number) + ":0"}, context.output));
        }
        STRATA_ASSIGN_OR_RETURN(Client client, Client::connect(home));
        STRATA_ASSIGN_OR_RETURN(const v1::Node node, client.node());
        STRATA_RETURN_IF_ERROR(stop_daemon(node));
        stopped.push_back(home.root.filename().native());
    }
    std::error_code failed;
    fs::remove_all(folder, failed);
    if (failed) return errno_status(failed.value(), "remove", folder.native());
    if (context.output.json) {
        context.output.document({{"stopped", stopped}});
    } else if (stopped.empty()) {
        context.output.note(fmt::format("no node of `strata up` runs under {}", folder.native()));
    } else {
        context.output.line(fmt::format("{} nodes are gone, with what was in their folders", stopped.size()));
    }
    return 0;
}

} // namespace

void add_cluster_commands(Commands & commands) {
    constexpr char kGroup[] = "Several machines";
    commands.add(kGroup, "nodes",
                 "List the nodes of the cluster\n"
                 "As this node knows them: a node that has not been heard for five seconds is silent.",
                 "  strata nodes\n"
                 "  strata nodes --json",
                 nodes);

    auto node_options = std::make_shared<NodeOptions>();
    CLI::App & node_app =
        commands.add(kGroup, "node",
                     "Show a node, or remove it from the cluster\n"
                     "A removed node's certificates count no more; with a new token it can join again.",
                     "  strata node show workstation\n"
                     "  strata node rm workstation",
                     [node_options](const Context & context) { return node(context, *node_options); });
    node_app.add_option("ACTION", node_options->action, "show or rm")
        ->required()
        ->check(CLI::IsMember({"show", "rm"}).description(""));
    node_app.add_option("NAME", node_options->name, "Of the node")->required();

    auto token_options = std::make_shared<TokenOptions>();
    CLI::App & token_app = commands.add(
        kGroup, "token",
        "Make, list or revoke tokens that let machines join\n"
        "On the first node of a cluster. A token also tells who joins which cluster this is, so that nobody else can "
        "answer for it.",
        "  strata token create\n"
        "  strata token create --ttl 24h --uses 5\n"
        "  strata token ls\n"
        "  strata token rm 1f2e3d4c",
        [token_options](const Context & context) { return token(context, *token_options); });
    token_app.add_option("ACTION", token_options->action, "create, ls or rm")
        ->required()
        ->check(CLI::IsMember({"create", "ls", "rm"}).description(""));
    token_app.add_option("ID", token_options->id, "Of the token to revoke: the digits before its first dot");
    token_app.add_option("--ttl", token_options->ttl, "How long it can be used (\"30m\", \"24h\")")
        ->type_name("TIME")
        ->capture_default_str();
    token_app.add_option("--uses", token_options->uses, "How many machines may use it; default: any number")
        ->check(CLI::Range(1, 1'000'000).description(""))
        ->type_name("N");

    auto join_options = std::make_shared<JoinOptions>();
    CLI::App & join_app = commands.add(
        kGroup, "join",
        "Make this machine a node of a cluster\n"
        "`strata token create` on a node of the cluster prints the command. Starts a daemon when none runs.",
        "  strata join 192.168.1.10:7421 --token 1f2e3d4c.…\n"
        "  strata join host --token 1f2e3d4c.… --name workstation --cluster 192.168.1.11",
        [join_options](const Context & context) { return join(context, *join_options); });
    join_app.add_option("ADDRESS", join_options->address, "Of a node of the cluster, HOST[:PORT]; default port 7421")
        ->required();
    join_app.add_option("--token", join_options->token, "What `strata token create` printed")
        ->required()
        ->type_name("TOKEN")
        ->envname("STRATA_TOKEN");
    join_app.add_option("--name", join_options->name, "Of this node; default: the host's")->type_name("NAME");
    join_app
        .add_option(
            "--cluster", join_options->listen,
            "Where the other nodes reach this one; default: the address from which it reaches the cluster, port 7421")
        ->type_name("ADDRESS[:PORT]");

    commands.add(kGroup, "leave",
                 "Take this machine out of its cluster\n"
                 "Whether the cluster can be reached or not; its models stay.",
                 "  strata leave", leave);

    auto deploy_options = std::make_shared<DeployOptions>();
    CLI::App & deploy_app =
        commands.add(kGroup, "deploy",
                     "Load a model over the nodes of the cluster, and keep it loaded\n"
                     "This node answers its requests; its layers are shared out over the nodes that are ready.",
                     "  strata deploy smollm2\n"
                     "  strata deploy smollm2 --nodes 2",
                     [deploy_options](const Context & context) { return deploy(context, *deploy_options); });
    deploy_app.add_option("MODEL", deploy_options->model, "NAME[:TAG]")->required();
    deploy_app.add_option("--nodes", deploy_options->nodes, "How many; default: all that are ready")
        ->check(CLI::Range(1, 10'000).description(""))
        ->type_name("N");
    deploy_app.add_option("--lanes", deploy_options->lanes, "Independent batches; default: one for each node")
        ->check(CLI::Range(1, 64).description(""))
        ->type_name("N");
    deploy_app.add_option("--context", deploy_options->context_tokens, "Tokens of context for each request")
        ->check(CLI::Range(1, 1 << 30).description(""))
        ->type_name("N");

    auto count = std::make_shared<int>(3);
    CLI::App & up_app =
        commands.add(kGroup, "up",
                     "Start a whole cluster on this machine, to try it\n"
                     "Each node has a folder under HOME/up and an address of its own (127.0.0.11, 127.0.0.12, …).",
                     "  strata up\n"
                     "  strata up --nodes 5",
                     [count](const Context & context) { return up(context, *count); });
    up_app.add_option("--nodes", *count, "How many")
        ->check(CLI::Range(1, kMostNodes).description(""))
        ->type_name("N")
        ->capture_default_str();

    commands.add(kGroup, "down",
                 "End the cluster that `strata up` started, and remove its folders\n"
                 "With the models that were imported on its nodes.",
                 "  strata down", down);
}

} // namespace strata::cli
