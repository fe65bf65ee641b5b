#include "mesh/step.h"

#include <ggml-cpp.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace strata::mesh {
namespace {

using testing::ElementsAre;

// Graphs of ggml whose tensors lie in a lane's invented addresses, one after another.
class StepTest : public testing::Test {
protected:
    ggml_tensor * put(ggml_tensor * tensor) {
        tensor->data = reinterpret_cast<void *>(next_);
        next_ += ggml_nbytes(tensor) + 64;
        return tensor;
    }
    ggml_tensor * leaf(int64_t ne0, int64_t ne1, ggml_type type = GGML_TYPE_F32) {
        return put(ggml_new_tensor_2d(context_.get(), type, ne0, ne1));
    }
    ggml_tensor * weight(int64_t ne0, int64_t ne1, int32_t layer) {
        ggml_tensor * tensor = leaf(ne0, ne1);
        WeightInfo & info = weights_[address(tensor)];
        info.layer = layer;
        info.bytes = ggml_nbytes(tensor);
        return tensor;
    }
    static uint64_t address(const ggml_tensor * tensor) { return reinterpret_cast<uint64_t>(tensor->data); }
    static Segment range(const ggml_tensor * tensor) { return {address(tensor), ggml_nbytes(tensor)}; }

    std::shared_ptr<const CapturedGraph> capture(std::initializer_list<ggml_tensor *> results) {
        graph_ = ggml_new_graph(context_.get());
        for (ggml_tensor * result : results) ggml_build_forward_expand(graph_, result);
        auto captured = CapturedGraph::capture(*graph_, [](const ggml_tensor &) { return true; });
        EXPECT_TRUE(captured.ok()) << captured.status();
        return *captured;
    }
    // Layers are bound to the executor of the same number.
    std::vector<size_t> assigned(const CapturedGraph & graph, size_t fallback = 7) const {
        return assign(
            graph,
            [&](const CapturedGraph::Tensor & tensor) {
                const auto weight = weight_at(weights_, tensor.wire.address);
                return weight == weights_.end() ? kAnywhere : static_cast<size_t>(weight->second.layer);
            },
            fallback);
    }
    // The executor of each node, in the graph's order.
    static std::vector<size_t> of_nodes(const CapturedGraph & graph, const std::vector<size_t> & executors) {
        std::vector<size_t> nodes;
        for (size_t i = 0; i < executors.size(); ++i) {
            if (graph.tensors[i].wire.op != 0) nodes.push_back(executors[i]);
        }
        return nodes;
    }
    static size_t node_at(const CapturedGraph & graph, const ggml_tensor * tensor) {
        for (size_t i = 0; i < graph.tensors.size(); ++i) {
            if (graph.tensors[i].wire.op == tensor->op && graph.tensors[i].wire.address == address(tensor)) return i;
        }
        ADD_FAILURE() << "not in the graph";
        return 0;
    }

    ggml_context_ptr context_{ggml_init({1 << 22, nullptr, true})};
    uint64_t next_ = uint64_t{1} << 40;
    Weights weights_;
    ggml_cgraph * graph_ = nullptr;
};

TEST_F(StepTest, ACutGoesWhereTheFewestBytesCross) {
    ggml_context * c = context_.get();
    ggml_tensor * x = leaf(64, 4);
    ggml_tensor * wide = put(ggml_mul_mat(c, weight(64, 256, 0), x)); // 4 KiB
    ggml_tensor * narrow = put(ggml_sum_rows(c, wide));               // 16 bytes
    ggml_tensor * again = put(ggml_repeat(c, narrow, wide));          // 4 KiB
    ggml_tensor * gelu = put(ggml_gelu(c, again));
    ggml_tensor * out = put(ggml_mul_mat(c, weight(256, 32, 1), gelu));
    const auto graph = capture({out});
    const auto executors = assigned(*graph);
    EXPECT_THAT(of_nodes(*graph, executors), ElementsAre(0, 0, 1, 1, 1));

    const Plan plan = make_plan(*graph, executors, weights_);
    ASSERT_EQ(plan.parts.size(), 2);
    EXPECT_EQ(plan.parts[0].executor, 0);
    EXPECT_EQ(plan.parts[0].nodes, 2);
    EXPECT_THAT(plan.parts[0].reads, ElementsAre(range(x)));
    EXPECT_THAT(plan.parts[0].writes, ElementsAre(range(wide), range(narrow)));
    EXPECT_EQ(plan.parts[0].weights.size(), 1);
    EXPECT_EQ(plan.parts[1].executor, 1);
    EXPECT_THAT(plan.parts[1].reads, ElementsAre(range(narrow)));
    EXPECT_THAT(plan.parts[1].writes, ElementsAre(range(again), range(gelu), range(out)));
}

TEST_F(StepTest, AValueThatIsUsedLaterCrossesToo) {
    // A residual stream: the cut after the narrow node would carry the wide one as well, for the addition behind it.
    ggml_context * c = context_.get();
    ggml_tensor * wide = put(ggml_mul_mat(c, weight(64, 256, 0), leaf(64, 4)));
    ggml_tensor * narrow = put(ggml_sum_rows(c, wide));
    ggml_tensor * again = put(ggml_repeat(c, narrow, wide));
    ggml_tensor * sum = put(ggml_add(c, again, wide));
    ggml_tensor * tiny = put(ggml_sum_rows(c, sum));
    ggml_tensor * back = put(ggml_repeat(c, tiny, wide));
    ggml_tensor * out = put(ggml_mul_mat(c, weight(256, 32, 1), back));
    const auto graph = capture({out});
    const auto executors = assigned(*graph);
    EXPECT_THAT(of_nodes(*graph, executors), ElementsAre(0, 0, 0, 0, 0, 1, 1));
    EXPECT_THAT(make_plan(*graph, executors, weights_).parts[1].reads, ElementsAre(range(tiny)));
}

TEST_F(StepTest, NodesWithoutAnchorsFollowTheirNeighbours) {
    ggml_context * c = context_.get();
    ggml_tensor * x = put(ggml_scale(c, leaf(64, 4), 2));
    ggml_tensor * y = put(ggml_mul_mat(c, weight(64, 64, 2), x));
    ggml_tensor * z = put(ggml_gelu(c, y));
    auto graph = capture({z});
    EXPECT_THAT(of_nodes(*graph, assigned(*graph)), ElementsAre(2, 2, 2));
    graph = capture({put(ggml_gelu(c, leaf(4, 4)))});
    EXPECT_THAT(of_nodes(*graph, assigned(*graph, 5)), ElementsAre(5));
}

TEST_F(StepTest, ThePartsOfAnExecutorThatTakesTurnsAreSeparate) {
    ggml_context * c = context_.get();
    ggml_tensor * x = leaf(64, 1);
    for (const int32_t layer : {0, 1, 0, 1}) x = put(ggml_mul_mat(c, weight(64, 64, layer), x));
    const auto graph = capture({x});
    const Plan plan = make_plan(*graph, assigned(*graph), weights_);
    ASSERT_EQ(plan.parts.size(), 4);
    for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(plan.parts[i].executor, i % 2);
        EXPECT_EQ(plan.parts[i].nodes, 1);
        EXPECT_EQ(plan.parts[i].hash, wire::Graph::hash(plan.parts[i].graph));
    }
}

TEST_F(StepTest, RowsThatAreSetNeedNothingOfTheOthers) {
    ggml_context * c = context_.get();
    ggml_tensor * cache = leaf(16, 100);
    ggml_tensor * rows = leaf(16, 2);
    ggml_tensor * ids = put(ggml_new_tensor_1d(c, GGML_TYPE_I64, 2));
    ggml_tensor * set = ggml_set_rows(c, cache, rows, ids); // a view of the cache
    ASSERT_EQ(set->data, cache->data);
    const auto graph = capture({set});
    EXPECT_FALSE(graph->tensors[node_at(*graph, set)].whole);
    const Part part = make_plan(*graph, assigned(*graph), weights_).parts[0];
    EXPECT_THAT(part.reads, testing::UnorderedElementsAre(range(rows), range(ids)));
    EXPECT_THAT(part.writes, testing::IsEmpty());
    ASSERT_EQ(part.row_writes.size(), 1);
    EXPECT_EQ(part.row_writes[0].to, range(cache));
    EXPECT_EQ(part.row_writes[0].row_bytes, 16 * sizeof(float));
    EXPECT_EQ(part.row_writes[0].indices, range(ids));
    EXPECT_TRUE(part.row_writes[0].wide);
}

TEST_F(StepTest, RowsWithComputedIndicesMayBeAnywhere) {
    ggml_context * c = context_.get();
    ggml_tensor * cache = leaf(16, 100);
    ggml_tensor * ids = put(ggml_argsort(c, leaf(2, 1), GGML_SORT_ORDER_ASC));
    const auto graph = capture({ggml_set_rows(c, cache, leaf(16, 2), ids)});
    const Part part = make_plan(*graph, assigned(*graph), weights_).parts[0];
    EXPECT_THAT(part.row_writes, testing::IsEmpty());
    EXPECT_THAT(part.reads, testing::Contains(range(cache)));
    EXPECT_THAT(part.writes, testing::Contains(range(cache)));
}

TEST_F(StepTest, WhatACopyWritesIsNotRead) {
    ggml_context * c = context_.get();
    ggml_tensor * from = leaf(16, 4);
    ggml_tensor * to = leaf(16, 4);
    ggml_tensor * copy = ggml_cpy(c, from, to);
    auto graph = capture({copy});
    EXPECT_THAT(make_plan(*graph, assigned(*graph), weights_).parts[0].reads, ElementsAre(range(from)));
    EXPECT_THAT(make_plan(*graph, assigned(*graph), weights_).parts[0].writes, ElementsAre(range(to)));

    ggml_tensor * cast = put(ggml_cast(c, from, GGML_TYPE_F16)); // its own second source
    graph = capture({cast});
    EXPECT_THAT(make_plan(*graph, assigned(*graph), weights_).parts[0].reads, ElementsAre(range(from)));

    // With gaps the bytes in between stay as they are.
    ggml_tensor * gaps = ggml_view_2d(c, to, 8, 4, to->nb[1], 0);
    graph = capture({ggml_cpy(c, leaf(8, 4), gaps)});
    EXPECT_THAT(make_plan(*graph, assigned(*graph), weights_).parts[0].reads, testing::Contains(range(gaps)));
}

TEST_F(StepTest, ViewsAreTheMemoryTheyShow) {
    ggml_context * c = context_.get();
    ggml_tensor * made = put(ggml_gelu(c, leaf(16, 4)));
    ggml_tensor * row = ggml_view_1d(c, made, 16, 2 * made->nb[1]);
    ggml_tensor * turned = ggml_transpose(c, made);
    ggml_tensor * a = put(ggml_gelu(c, row));
    ggml_tensor * b = put(ggml_cont(c, turned));
    const auto graph = capture({a, b});
    for (const auto & tensor : graph->tensors) { // views are leafs
        EXPECT_THAT((std::array{GGML_OP_VIEW, GGML_OP_TRANSPOSE}),
                    testing::Each(testing::Ne(static_cast<int>(tensor.wire.op))));
    }
    // The first node elsewhere: the others need of it what they look at.
    std::vector<size_t> executors(graph->tensors.size(), 1);
    executors[node_at(*graph, made)] = 0;
    const Plan plan = make_plan(*graph, executors, weights_);
    ASSERT_EQ(plan.parts.size(), 2);
    EXPECT_THAT(plan.parts[1].reads, ElementsAre(range(made)));
    executors[node_at(*graph, b)] = 0;
    EXPECT_THAT(make_plan(*graph, executors, weights_).parts[1].reads, ElementsAre(range(row)));
}

TEST_F(StepTest, MemoryThatIsReusedIsReadOnlyWhereItIsNew) {
    ggml_context * c = context_.get();
    ggml_tensor * x = leaf(16, 1);
    ggml_tensor * a = put(ggml_gelu(c, x));
    ggml_tensor * b = put(ggml_relu(c, a));
    ggml_tensor * d = ggml_sqr(c, b);
    d->data = a->data; // as ggml's allocator does
    const auto graph = capture({d});
    std::vector<size_t> executors(graph->tensors.size(), 0);
    executors[node_at(*graph, b)] = 1;
    const Plan plan = make_plan(*graph, executors, weights_);
    ASSERT_EQ(plan.parts.size(), 3);
    EXPECT_THAT(plan.parts[1].reads, ElementsAre(range(a)));
    EXPECT_THAT(plan.parts[2].reads, ElementsAre(range(b)));
    EXPECT_THAT(plan.parts[2].writes, ElementsAre(range(a)));
}

TEST_F(StepTest, WhatIsForeignIsRefused) {
    ggml_tensor * x = leaf(16, 1);
    graph_ = ggml_new_graph(context_.get());
    ggml_build_forward_expand(graph_, put(ggml_gelu(context_.get(), x)));
    ggml_set_name(x, "stranger");
    const auto captured = CapturedGraph::capture(*graph_, [&](const ggml_tensor & tensor) { return &tensor != x; });
    EXPECT_THAT(captured.status().message(), testing::HasSubstr("stranger"));
}

// With any choice of executors: the parts hold all nodes in order, and each node finds what it reads among what its
// part brings or made.
TEST_F(StepTest, AnyChoiceOfExecutorsIsComplete) {
    ggml_context * c = context_.get();
    ggml_tensor * cache = leaf(64, 32);
    ggml_tensor * ids = put(ggml_new_tensor_1d(c, GGML_TYPE_I64, 4));
    ggml_tensor * x = leaf(64, 4);
    ggml_tensor * set = nullptr;
    for (int32_t layer = 0; layer < 3; ++layer) {
        ggml_tensor * norm = put(ggml_rms_norm(c, x, 1e-5F));
        ggml_tensor * k = put(ggml_mul_mat(c, weight(64, 64, layer), norm));
        set = ggml_set_rows(c, cache, k, ids);
        ggml_tensor * seen = ggml_view_2d(c, set, 64, 4, cache->nb[1], 4 * cache->nb[1]);
        x = put(ggml_add(c, put(ggml_mul(c, seen, norm)), x));
    }
    const auto graph = capture({x});
    size_t nodes = 0;
    for (const auto & tensor : graph->tensors) nodes += tensor.wire.op != 0;
    std::mt19937_64 random(3);
    for (int round = 0; round < 200; ++round) {
        std::vector<size_t> executors(graph->tensors.size());
        for (size_t & executor : executors) executor = random() % 3;
        size_t seen = 0, last = kAnywhere;
        for (const Part & part : make_plan(*graph, executors, weights_).parts) {
            EXPECT_NE(part.executor, last);
            last = part.executor;
            const auto decoded = wire::Graph::decode(part.graph);
            ASSERT_TRUE(decoded.ok()) << decoded.status();
            RangeSet there, written;
            for (const Segment & read : part.reads) there.add(read);
            for (const auto & tensor : decoded->tensors) {
                if (tensor.op == 0) continue;
                ++seen;
                for (const uint32_t source : tensor.sources) {
                    if (source == wire::GraphTensor::kNone) continue;
                    const auto & from = decoded->tensors[source];
                    if (tensor.op == GGML_OP_SET_ROWS && from.address == tensor.address) continue;
                    if (weight_at(weights_, from.address) != weights_.end()) continue;
                    uint64_t bytes = 4;
                    for (int i = 0; i < 4; ++i) bytes += (from.ne[i] - 1) * from.nb[i];
                    EXPECT_TRUE(there.without({from.address, bytes}).empty());
                }
                uint64_t bytes = 4;
                for (int i = 0; i < 4; ++i) bytes += (tensor.ne[i] - 1) * tensor.nb[i];
                if (tensor.op != GGML_OP_SET_ROWS) there.add({tensor.address, bytes});
                written.add({tensor.address, bytes});
            }
            RangeSet told;
            for (const Segment & range : part.writes) told.add(range);
            for (const RowWrite & rows : part.row_writes) told.add(rows.to);
            EXPECT_EQ(written.segments(), told.segments());
        }
        EXPECT_EQ(seen, nodes);
    }
}

} // namespace
} // namespace strata::mesh
