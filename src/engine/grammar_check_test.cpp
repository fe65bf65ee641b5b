#include "engine/grammar_check.h"
#include "engine/limits.h"

#include <gtest/gtest.h>

#include <string>

namespace strata::engine {
namespace {

std::string nested(size_t depth) {
    return "root ::= " + std::string(depth, '(') + "\"a\"" + std::string(depth, ')');
}

TEST(GrammarCheck, TakesOrdinaryGrammars) {
    EXPECT_TRUE(check_grammar("").ok());
    EXPECT_TRUE(check_grammar("root ::= \"yes\" | [a-z]+ # a (comment\n").ok());
    EXPECT_TRUE(check_grammar(nested(kMaxGrammarNesting)).ok());
    // Brackets in literals, classes and comments are text.
    const std::string many(1000, '(');
    EXPECT_TRUE(check_grammar("root ::= \"" + many + "\"").ok());
    EXPECT_TRUE(check_grammar("root ::= \"\\\"" + many + "\"").ok());
    EXPECT_TRUE(check_grammar("root ::= [\\]" + many + "]").ok());
    EXPECT_TRUE(check_grammar("root ::= \"a\" # " + many + "\n").ok());
}

TEST(GrammarCheck, RefusesWhatOverflowsTheParser) {
    EXPECT_FALSE(check_grammar(nested(kMaxGrammarNesting + 1)).ok());
    EXPECT_FALSE(check_grammar("root ::= \"\" " + std::string(1000, '(')).ok());
    EXPECT_FALSE(check_grammar("root ::= [\\\\]" + std::string(1000, '(')).ok());
    std::string rules = "root ::= \"a\"\n";
    while (rules.size() < kMaxGrammarBytes - 20) rules += "a::=b\n";
    EXPECT_FALSE(check_grammar(rules).ok());
    EXPECT_FALSE(check_grammar(std::string(kMaxGrammarBytes + 1, ' ')).ok());
    EXPECT_FALSE(check_grammar("%llguidance {}").ok());
}

TEST(GrammarCheck, EndsOnUnfinishedText) {
    for (const char * text : {"\"", "[", "\"\\", "[\\", "#", "(", "::", ":"})
        EXPECT_TRUE(check_grammar(text).ok()) << text;
}

} // namespace
} // namespace strata::engine
