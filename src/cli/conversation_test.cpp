#include "cli/conversation.h"
#include "cli/editor.h"
#include "cli/input.h"

#include <gtest/gtest.h>

namespace strata::cli {
namespace {

Json request_of(const Conversation & conversation, std::string_view question) {
    return Json::parse(conversation.request(question));
}

TEST(Conversation, RemembersWhatWasSaid) {
    Conversation conversation("m", "be brief", {});
    conversation.add("one?", "one.");
    const Json messages = request_of(conversation, "two?")["messages"];
    ASSERT_EQ(messages.size(), 4);
    EXPECT_EQ(messages[0]["role"], "system");
    EXPECT_EQ(messages[2]["content"], "one.");
    EXPECT_EQ(messages[3]["content"], "two?");

    ASSERT_TRUE(conversation.command("/clear").ok());
    EXPECT_EQ(request_of(conversation, "three?")["messages"].size(), 2);
    ASSERT_TRUE(conversation.command("/system  talk like a pirate ").ok());
    EXPECT_EQ(request_of(conversation, "four?")["messages"][0]["content"], "talk like a pirate");
}

TEST(Conversation, SettingsAreChecked) {
    Conversation conversation("m", "", {});
    EXPECT_TRUE(conversation.command("/set temperature 0.2").ok());
    EXPECT_EQ(request_of(conversation, "x")["temperature"], 0.2);
    for (const char * bad : {"/set temperature", "/set temperature hot", "/set temperature -1", "/set temperature 0.2x",
                             "/set temperature nan", "/set top-p 1.5", "/set max-tokens 0", "/set max-tokens 1.5",
                             "/set seed -1", "/set nothing 1", "/set stats maybe", "/nothing", "/"}) {
        EXPECT_FALSE(conversation.command(bad).ok()) << bad;
    }
    EXPECT_EQ(request_of(conversation, "x")["temperature"], 0.2);
    EXPECT_TRUE(conversation.command("/set temperature default").ok());
    EXPECT_FALSE(request_of(conversation, "x").contains("temperature"));
    EXPECT_FALSE(conversation.ended());
    EXPECT_TRUE(conversation.command("/bye").ok());
    EXPECT_TRUE(conversation.ended());
}

TEST(Conversation, Saves) {
    Conversation conversation("m", "be brief", {});
    conversation.add("one?", "one.");
    const std::string folder = ::testing::TempDir();
    ASSERT_TRUE(conversation.command("/save " + folder + "talk.json").ok());
    ASSERT_TRUE(conversation.command("/save " + folder + "talk.md").ok());
    EXPECT_EQ(Json::parse(*read_file(folder + "talk.json"))["messages"].size(), 3);
    EXPECT_EQ(*read_file(folder + "talk.md"), "## system\n\nbe brief\n\n## user\n\none?\n\n## assistant\n\none.\n\n");
    EXPECT_FALSE(conversation.command("/save /no/such/folder/talk.md").ok());
    EXPECT_FALSE(conversation.command("/save").ok());
}

TEST(MessageAssembler, JoinsLines) {
    MessageAssembler lines;
    EXPECT_EQ(lines.add("one line"), "one line");
    EXPECT_EQ(lines.add("first \\"), std::nullopt);
    EXPECT_FALSE(lines.empty());
    EXPECT_EQ(lines.add("second"), "first \nsecond");
    EXPECT_TRUE(lines.empty());

    EXPECT_EQ(lines.add("\"\"\"a"), std::nullopt);
    EXPECT_EQ(lines.add("b \\"), std::nullopt);
    EXPECT_EQ(lines.add(""), std::nullopt);
    EXPECT_EQ(lines.add("c\"\"\""), "a\nb \\\n\nc");
    EXPECT_EQ(lines.add("\"\"\"whole\"\"\""), "whole");
    EXPECT_EQ(lines.add("\"\"\""), std::nullopt);
    EXPECT_EQ(lines.add("quotes alone"), std::nullopt);
    EXPECT_EQ(lines.add("\"\"\""), "quotes alone");

    EXPECT_EQ(lines.add("given up \\"), std::nullopt);
    lines.reset();
    EXPECT_EQ(lines.add("new"), "new");
}

} // namespace
} // namespace strata::cli
