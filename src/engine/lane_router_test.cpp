#include "engine/lane_router.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>

namespace strata::engine {
namespace {

std::string chat(const std::string & messages) {
    return fmt::format(R"({{"stream":true,"messages":[{}],"temperature":0}})", messages);
}

std::string message(char letter, size_t bytes) {
    return fmt::format(R"({{"role":"user","content":"{}"}})", std::string(bytes, letter));
}

TEST(LaneRouter, TheLeastLoadedLaneIsNext) {
    LaneRouter router(3, 2);
    EXPECT_EQ(router.enter(chat(message('a', 10)), 1), 0);
    EXPECT_EQ(router.enter(chat(message('b', 10)), 1), 1);
    EXPECT_EQ(router.enter(chat(message('c', 10)), 1), 2);
    router.leave(1, 1);
    EXPECT_EQ(router.enter(chat(message('d', 10)), 2), 1);
    EXPECT_EQ(router.enter("not JSON", 1), 0);
}

TEST(LaneRouter, AConversationGoesBackToItsLane) {
    LaneRouter router(2, 2);
    const std::string first = message('a', 1000), second = message('b', 1000);
    EXPECT_EQ(router.enter(chat(first), 1), 0);
    EXPECT_EQ(router.enter(chat(second), 1), 1);
    router.leave(0, 1);
    router.leave(1, 1);
    EXPECT_EQ(router.enter(chat(second + "," + message('c', 100)), 1), 1);
    router.leave(1, 1);
    EXPECT_EQ(router.enter(chat(first + "," + message('d', 100)), 1), 0);
    router.leave(0, 1);
    EXPECT_EQ(router.enter(chat(second + "," + message('c', 100) + "," + message('e', 100)), 1), 1);
}

TEST(LaneRouter, ShortPromptsInCommonDontCrowdOneLane) {
    LaneRouter router(2, 4);
    const std::string system = message('s', 500);
    EXPECT_EQ(router.enter(chat(system + "," + message('a', 50)), 1), 0);
    EXPECT_EQ(router.enter(chat(system + "," + message('b', 50)), 1), 1);
    EXPECT_EQ(router.enter(chat(system + "," + message('c', 50)), 1), 0);
}

TEST(LaneRouter, ALongPromptIsWorthACrowd) {
    LaneRouter router(2, 4);
    const std::string book = message('s', 20000);
    EXPECT_EQ(router.enter(chat(book + "," + message('a', 50)), 1), 0);
    EXPECT_EQ(router.enter(chat(book + "," + message('b', 50)), 1), 0);
    EXPECT_EQ(router.enter(chat(message('c', 50)), 1), 1);
}

TEST(LaneRouter, AFullLaneIsNotChosen) {
    LaneRouter router(2, 1);
    const std::string book = message('s', 20000);
    EXPECT_EQ(router.enter(chat(book), 1), 0);
    EXPECT_EQ(router.enter(chat(book), 1), 1);
    router.leave(0, 1);
    router.leave(1, 1);
    EXPECT_EQ(router.enter(chat(book + "," + message('b', 50)), 1), 0);
}

} // namespace
} // namespace strata::engine
