// import, pull, and the same for `run FILE`.

#include "cli/transfer.h"

#include "base/text.h"
#include "cli/imported_files.h"
#include "cli/progress.h"
#include "cli/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <memory>

namespace strata::cli {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kOci = "oci:";
constexpr int kMaxParts = 99'999; // llama.cpp's names have five digits

// "DIR/NAME-00002-of-00003.gguf" in pieces.
struct SplitName {
    std::string stem; // "DIR/NAME"
    int count = 0;    // 3
};

std::optional<int> five_digits(std::string_view text) {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (text.size() != 5 || error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
    return value;
}

std::optional<SplitName> split_name(std::string_view file) {
    constexpr std::string_view kForm = "-00000-of-00000.gguf";
    if (file.size() <= kForm.size()) return std::nullopt;
    const std::string_view tail = file.substr(file.size() - kForm.size());
    const std::optional<int> number = five_digits(tail.substr(1, 5));
    const std::optional<int> count = five_digits(tail.substr(10, 5));
    if (tail[0] != '-' || tail.substr(6, 4) != "-of-" || !tail.ends_with(".gguf") || !number || !count) {
        return std::nullopt;
    }
    if (*number < 1 || *count < *number || *count > kMaxParts) return std::nullopt;
    return SplitName{std::string(file.substr(0, file.size() - kForm.size())), *count};
}

absl::Status check_file(const std::string & file) {
    std::error_code error;
    const fs::file_status status = fs::status(file, error);
    if (error && status.type() != fs::file_type::not_found) return errno_status(error.value(), "look at", file);
    if (status.type() == fs::file_type::not_found) {
        return absl::NotFoundError(fmt::format("there is no file {}", safe_text(file)));
    }
    if (status.type() != fs::file_type::regular) {
        return absl::InvalidArgumentError(
            fmt::format("{} is not a file; import takes GGUF files, or oci:DIR", safe_text(file)));
    }
    return absl::OkStatus();
}

// Shows a job's messages; the bar is gone when this is.
class JobView {
public:
    JobView(const Context & context, std::string what)
        : output_(context.output)
        , progress_(context.output)
        , what_(std::move(what)) {}

    void operator()(const v1::JobProgress & message) {
        if (output_.json) {
            output_.json_line(to_json(message));
        } else {
            progress_.update(fmt::format("{} {}", message.phase().empty() ? "working on" : message.phase(), what_),
                             message.done_bytes(), message.total_bytes());
        }
    }

private:
    const Output & output_;
    Progress progress_;
    std::string what_;
};

// `before` are the models from before the job: its name may have been that of another one.
absl::StatusOr<v1::Model> finish(const Context & context, const v1::JobProgress & result,
                                 const v1::ListModelsResponse & before) {
    if (context.output.json) context.output.json_line(to_json(result));
    if (!result.has_model())
        return absl::InternalError("the daemon does not name the model that it made; see `strata ls`");
    const v1::Model & made = result.model();
    for (const v1::Model & old : before.models()) {
        if (old.name() != made.name() || old.digest() == made.digest()) continue;
        context.output.note(fmt::format("{} was the name of another model ({}) until now; --name gives another name",
                                        safe_text(made.name()), short_digest(old.digest())));
    }
    return made;
}

absl::StatusOr<int> announce(const Context & context, const absl::StatusOr<v1::Model> & model) {
    if (!model.ok()) return model.status();
    if (context.output.json) return 0;
    context.output.line(fmt::format("{}  {}  {}", context.output.out_style(Style::kBold, safe_text(model->name())),
                                    human_bytes(model->size_bytes()), short_digest(model->digest())));
    const std::string name = safe_text(model->name());
    context.output.note(model->embeds() ? fmt::format("`strata embed {} TEXT` makes vectors", name)
                                        : fmt::format("`strata run {}` talks to it", name));
    return 0;
}

// Whether the name still stands for the model with this digest.
absl::StatusOr<bool> is_stored(Client & client, const ImportedFiles::Entry & entry) {
    STRATA_ASSIGN_OR_RETURN(const auto response, client.list_models());
    return std::any_of(response.models().begin(), response.models().end(), [&](const v1::Model & model) {
        return model.name() == entry.model && model.digest() == entry.digest;
    });
}

} // namespace

bool is_model_file(std::string_view model) {
    return model.ends_with(".gguf");
}

bool is_model_url(std::string_view model) {
    return model.starts_with("hf://");
}

absl::StatusOr<std::vector<std::string>> import_sources(const std::vector<std::string> & given) {
    const bool oci = std::any_of(given.begin(), given.end(), [](const std::string & s) { return s.starts_with(kOci); });
    if (oci) {
        if (given.size() != 1) return usage_error("an oci: layout is imported by itself, without other files");
        // Only the folder is made absolute; a ":REF" after it stays.
        return std::vector<std::string>{std::string(kOci) + fs::absolute(given[0].substr(kOci.size())).native()};
    }
    std::vector<std::string> sources;
    for (const std::string & file : given) {
        const std::string path = fs::absolute(file).lexically_normal().native();
        const std::optional<SplitName> split = given.size() == 1 ? split_name(path) : std::nullopt;
        if (!split) {
            STRATA_RETURN_IF_ERROR(check_file(path));
            sources.push_back(path);
            continue;
        }
        for (int part = 1; part <= split->count; ++part) {
            const std::string name = fmt::format("{}-{:05}-of-{:05}.gguf", split->stem, part, split->count);
            STRATA_RETURN_IF_ERROR(check_file(name));
            sources.push_back(name);
        }
    }
    return sources;
}

absl::StatusOr<v1::Model> import_model(const Context & context, Client & client,
                                       const std::vector<std::string> & sources, const std::string & name) {
    v1::ImportModelRequest request;
    for (const std::string & source : sources) request.add_sources(source);
    request.set_name(name);
    const v1::ListModelsResponse before = client.list_models().value_or(v1::ListModelsResponse());
    v1::JobProgress result;
    {
        JobView view(context, fs::path(sources.front()).filename().native());
        STRATA_ASSIGN_OR_RETURN(result, client.import_model(request, std::ref(view)));
    }
    STRATA_ASSIGN_OR_RETURN(v1::Model model, finish(context, result, before));
    ImportedFiles(context.home).remember(sources, {model.name(), model.digest()});
    return model;
}

absl::StatusOr<v1::Model> pull_model(const Context & context, Client & client, const std::string & url,
                                     const std::string & name) {
    v1::PullModelRequest request;
    request.set_url(url);
    request.set_name(name);
    const v1::ListModelsResponse before = client.list_models().value_or(v1::ListModelsResponse());
    v1::JobProgress result;
    {
        JobView view(context, url.substr(url.rfind('/') + 1));
        STRATA_ASSIGN_OR_RETURN(result, client.pull_model(request, std::ref(view)));
    }
    return finish(context, result, before);
}

absl::StatusOr<std::string> model_for(const Context & context, Client & client, const std::string & model) {
    if (is_model_url(model)) {
        STRATA_ASSIGN_OR_RETURN(const auto models, client.list_models());
        for (const v1::Model & known : models.models()) {
            if (known.origin() == model) return known.name();
        }
        STRATA_ASSIGN_OR_RETURN(const v1::Model pulled, pull_model(context, client, model, ""));
        return pulled.name();
    }
    if (!is_model_file(model)) return model;

    STRATA_ASSIGN_OR_RETURN(const std::vector<std::string> sources, import_sources({model}));
    if (const auto known = ImportedFiles(context.home).find(sources)) {
        STRATA_ASSIGN_OR_RETURN(const bool stored, is_stored(client, *known));
        if (stored) return known->model;
    }
    STRATA_ASSIGN_OR_RETURN(const v1::Model imported, import_model(context, client, sources, ""));
    context.output.note(fmt::format("imported as {}", safe_text(imported.name())));
    return imported.name();
}

void add_transfer_commands(Commands & commands) {
    constexpr char kGroup[] = "Models";
    struct Import {
        std::vector<std::string> files;
        std::string name;
    };
    auto import = std::make_shared<Import>();
    CLI::App & import_app =
        commands.add(kGroup, "import",
                     "Import a model from GGUF files, or from an OCI layout\n"
                     "Splits it into layers in the store; layers that are there already take no space again.\n"
                     "Of a split model, one file is enough.",
                     "  strata import SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2\n"
                     "  strata import oci:/backup/models:smollm2",
                     [import](const Context & context) -> absl::StatusOr<int> {
                         STRATA_ASSIGN_OR_RETURN(const auto sources, import_sources(import->files));
                         STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
                         return announce(context, import_model(context, client, sources, import->name));
                     });
    import_app.add_option("FILE", import->files, "GGUF files of one model, or oci:DIR[:REF]")->required();
    import_app.add_option("--name", import->name, "NAME[:TAG]; default: from the file's name")->type_name("NAME");

    struct Pull {
        std::string url;
        std::string name;
    };
    auto pull = std::make_shared<Pull>();
    CLI::App & pull_app = commands.add(
        kGroup, "pull",
        "Fetch a model from a hub and import it\n"
        "Goes on where an interrupted pull ended, and checks what it got. The daemon takes a token from $HF_TOKEN.",
        "  strata pull hf://ORG/REPO/model-q4_k_m.gguf --name model",
        [pull](const Context & context) -> absl::StatusOr<int> {
            STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
            return announce(context, pull_model(context, client, pull->url, pull->name));
        });
    pull_app.add_option("URL", pull->url, "hf://ORG/REPO/FILE[@REVISION]")->required();
    pull_app.add_option("--name", pull->name, "NAME[:TAG]; default: from the file's name")->type_name("NAME");
}

} // namespace strata::cli
