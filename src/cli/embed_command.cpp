// embed: texts as vectors.

#include "cli/chat.h"
#include "cli/command.h"
#include "cli/deployment.h"
#include "cli/input.h"
#include "cli/text.h"
#include "cli/transfer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <cmath>
#include <memory>

namespace strata::cli {

namespace {

using Vector = std::vector<double>;

struct EmbedOptions {
    std::string model;
    std::vector<std::string> texts;
    bool similarity = false;
};

std::vector<std::string> lines_of(const std::string & text) {
    std::vector<std::string> lines;
    for (size_t start = 0; start < text.size();) {
        const size_t end = std::min(text.find('\n', start), text.size());
        if (end > start) lines.push_back(text.substr(start, end - start));
        start = end + 1;
    }
    return lines;
}

// {"data":[{"index":0,"embedding":[…]},…]} in the order of the texts.
absl::StatusOr<std::vector<Vector>> read_embeddings(const std::string & body, size_t count) {
    const Json json = Json::parse(body, nullptr, false);
    std::vector<Vector> vectors(count);
    const absl::Status bad = absl::InternalError("the daemon's answer holds no embeddings; see `strata logs`");
    if (!json.is_object() || !json.contains("data") || !json["data"].is_array()) return bad;
    for (const Json & item : json["data"]) {
        if (!item.is_object() || !item.contains("embedding") || !item["embedding"].is_array()) return bad;
        const size_t index =
            item.contains("index") && item["index"].is_number_unsigned() ? item["index"].get<size_t>() : 0;
        if (index >= count) return bad;
        for (const Json & number : item["embedding"]) {
            if (!number.is_number()) return bad;
            vectors[index].push_back(number.get<double>());
        }
    }
    for (const Vector & vector : vectors) {
        if (vector.empty() || vector.size() != vectors.front().size()) return bad;
    }
    return vectors;
}

double cosine(const Vector & a, const Vector & b) {
    double dot = 0;
    double aa = 0;
    double bb = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        dot += a[i] * b[i];
        aa += a[i] * a[i];
        bb += b[i] * b[i];
    }
    return aa > 0 && bb > 0 ? dot / std::sqrt(aa * bb) : 0;
}

std::vector<Vector> similarities(const std::vector<Vector> & vectors) {
    std::vector<Vector> rows;
    for (const Vector & a : vectors) {
        Vector & row = rows.emplace_back();
        for (const Vector & b : vectors) row.push_back(cosine(a, b));
    }
    return rows;
}

void print_similarities(const Context & context, const std::vector<std::string> & texts,
                        const std::vector<Vector> & vectors) {
    constexpr size_t kTextColumns = 40;
    std::vector<Table::Column> columns = {{"", Table::Align::kRight}, {"TEXT"}};
    for (size_t i = 0; i < texts.size(); ++i) columns.push_back({fmt::format("{}", i + 1), Table::Align::kRight});
    Table table(columns);
    const std::vector<Vector> rows = similarities(vectors);
    for (size_t i = 0; i < texts.size(); ++i) {
        std::vector<Table::Cell> row = {fmt::format("{}", i + 1), cut_to_width(safe_text(texts[i]), kTextColumns)};
        for (const double value : rows[i]) row.push_back(fmt::format("{:.3f}", value));
        table.add(std::move(row));
    }
    context.output.text(table.render(context.output));
}

absl::StatusOr<std::string> ask(Client & client, const std::string & model, const std::vector<std::string> & texts) {
    const Json body = {{"model", model}, {"input", texts}, {"encoding_format", "float"}};
    v1::ServeRequest::Head head;
    head.set_method("POST");
    head.set_path("/v1/embeddings");
    head.set_body(body.dump(-1, ' ', false, Json::error_handler_t::replace));
    int http_status = 0;
    std::string answer;
    STRATA_RETURN_IF_ERROR(client.serve(head, [&](const v1::ServeResponse & part) {
        if (part.has_head()) http_status = part.head().status();
        if (part.has_data()) answer += part.data();
        return absl::OkStatus();
    }));
    if (http_status != 200) return api_error(http_status, answer);
    return answer;
}

absl::StatusOr<int> embed(const Context & context, const EmbedOptions & options) {
    std::vector<std::string> texts = options.texts;
    if (texts.empty() && ::isatty(STDIN_FILENO) == 0) {
        STRATA_ASSIGN_OR_RETURN(const std::string input, read_stdin());
        texts = lines_of(input);
    }
    if (texts.empty()) return usage_error("there is no text; write it after the model, or send lines to stdin");

    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    STRATA_ASSIGN_OR_RETURN(const std::string model, model_for(context, client, options.model));
    STRATA_RETURN_IF_ERROR(load_model(context, client, {model}));
    STRATA_ASSIGN_OR_RETURN(const std::string answer, ask(client, model, texts));
    STRATA_ASSIGN_OR_RETURN(const std::vector<Vector> vectors, read_embeddings(answer, texts.size()));

    if (context.output.json) {
        Json document = {{"model", model}, {"texts", texts}, {"embeddings", vectors}};
        if (options.similarity) document["similarities"] = similarities(vectors);
        context.output.json_line(document); // thousands of numbers: one line
    } else if (options.similarity) {
        print_similarities(context, texts, vectors);
    } else {
        for (const Vector & vector : vectors) context.output.line(fmt::format("{:.6f}", fmt::join(vector, " ")));
    }
    return 0;
}

} // namespace

void add_embed_command(Commands & commands) {
    auto options = std::make_shared<EmbedOptions>();
    CLI::App & app = commands.add("Use a model", "embed",
                                  "Turn texts into vectors\n"
                                  "One line of numbers for each TEXT, or for each line of stdin when there is none.",
                                  "  strata embed minilm \"a cat\" \"a dog\"\n"
                                  "  strata embed minilm --similarity \"a cat\" \"a kitten\" \"a lawn mower\"\n"
                                  "  strata embed minilm < sentences.txt",
                                  [options](const Context & context) { return embed(context, *options); });
    app.add_option("MODEL", options->model, "NAME[:TAG], FILE.gguf or hf://ORG/REPO/FILE")->required();
    app.add_option("TEXT", options->texts, "What to embed");
    app.add_flag("--similarity", options->similarity, "How alike the texts are (cosine) instead of the numbers");
}

} // namespace strata::cli
