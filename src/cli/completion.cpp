#include "cli/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <vector>

namespace strata::cli {

namespace {

struct Options {
    std::vector<std::string> all;         // "--name", "-n"
    std::vector<std::string> with_values; // those that a value follows
    std::vector<std::string> with_files;  // those whose value is a file or a folder
    std::vector<std::string> with_levels; // those whose value is a level of the daemon's log
};

Options options_of(const CLI::App & app) {
    Options options;
    for (const CLI::Option * option : app.get_options([](const CLI::Option * o) { return o->nonpositional(); })) {
        std::vector<std::string> names;
        for (const std::string & name : option->get_lnames()) names.push_back("--" + name);
        for (const std::string & name : option->get_snames()) names.push_back("-" + name);
        options.all.insert(options.all.end(), names.begin(), names.end());
        if (option->get_expected_max() == 0) continue; // a flag
        options.with_values.insert(options.with_values.end(), names.begin(), names.end());
        if (option->get_type_name() == "FILE" || option->get_type_name() == "DIR") {
            options.with_files.insert(options.with_files.end(), names.begin(), names.end());
        }
        if (option->get_type_name() == "LEVEL") {
            options.with_levels.insert(options.with_levels.end(), names.begin(), names.end());
        }
    }
    return options;
}

// A pattern of bash's `case` with what is done there; none when there are no words.
std::string case_of(const std::set<std::string> & words, std::string_view action) {
    return words.empty() ? "" : fmt::format("        {}) {} ;;\n", fmt::join(words, " | "), action);
}

// The first positional says what is completed: a model's name, a file, or both.
std::string arguments_of(const CLI::App & command) {
    const auto positionals = command.get_options([](const CLI::Option * o) { return o->get_positional(); });
    if (positionals.empty()) return "none";
    const CLI::Option & first = *positionals.front();
    if (first.get_name(true) == "FILE") return "files";
    if (first.get_name(true) == "SHELL") return "shells";
    if (first.get_name(true) != "MODEL") return "none";
    if (first.get_description().find("FILE.gguf") != std::string::npos) return "models_and_files";
    return first.get_expected_max() > 1 ? "models" : "model";
}

constexpr char kScript[] = R"bash(# bash completion of strata; made by `strata completion bash`.

_strata_models() {{
    # Never starts a daemon just for a press of Tab.
    "${{COMP_WORDS[0]}}" --no-start --json ls 2>/dev/null | sed -n 's/^ *"name": "\(.*\)",*$/\1/p'
}}

_strata_files() {{
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$1")
}}

_strata() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} words=("${{COMP_WORDS[@]}}") cword=$COMP_CWORD
    # With bash-completion: NAME:TAG is one word.
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref -n : cur prev words cword
    fi
    COMPREPLY=()

    case $prev in
{files}{levels}        {values}) return ;;
    esac

    local command="" arguments=0 i
    for ((i = 1; i < cword; i++)); do
        case ${{words[i]}} in
            {values}) ((i++)) ;;
            -*) ;;
            *) if [[ -z $command ]]; then command=${{words[i]}}; else ((arguments++)); fi ;;
        esac
    done

    local options="{global_options}" kind=none
    case $command in
        "")
            kind=commands ;;
{commands}    esac

    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        return
    fi
    case $kind in
        commands) mapfile -t COMPREPLY < <(compgen -W "{command_names}" -- "$cur") ;;
        shells) mapfile -t COMPREPLY < <(compgen -W "bash" -- "$cur") ;;
        files) _strata_files "$cur" ;;
        model | models | models_and_files)
            if [[ $kind != models && $arguments -gt 0 ]]; then return; fi
            if [[ $kind == models_and_files ]]; then _strata_files "$cur"; fi
            local models
            mapfile -t models < <(compgen -W "$(_strata_models)" -- "$cur")
            COMPREPLY+=("${{models[@]}}")
            if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions "$cur"; fi ;;
    esac
}}
complete -F _strata strata
)bash";

} // namespace

std::string bash_completion(const CLI::App & app) {
    const Options global = options_of(app);
    std::set<std::string> values(global.with_values.begin(), global.with_values.end());
    std::set<std::string> files(global.with_files.begin(), global.with_files.end());
    std::set<std::string> levels(global.with_levels.begin(), global.with_levels.end());
    std::vector<std::string> names;
    std::string commands;
    for (const CLI::App * command : app.get_subcommands([](const CLI::App *) { return true; })) {
        Options options = options_of(*command);
        // The global ones are offered in any case; --help is an option of every command.
        std::erase_if(options.all, [&](const std::string & name) {
            return std::find(global.all.begin(), global.all.end(), name) != global.all.end();
        });
        values.insert(options.with_values.begin(), options.with_values.end());
        files.insert(options.with_files.begin(), options.with_files.end());
        levels.insert(options.with_levels.begin(), options.with_levels.end());
        names.push_back(command->get_name());
        commands += fmt::format("        {})\n            options+=\" {}\" kind={} ;;\n", command->get_name(),
                                fmt::join(options.all, " "), arguments_of(*command));
    }
    constexpr std::string_view kOfferLevels =
        R"(mapfile -t COMPREPLY < <(compgen -W "trace debug info warn error" -- "$cur"); return)";
    return fmt::format(kScript, fmt::arg("files", case_of(files, R"(_strata_files "$cur"; return)")),
                       fmt::arg("levels", case_of(levels, kOfferLevels)), fmt::arg("values", fmt::join(values, " | ")),
                       fmt::arg("global_options", fmt::join(global.all, " ")), fmt::arg("commands", commands),
                       fmt::arg("command_names", fmt::join(names, " ")));
}

} // namespace strata::cli
