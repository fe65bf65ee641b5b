#include "wire/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace strata::wire {
namespace {

constexpr uint32_t kNone = GraphTensor::kNone;

GraphTensor tensor(uint16_t op, std::vector<uint32_t> sources, std::vector<int32_t> params = {}) {
    return {1, op, 8, {4, 3, 2, 1}, {4, 16, 48, 96}, 4096, std::move(sources), std::move(params)};
}

Graph some_graph() {
    return {
        {tensor(0, {}), tensor(0, {}), tensor(2, {0, 1}), tensor(30, {2, kNone, 0}, {1, -2, 3}), tensor(2, {3, 3})}};
}

TEST(Graph, RoundTrip) {
    const auto bytes = some_graph().encode();
    const auto graph = Graph::decode(bytes);
    ASSERT_TRUE(graph.ok());
    EXPECT_EQ(graph->encode(), bytes);
    ASSERT_EQ(graph->tensors.size(), 5);
    EXPECT_THAT(graph->tensors[3].sources, testing::ElementsAre(2, kNone, 0));
    EXPECT_THAT(graph->tensors[3].op_params, testing::ElementsAre(1, -2, 3));
    EXPECT_THAT(graph->tensors[3].nb, testing::ElementsAre(4, 16, 48, 96));
    EXPECT_TRUE(Graph::decode(Graph{}.encode())->tensors.empty());
}

TEST(Graph, IsRefusedAtAnyOtherLength) {
    auto bytes = some_graph().encode();
    for (size_t size = 0; size < bytes.size(); ++size)
        EXPECT_FALSE(Graph::decode(std::span(bytes).first(size)).ok()) << size;
    bytes.push_back(0);
    EXPECT_FALSE(Graph::decode(bytes).ok());
}

TEST(Graph, SourcesComeBefore) {
    for (const uint32_t source : {2U, 3U, 100U, kNone - 1}) {
        Graph graph = some_graph();
        graph.tensors[2].sources[1] = source;
        EXPECT_THAT(Graph::decode(graph.encode()).status().message(), testing::HasSubstr("does not come before it"))
            << source;
    }
}

TEST(Graph, CountsAreBounded) {
    for (const uint32_t count : {6U, 200001U, UINT32_MAX}) {
        auto bytes = some_graph().encode();
        std::memcpy(bytes.data(), &count, sizeof(count));
        EXPECT_FALSE(Graph::decode(bytes).ok()) << count;
    }
    EXPECT_TRUE(Graph::decode(Graph{{tensor(0, {}), tensor(2, std::vector<uint32_t>(kMaxSources, 0))}}.encode()).ok());
    EXPECT_FALSE(
        Graph::decode(Graph{{tensor(0, {}), tensor(2, std::vector<uint32_t>(kMaxSources + 1, 0))}}.encode()).ok());
    EXPECT_FALSE(Graph::decode(Graph{{tensor(2, {}, std::vector<int32_t>(kMaxOpParams + 1, 1))}}.encode()).ok());
}

TEST(Graph, MutationsAreRefusedOrUnderstood) {
    std::mt19937_64 random(2);
    const auto original = some_graph().encode();
    for (int round = 0; round < 50000; ++round) {
        auto bytes = original;
        for (uint64_t n = random() % 4; n < 4; ++n) bytes[random() % bytes.size()] = static_cast<uint8_t>(random());
        const auto graph = Graph::decode(bytes);
        ASSERT_TRUE(!graph.ok() || graph->encode() == bytes) << "round " << round;
    }
}

TEST(Graph, HashIsOfTheContent) {
    auto bytes = some_graph().encode();
    const GraphHash hash = Graph::hash(bytes);
    EXPECT_EQ(Graph::hash(some_graph().encode()), hash);
    bytes.back() ^= 1;
    EXPECT_NE(Graph::hash(bytes), hash);
}

} // namespace
} // namespace strata::wire
