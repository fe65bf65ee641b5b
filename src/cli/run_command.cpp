// run: an answer to a prompt, or a conversation.

#include "cli/chat.h"
#include "cli/command.h"
#include "cli/conversation.h"
#include "cli/deployment.h"
#include "cli/editor.h"
#include "cli/input.h"
#include "cli/terminal.h"
#include "cli/text.h"
#include "cli/transfer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>

namespace strata::cli {

namespace {

constexpr std::string_view kChatPath = "/v1/chat/completions";

struct RunOptions {
    std::string model;
    std::vector<std::string> prompt;
    std::string system;
    ChatOptions chat;
    std::string json_schema_file;
    std::optional<int32_t> context_tokens;
    std::vector<std::string> on;
    std::vector<double> split;
    int32_t lanes = 0;
    std::string on_loss;
    std::string tls;
    bool keep = false;
    bool verbose = false;
};

// Writes an answer as it comes.
class AnswerPrinter {
public:
    explicit AnswerPrinter(const Output & output)
        : output_(output) {}

    void operator()(std::string_view text, bool thinking) {
        if (output_.json) {
            output_.json_line({{thinking ? "thinking" : "text", text}});
            return;
        }
        // Thoughts are for people who watch, not for what reads a pipe.
        if (thinking && !output_.out_terminal) return;
        if (thinking_ && !thinking) end_line();
        thinking_ = thinking;
        std::string shown(text);
        if (output_.out_terminal) {
            shown.erase(std::remove(shown.begin(), shown.end(), '\r'), shown.end());
            shown = safe_text(shown, true);
        }
        if (shown.empty()) return;
        at_line_start_ = shown.back() == '\n';
        shown = output_.out_style(thinking ? Style::kDim : Style::kPlain, shown);
        output_.text(shown);
    }

    // An answer ends with a newline, whether the model gave one or not.
    void end_line() {
        if (!at_line_start_ && !output_.json) output_.line("");
        at_line_start_ = true;
    }

private:
    const Output & output_;
    bool thinking_ = false;
    bool at_line_start_ = true;
};

// Asks and prints. The text is there also when the status says that the answer was interrupted.
struct Asked {
    absl::Status status;
    std::string text;
    std::string finish_reason;
    ChatStats stats;
};

Asked ask(const Context & context, Client & client, const std::string & body) {
    v1::ServeRequest::Head head;
    head.set_method("POST");
    head.set_path(std::string(kChatPath));
    head.set_body(body);
    AnswerPrinter printer(context.output);
    ChatAnswer answer(std::ref(printer));
    absl::Status status = client.serve(head, [&](const v1::ServeResponse & part) { return answer.take(part); });
    if (status.ok()) status = answer.finish();
    printer.end_line();
    return {std::move(status), answer.text(), answer.finish_reason(), answer.stats()};
}

absl::StatusOr<int> answer_once(const Context & context, Client & client, const Conversation & conversation,
                                const std::string & prompt, bool verbose) {
    const Asked asked = ask(context, client, conversation.request(prompt));
    STRATA_RETURN_IF_ERROR(asked.status);
    if (context.output.json) {
        context.output.json_line({{"done", true},
                                  {"finishReason", asked.finish_reason},
                                  {"promptTokens", asked.stats.prompt_tokens},
                                  {"generatedTokens", asked.stats.generated_tokens},
                                  {"tokensPerSecond", asked.stats.tokens_per_second}});
    } else if (verbose) {
        context.output.note(describe(asked.stats));
    }
    return 0;
}

absl::StatusOr<int> converse(const Context & context, Client & client, Conversation & conversation,
                             const std::string & model) {
    const Output & output = context.output;
    output.line(output.out_style(Style::kBold, safe_text(model)) +
                output.out_style(Style::kDim, "  /help lists what you can do, /bye leaves"));
    LineEditor editor(context.home.root / "history");
    bool warned = false;
    while (!conversation.ended()) {
        const LineEditor::Result read = editor.read_message(">>> ", "... ");
        if (read.end == LineEditor::End::kEndOfInput) {
            output.line("");
            return 0;
        }
        if (read.end == LineEditor::End::kInterrupted) {
            if (!read.typed && !warned) output.note("Ctrl-D or /bye leaves");
            warned = !read.typed;
            continue;
        }
        warned = false;
        if (read.text.find_first_not_of(" \n\t") == std::string::npos) continue;

        if (Conversation::is_command(read.text)) {
            const absl::StatusOr<std::string> said = conversation.command(read.text);
            if (!said.ok()) {
                output.error(said.status());
            } else if (!said->empty()) {
                output.line(output.out_style(Style::kDim, safe_text(*said, true)));
            }
            continue;
        }

        const Asked asked = [&] {
            const EchoOff quiet;
            return ask(context, client, conversation.request(read.text));
        }();
        const bool interrupted = absl::IsCancelled(asked.status);
        if (asked.status.ok() || (interrupted && !asked.text.empty())) conversation.add(read.text, asked.text);
        if (interrupted) {
            output.note("interrupted");
        } else if (!asked.status.ok()) {
            output.error(asked.status);
        } else if (conversation.verbose()) {
            output.note(asked.finish_reason == "length" ? describe(asked.stats) + "; cut off at the limit of tokens"
                                                        : describe(asked.stats));
        }
    }
    return 0;
}

absl::StatusOr<Json> read_schema(const std::string & file) {
    STRATA_ASSIGN_OR_RETURN(const std::string text, read_file(file));
    Json schema = Json::parse(text, nullptr, false);
    if (!schema.is_object()) {
        return absl::InvalidArgumentError(fmt::format("{} is not a JSON schema: it must be a JSON object", file));
    }
    return schema;
}

absl::StatusOr<int> run(const Context & context, const RunOptions & options) {
    std::string prompt = fmt::format("{}", fmt::join(options.prompt, " "));
    const bool stdin_terminal = ::isatty(STDIN_FILENO) == 1;
    if (!stdin_terminal) {
        STRATA_ASSIGN_OR_RETURN(const std::string input, read_stdin());
        if (!prompt.empty() && !input.empty()) prompt += "\n\n";
        prompt += input;
    }
    const bool interactive = prompt.empty() && stdin_terminal && context.output.out_terminal && !context.output.json;
    if (prompt.empty() && !interactive) {
        return usage_error("there is no prompt; write it after the model, or send it to stdin");
    }
    ChatOptions chat = options.chat;
    if (!options.json_schema_file.empty()) {
        STRATA_ASSIGN_OR_RETURN(chat.json_schema, read_schema(options.json_schema_file));
    }

    STRATA_ASSIGN_OR_RETURN(Client client, context.client_or_start());
    STRATA_ASSIGN_OR_RETURN(const std::string model, model_for(context, client, options.model));
    STRATA_RETURN_IF_ERROR(load_model(context, client,
                                      {model, options.context_tokens, options.keep, options.on, options.split,
                                       options.lanes, options.on_loss, options.tls}));
    Conversation conversation(model, options.system, std::move(chat));
    if (!interactive) return answer_once(context, client, conversation, prompt, options.verbose);
    return converse(context, client, conversation, model);
}

// CLI::Range takes "nan", which is neither below nor above anything.
CLI::Validator between(double low, double high) {
    return CLI::Validator(
        [low, high](const std::string & text) {
            double value = 0;
            const bool fits = CLI::detail::lexical_cast(text, value) && value >= low && value <= high;
            return fits ? std::string() : fmt::format("{} is no number from {} to {}", safe_text(text), low, high);
        },
        "");
}

} // namespace

void add_run_command(Commands & commands) {
    auto options = std::make_shared<RunOptions>();
    CLI::App & app =
        commands.add("Use a model", "run",
                     "Talk to a model, or get one answer\n"
                     "MODEL is a name (`strata ls`), a GGUF file, which is imported first, or a hub's URL.\n"
                     "Without PROMPT on a terminal: a conversation. What stdin holds is added to the prompt.",
                     "  strata run smollm2\n"
                     "  strata run smollm2 \"Why is the sky blue?\"\n"
                     "  strata run model.gguf --temperature 0 < question.txt\n"
                     "  git diff | strata run smollm2 \"Write a commit message:\"",
                     [options](const Context & context) { return run(context, *options); });
    app.add_option("MODEL", options->model, "NAME[:TAG], FILE.gguf or hf://ORG/REPO/FILE")->required();
    app.add_option("PROMPT", options->prompt, "The question; several words need no quotes");
    app.add_option("--system", options->system, "The system prompt")->type_name("TEXT");
    app.add_option("--temperature", options->chat.temperature, "0 for the likeliest token; default: the model's")
        ->check(between(0, 100))
        ->type_name("X");
    app.add_option("--top-p", options->chat.top_p, "Only the likeliest tokens that have this probability together")
        ->check(between(0, 1))
        ->type_name("X");
    app.add_option("--max-tokens", options->chat.max_tokens, "Length of the answer at most")
        ->check(CLI::Range(int64_t{1}, int64_t{INT32_MAX}).description(""))
        ->type_name("N");
    app.add_option("--seed", options->chat.seed, "Equal seeds give equal answers")
        ->check(CLI::Range(int64_t{0}, int64_t{UINT32_MAX}).description(""))
        ->type_name("N");
    app.add_option("--stop", options->chat.stop, "End the answer before this text; may be given several times")
        ->type_name("TEXT")
        ->expected(1)
        ->take_all();
    app.add_option("--json-schema", options->json_schema_file, "The answer is JSON that matches the schema in FILE")
        ->type_name("FILE");
    app.add_option("--context", options->context_tokens,
                   "Tokens that a conversation may have; reloads the model, which keeps it; 0: the default again")
        ->check(CLI::Range(int32_t{0}, INT32_MAX).description(""))
        ->type_name("N");
    app.add_option("--on", options->on,
                   "Run the layers on these executors (`strata-engine executor`), on their first device or, as in "
                   "HOST:PORT/1, another one; reloads the model, which keeps it")
        ->type_name("HOST:PORT,...")
        ->delimiter(',')
        ->allow_extra_args(false);
    app.add_option("--split", options->split, "Shares of the executors in the model, as in 2,1; default: equal ones")
        ->type_name("X,...")
        ->delimiter(',')
        ->check(CLI::PositiveNumber.description(""))
        ->allow_extra_args(false);
    app.add_option("--lanes", options->lanes,
                   "Independent batches that keep the executors busy at the same time; default: one for each executor")
        ->check(CLI::Range(1, 64).description(""))
        ->type_name("N");
    app.add_option("--on-loss", options->on_loss,
                   "When an executor is lost: its layers go to the others (rebind, the default), wait to be bound by "
                   "`strata-engine bind`, or the request fails")
        ->type_name("rebind|wait|fail")
        ->check(CLI::IsMember({"rebind", "wait", "fail"}).description(""));
    app.add_option("--tls", options->tls,
                   "Talk TLS to the executors, with the certificates in DIR: ca.pem, cert.pem, key.pem")
        ->type_name("DIR");
    app.add_flag("--keep", options->keep, "Don't unload the model when it is idle");
    app.add_flag("--verbose", options->verbose, "Tokens and speed after the answer");
}

} // namespace strata::cli
