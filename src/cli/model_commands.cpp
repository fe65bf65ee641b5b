// ls, show, verify, rm, gc: what is in the store.

#include "base/clock.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/progress.h"
#include "cli/text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <memory>

namespace strata::cli {

namespace {

using Align = Table::Align;

std::string age_of(int64_t then_unix_ms) {
    if (then_unix_ms <= 0) return "-";
    return human_age(std::chrono::milliseconds(unix_ms(Clock::real().wall()) - then_unix_ms));
}

std::string percent(int64_t part, int64_t whole) {
    return whole <= 0 ? "-" : fmt::format("{}%", part * 100 / whole);
}

absl::StatusOr<int> list(const Context & context) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    STRATA_ASSIGN_OR_RETURN(const auto response, client.list_models());
    if (context.output.json) {
        context.output.document(to_json(response));
        return 0;
    }
    if (response.models().empty()) {
        context.output.note("no models yet; `strata import FILE.gguf` or `strata pull hf://ORG/REPO/FILE` brings one");
        return 0;
    }
    Table table({{"NAME"},
                 {"ARCH"},
                 {"PARAMS", Align::kRight},
                 {"QUANT"},
                 {"SIZE", Align::kRight},
                 {"SHARED", Align::kRight},
                 {"LAYERS", Align::kRight},
                 {"IMPORTED"}});
    for (const v1::Model & model : response.models()) {
        table.add({{model.name(), Style::kBold},
                   model.architecture(),
                   human_count(model.parameters()),
                   model.quantization(),
                   human_bytes(model.size_bytes()),
                   percent(model.size_bytes() - model.unique_bytes(), model.size_bytes()),
                   fmt::format("{}", model.layers()),
                   age_of(model.imported_unix_ms())});
    }
    context.output.text(table.render(context.output));
    return 0;
}

struct ShowOptions {
    std::string model;
    bool tensors = false;
    bool metadata = false;
};

void print_facts(const Context & context, const v1::ShowModelResponse & response) {
    const v1::Model & model = response.model();
    const auto fact = [&](std::string_view name, const std::string & value) {
        context.output.line(context.output.out_style(Style::kDim, fmt::format("  {:<14}", name)) + safe_text(value));
    };
    context.output.line(context.output.out_style(Style::kBold, safe_text(model.name())));
    fact("architecture", model.architecture());
    fact("parameters", human_count(model.parameters()));
    fact("quantization", model.quantization());
    fact("context", fmt::format("{} tokens", model.context_tokens()));
    int64_t shared = 0;
    for (const v1::Layer & layer : response.layers()) shared += layer.shared_with().empty() ? 0 : layer.size_bytes();
    fact("size", shared > 0 ? fmt::format("{}, of which {} are shared with other models",
                                          human_bytes(model.size_bytes()), human_bytes(shared))
                            : human_bytes(model.size_bytes()));
    fact("digest", model.digest());
    fact("imported", model.origin().empty()
                         ? age_of(model.imported_unix_ms())
                         : fmt::format("{} from {}", age_of(model.imported_unix_ms()), model.origin()));
}

void print_layers(const Context & context, const v1::ShowModelResponse & response) {
    Table table({{"LAYER", Align::kRight},
                 {"KIND"},
                 {"DIGEST"},
                 {"SIZE", Align::kRight},
                 {"TENSORS", Align::kRight},
                 {"TYPES"},
                 {"SHARED WITH"}});
    for (const v1::Layer & layer : response.layers()) {
        table.add({fmt::format("{}", layer.index()),
                   layer.kind(),
                   {short_digest(layer.digest()), Style::kYellow},
                   human_bytes(layer.size_bytes()),
                   fmt::format("{}", layer.tensors()),
                   fmt::format("{}", fmt::join(layer.tensor_types(), " ")),
                   fmt::format("{}", fmt::join(layer.shared_with(), " "))});
    }
    context.output.text("\n" + table.render(context.output));
}

void print_tensors(const Context & context, const v1::ShowModelResponse & response) {
    Table table({{"LAYER", Align::kRight}, {"TENSOR"}, {"TYPE"}, {"SHAPE"}, {"SIZE", Align::kRight}, {"SHA-256"}});
    for (const v1::Tensor & tensor : response.tensors()) {
        table.add({fmt::format("{}", tensor.layer()),
                   tensor.name(),
                   tensor.type(),
                   fmt::format("{}", fmt::join(tensor.shape(), " x ")),
                   human_bytes(tensor.size_bytes()),
                   {short_digest(tensor.sha256()), Style::kYellow}});
    }
    context.output.text("\n" + table.render(context.output));
}

void print_metadata(const Context & context, const v1::ShowModelResponse & response) {
    constexpr size_t kValueColumns = 80; // a chat template is thousands of characters
    Table table({{"KEY"}, {"VALUE"}});
    for (const v1::Metadatum & metadatum : response.metadata()) {
        table.add({metadatum.key(), cut_to_width(safe_text(metadatum.value()), kValueColumns)});
    }
    context.output.text("\n" + table.render(context.output));
}

absl::StatusOr<int> show(const Context & context, const ShowOptions & options) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    STRATA_ASSIGN_OR_RETURN(const auto response, client.show_model(options.model, options.tensors));
    if (context.output.json) {
        context.output.document(to_json(response));
        return 0;
    }
    print_facts(context, response);
    print_layers(context, response);
    if (options.tensors) print_tensors(context, response);
    if (options.metadata) print_metadata(context, response);
    return 0;
}

absl::StatusOr<int> verify(const Context & context, const std::string & model) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    const std::string label = model.empty() ? "verifying the store" : "verifying " + model;
    v1::JobProgress result;
    {
        Progress progress(context.output);
        STRATA_ASSIGN_OR_RETURN(result, client.verify_model(model, [&](const v1::JobProgress & message) {
            progress.update(label, message.done_bytes(), message.total_bytes());
        }));
    }
    const bool sound = result.problems().empty();
    if (context.output.json) {
        context.output.document(to_json(result));
    } else if (sound) {
        context.output.line(fmt::format("{} {} verified, nothing wrong", context.output.out_style(Style::kGreen, "ok:"),
                                        human_bytes(static_cast<uint64_t>(result.total_bytes()))));
    } else {
        for (const std::string & problem : result.problems()) {
            context.output.line(context.output.out_style(Style::kRed, "damaged: ") + safe_text(problem));
        }
        context.output.note("import or pull the model again: that replaces what is damaged");
    }
    return sound ? 0 : 1;
}

absl::StatusOr<int> remove(const Context & context, const std::vector<std::string> & models) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    absl::Status failed;
    Json removed = Json::array();
    for (const std::string & model : models) {
        const absl::Status status = client.remove_model(model);
        if (absl::IsCancelled(status)) return status;
        if (status.ok()) {
            removed.push_back(model);
            if (!context.output.json) context.output.line("removed " + safe_text(model));
        } else {
            // The others are removed all the same; the last failure is shown by the caller.
            if (!failed.ok() && !context.output.json) context.output.error(failed);
            failed = status;
        }
    }
    if (!failed.ok()) return failed;
    if (context.output.json) context.output.document({{"removed", removed}});
    context.output.note("what no other model needs stays on the disk until `strata gc`");
    return 0;
}

absl::StatusOr<int> collect_garbage(const Context & context, bool dry_run, bool now) {
    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    v1::CollectGarbageRequest request;
    request.set_dry_run(dry_run);
    request.set_no_grace(now);
    STRATA_ASSIGN_OR_RETURN(const auto response, client.collect_garbage(request));
    if (context.output.json) {
        context.output.document(to_json(response));
        return 0;
    }
    context.output.line(fmt::format("{} {} blob{}, {}; {} kept", dry_run ? "would remove" : "removed",
                                    response.removed_blobs(), response.removed_blobs() == 1 ? "" : "s",
                                    human_bytes(response.freed_bytes()), response.kept_blobs()));
    return 0;
}

} // namespace

void add_model_commands(Commands & commands) {
    constexpr char kGroup[] = "Models";
    commands.add(kGroup, "ls",
                 "List the models of this machine\n"
                 "SHARED is the part of a model's bytes that other models use as well and that is stored once.",
                 "  strata ls\n"
                 "  strata ls --json | jq -r '.models[].name'",
                 list);

    auto show_options = std::make_shared<ShowOptions>();
    CLI::App & show_app = commands.add(
        kGroup, "show",
        "Show what a model is made of\n"
        "Its facts, and its layers with digest, size, tensor types and the models that they are shared with.",
        "  strata show smollm2\n"
        "  strata show smollm2 --tensors",
        [show_options](const Context & context) { return show(context, *show_options); });
    show_app.add_option("MODEL", show_options->model, "NAME[:TAG]")->required();
    show_app.add_flag("--tensors", show_options->tensors, "Each tensor with type, shape, size and SHA-256");
    show_app.add_flag("--metadata", show_options->metadata, "The metadata of the model's head");

    auto verified = std::make_shared<std::string>();
    CLI::App & verify_app =
        commands.add(kGroup, "verify",
                     "Hash a model's layers, or all of the store, and compare\n"
                     "Names each blob that is damaged, with its model and layer; the exit status is then 1.",
                     "  strata verify smollm2\n"
                     "  strata verify",
                     [verified](const Context & context) { return verify(context, *verified); });
    verify_app.add_option("MODEL", *verified, "NAME[:TAG]; default: everything in the store");

    auto removed = std::make_shared<std::vector<std::string>>();
    CLI::App & remove_app = commands.add(kGroup, "rm",
                                         "Remove models by name\n"
                                         "Layers that no other model needs are deleted by the next `strata gc`.",
                                         "  strata rm smollm2\n"
                                         "  strata rm smollm2:q4_0 smollm2:q8_0",
                                         [removed](const Context & context) { return remove(context, *removed); });
    remove_app.add_option("MODEL", *removed, "NAME[:TAG]")->required();

    struct GcFlags {
        bool dry_run = false;
        bool now = false;
    };
    auto gc = std::make_shared<GcFlags>();
    CLI::App & gc_app =
        commands.add(kGroup, "gc",
                     "Delete what no model needs\n"
                     "Blobs in use stay, and so do those younger than an hour: they may belong to an import that runs.",
                     "  strata gc --dry-run\n"
                     "  strata gc --now",
                     [gc](const Context & context) { return collect_garbage(context, gc->dry_run, gc->now); });
    gc_app.add_flag("--dry-run", gc->dry_run, "Only say what would be deleted");
    gc_app.add_flag("--now", gc->now, "Young blobs as well");
}

} // namespace strata::cli
