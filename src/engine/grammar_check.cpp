#include "engine/grammar_check.h"

#include "engine/limits.h"

#include <fmt/format.h>

namespace strata::engine {

namespace {

constexpr std::string_view kDefinition = "::=";

// Where a literal or a character class that starts at `begin` ends; a backslash escapes the next character.
size_t skip_quoted(std::string_view text, size_t begin, char end) {
    size_t i = begin + 1;
    while (i < text.size() && text[i] != end) i += text[i] == '\\' ? 2 : 1;
    return i + 1;
}

} // namespace

absl::Status check_grammar(std::string_view grammar) {
    if (grammar.size() > kMaxGrammarBytes) {
        return absl::InvalidArgumentError(
            fmt::format("the grammar has {} bytes, the limit is {}", grammar.size(), kMaxGrammarBytes));
    }
    if (grammar.starts_with("%llguidance")) {
        return absl::InvalidArgumentError("the grammar is in llguidance's language; write it in GBNF");
    }
    size_t depth = 0;
    size_t rules = 0;
    for (size_t i = 0; i < grammar.size();) {
        switch (grammar[i]) {
        case '"':
            i = skip_quoted(grammar, i, '"');
            continue;
        case '[':
            i = skip_quoted(grammar, i, ']');
            continue;
        case '#':
            i = std::min(grammar.find('\n', i), grammar.size());
            continue;
        case '(':
            // A group, and each ? * + {} behind an item, becomes a rule.
            ++rules;
            if (++depth > kMaxGrammarNesting) {
                return absl::InvalidArgumentError(
                    fmt::format("the grammar nests groups deeper than the limit of {}", kMaxGrammarNesting));
            }
            break;
        case ')':
            if (depth > 0) --depth;
            break;
        case '?':
        case '*':
        case '+':
        case '{':
            ++rules;
            break;
        case ':':
            if (grammar.substr(i).starts_with(kDefinition)) ++rules;
            break;
        default:
            break;
        }
        if (rules > kMaxGrammarRules) {
            return absl::InvalidArgumentError(
                fmt::format("the grammar has more rules and groups than the limit of {}", kMaxGrammarRules));
        }
        ++i;
    }
    return absl::OkStatus();
}

} // namespace strata::engine
