#include "mesh/step.h"

#include "base/check.h"

#include <absl/container/flat_hash_map.h>
#include <fmt/format.h>
#include <ggml-impl.h>

#include <algorithm>
#include <optional>

namespace strata::mesh {
namespace {

// Views and nodes without elements compute nothing.
bool runs(const ggml_tensor & node) {
    return !ggml_op_is_empty(node.op) && (node.flags & GGML_TENSOR_FLAG_COMPUTE) != 0 && !ggml_is_empty(&node);
}

// Whether a node leaves bytes of its span as they were.
bool writes_all(const ggml_tensor & node) {
    return node.op != GGML_OP_SET_ROWS && ggml_is_contiguous(&node);
}

wire::GraphTensor to_wire(const ggml_tensor & tensor) {
    wire::GraphTensor to;
    to.type = static_cast<uint16_t>(tensor.type);
    to.flags = static_cast<uint32_t>(tensor.flags);
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        to.ne[i] = static_cast<uint32_t>(tensor.ne[i]);
        to.nb[i] = tensor.nb[i];
    }
    to.address = reinterpret_cast<uint64_t>(tensor.data);
    return to;
}

class Capture {
public:
    Capture(const ggml_cgraph & graph, const std::function<bool(const ggml_tensor &)> & is_ours)
        : graph_(graph)
        , is_ours_(is_ours)
        , captured_(std::make_shared<CapturedGraph>()) {}

    absl::StatusOr<std::shared_ptr<const CapturedGraph>> run() {
        for (int i = 0; i < graph_.n_nodes; ++i) {
            if (runs(*graph_.nodes[i])) STRATA_RETURN_IF_ERROR(add_node(*graph_.nodes[i]));
        }
        mark_shared();
        return std::move(captured_);
    }

private:
    absl::StatusOr<uint32_t> place_of(const ggml_tensor & tensor) {
        const auto [place, inserted] = places_.try_emplace(&tensor, captured_->tensors.size());
        if (!inserted) return place->second;
        if (!ggml_is_empty(&tensor) && !is_ours_(tensor)) {
            return absl::InternalError(fmt::format("tensor '{}' is not in the mesh's memory", tensor.name));
        }
        CapturedGraph::Tensor & leaf = captured_->tensors.emplace_back();
        leaf.wire = to_wire(tensor);
        leaf.bytes = ggml_is_empty(&tensor) ? 0 : ggml_nbytes(&tensor);
        const ggml_tensor * root = &tensor;
        while (root->view_src != nullptr) root = root->view_src;
        if (const auto found = places_.find(root); found != places_.end() && root != &tensor) {
            leaf.root = static_cast<int32_t>(found->second);
        }
        return place->second;
    }

    absl::Status add_node(const ggml_tensor & node) {
        std::vector<uint32_t> sources;
        for (int i = 0; i < GGML_MAX_SRC; ++i) {
            // The second source of CPY is where it writes (ggml_cast even takes the node itself); nothing is read
            // there.
            const bool unread = node.op == GGML_OP_CPY && i > 0;
            if (node.src[i] == nullptr || unread) {
                sources.push_back(wire::GraphTensor::kNone);
                continue;
            }
            STRATA_ASSIGN_OR_RETURN(const uint32_t place, place_of(*node.src[i]));
            sources.push_back(place);
        }
        while (!sources.empty() && sources.back() == wire::GraphTensor::kNone) sources.pop_back();
        if (!is_ours_(node)) {
            return absl::InternalError(fmt::format("tensor '{}' is not in the mesh's memory", node.name));
        }
        const size_t place = captured_->tensors.size();
        places_[&node] = static_cast<uint32_t>(place);
        nodes_.push_back(&node);
        CapturedGraph::Tensor & tensor = captured_->tensors.emplace_back();
        tensor.wire = to_wire(node);
        tensor.wire.op = static_cast<uint16_t>(node.op);
        tensor.wire.sources = std::move(sources);
        constexpr size_t kParams = GGML_MAX_OP_PARAMS / sizeof(int32_t);
        size_t used = kParams;
        while (used > 0 && node.op_params[used - 1] == 0) --used;
        tensor.wire.op_params.assign(node.op_params, node.op_params + used);
        tensor.bytes = ggml_nbytes(&node);
        tensor.whole = writes_all(node);
        tensor.root = static_cast<int32_t>(place);
        return absl::OkStatus();
    }

    // A result that others than its direct users read must not be fused away.
    void mark_shared() {
        std::vector<int32_t> direct(captured_->tensors.size());
        for (const auto & tensor : captured_->tensors) {
            for (const uint32_t source : tensor.wire.sources) {
                if (source != wire::GraphTensor::kNone) ++direct[source];
            }
        }
        for (const ggml_tensor * node : nodes_) {
            const uint32_t place = places_.at(node);
            const size_t slot = ggml_hash_find(&graph_.visited_hash_set, node);
            const bool known = slot != GGML_HASHSET_FULL && ggml_bitset_get(graph_.visited_hash_set.used, slot);
            captured_->tensors[place].shared = !known || graph_.use_counts[slot] != direct[place];
        }
    }

    const ggml_cgraph & graph_;
    const std::function<bool(const ggml_tensor &)> & is_ours_;
    std::shared_ptr<CapturedGraph> captured_;
    absl::flat_hash_map<const ggml_tensor *, uint32_t> places_;
    std::vector<const ggml_tensor *> nodes_;
};

// For each place in the order of tensors: how many bytes are made before it and read at or after it.
std::vector<int64_t> bytes_across(const CapturedGraph & graph) {
    const auto & tensors = graph.tensors;
    std::vector<size_t> last_use(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
        for (const uint32_t source : tensors[i].wire.sources) {
            if (source == wire::GraphTensor::kNone) continue;
            const int32_t root = tensors[source].root;
            if (root >= 0) last_use[static_cast<size_t>(root)] = i;
        }
    }
    std::vector<int64_t> change(tensors.size() + 2);
    for (size_t i = 0; i < tensors.size(); ++i) {
        if (last_use[i] <= i) continue;
        change[i + 1] += static_cast<int64_t>(tensors[i].bytes);
        change[last_use[i] + 1] -= static_cast<int64_t>(tensors[i].bytes);
    }
    for (size_t i = 1; i < change.size(); ++i) change[i] += change[i - 1];
    return change;
}

// A SET_ROWS whose rows can be told from an input.
std::optional<RowWrite> row_write(const CapturedGraph & graph, size_t node, const Weights & weights) {
    const CapturedGraph::Tensor & tensor = graph.tensors[node];
    const wire::GraphTensor & to = tensor.wire;
    if (to.op != GGML_OP_SET_ROWS || to.sources.size() < 2 || to.sources[1] == wire::GraphTensor::kNone)
        return std::nullopt;
    const CapturedGraph::Tensor & indices = graph.tensors[to.sources[1]];
    const uint64_t row_bytes = ggml_row_size(static_cast<ggml_type>(to.type), to.ne[0]);
    const bool plain = to.ne[2] == 1 && to.ne[3] == 1 && to.nb[1] == row_bytes;
    const bool input =
        indices.wire.op == 0 && indices.root < 0 && weight_at(weights, indices.wire.address) == weights.end();
    const bool wide = indices.wire.type == GGML_TYPE_I64;
    const uint64_t index_bytes = wide ? sizeof(int64_t) : sizeof(int32_t);
    const bool list = indices.wire.ne[1] == 1 && indices.wire.ne[2] == 1 && indices.wire.ne[3] == 1 &&
                      indices.wire.nb[0] == index_bytes && (wide || indices.wire.type == GGML_TYPE_I32);
    if (!plain || !input || !list) return std::nullopt;
    return RowWrite{tensor.range(), row_bytes, indices.range(), wide};
}

} // namespace

Weights::const_iterator weight_at(const Weights & weights, uint64_t address) {
    auto at = weights.upper_bound(address);
    if (at == weights.begin()) return weights.end();
    --at;
    return address - at->first < at->second.bytes ? at : weights.end();
}

absl::StatusOr<std::shared_ptr<const CapturedGraph>>
CapturedGraph::capture(const ggml_cgraph & graph, const std::function<bool(const ggml_tensor &)> & is_ours) {
    return Capture(graph, is_ours).run();
}

std::vector<size_t> assign(const CapturedGraph & graph,
                           const std::function<size_t(const CapturedGraph::Tensor &)> & anchor, size_t fallback) {
    const auto & tensors = graph.tensors;
    std::vector<size_t> executors(tensors.size(), kAnywhere);
    const auto anchor_of = [&](size_t node) {
        for (const uint32_t source : tensors[node].wire.sources) {
            if (source == wire::GraphTensor::kNone) continue;
            if (const size_t executor = anchor(tensors[source]); executor != kAnywhere) return executor;
        }
        return anchor(tensors[node]); // a node that writes state
    };
    const std::vector<int64_t> across = bytes_across(graph);
    size_t current = kAnywhere; // the executor of the last anchor
    size_t begin = 0;           // the first tensor after it
    for (size_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].wire.op == 0) continue;
        const size_t executor = anchor_of(i);
        if (executor == kAnywhere) continue;
        if (current == kAnywhere || current == executor) {
            std::fill(executors.begin() + static_cast<ptrdiff_t>(begin),
                      executors.begin() + static_cast<ptrdiff_t>(i) + 1, executor);
        } else {
            size_t cut = i; // the first tensor on the new side
            for (size_t place = i; place-- > begin;) {
                if (across[place] < across[cut]) cut = place;
            }
            std::fill(executors.begin() + static_cast<ptrdiff_t>(begin),
                      executors.begin() + static_cast<ptrdiff_t>(cut), current);
            std::fill(executors.begin() + static_cast<ptrdiff_t>(cut),
                      executors.begin() + static_cast<ptrdiff_t>(i) + 1, executor);
        }
        current = executor;
        begin = i + 1;
    }
    std::fill(executors.begin() + static_cast<ptrdiff_t>(begin), executors.end(),
              current == kAnywhere ? fallback : current);
    return executors;
}

Plan make_plan(const CapturedGraph & graph, const std::vector<size_t> & executors, const Weights & weights) {
    const auto & tensors = graph.tensors;
    // Results that are read beyond their part are kept from being fused away there.
    std::vector<size_t> part_of(tensors.size(), SIZE_MAX);
    std::vector<bool> crosses(tensors.size());
    Plan plan;
    size_t last = kAnywhere;
    size_t count = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
        if (tensors[i].wire.op == 0) continue;
        if (executors[i] != last) ++count;
        last = executors[i];
        part_of[i] = count - 1;
        for (const uint32_t source : tensors[i].wire.sources) {
            if (source != wire::GraphTensor::kNone && tensors[source].wire.op != 0 && part_of[source] != part_of[i]) {
                crosses[source] = true;
            }
        }
    }

    size_t next = 0;
    for (size_t index = 0; index < count; ++index) {
        while (part_of[next] == SIZE_MAX) ++next;
        Part part;
        part.executor = executors[next];
        wire::Graph out;
        absl::flat_hash_map<uint32_t, uint32_t> places;
        RangeSet written, reads, writes;
        const auto read = [&](Segment range) {
            if (range.bytes == 0) return; // an empty source
            for (const Segment & missing : written.without(range)) reads.add(missing);
        };
        const auto place_of = [&](uint32_t source) {
            const auto [place, inserted] = places.try_emplace(source, static_cast<uint32_t>(out.tensors.size()));
            if (!inserted) return place->second;
            wire::GraphTensor leaf = tensors[source].wire; // a node of another part is a leaf here
            leaf.op = 0;
            leaf.flags = 0;
            leaf.sources.clear();
            leaf.op_params.clear();
            out.tensors.push_back(std::move(leaf));
            return place->second;
        };
        for (; next < tensors.size() && (part_of[next] == index || part_of[next] == SIZE_MAX); ++next) {
            if (part_of[next] == SIZE_MAX) continue;
            const auto & tensor = tensors[next];
            const auto rows = row_write(graph, next, weights);
            wire::GraphTensor node = tensor.wire;
            for (uint32_t & source : node.sources) {
                if (source == wire::GraphTensor::kNone) continue;
                const auto & from = tensors[source];
                const auto weight = weight_at(weights, from.wire.address);
                if (weight != weights.end()) {
                    part.weights.push_back(weight->first);
                } else if (!rows || from.range() != rows->to) { // what rows are set in is not looked at
                    read(from.range());
                }
                source = place_of(source);
            }
            if (rows) {
                part.row_writes.push_back(*rows);
            } else {
                if (!tensor.whole) read(tensor.range());
                written.add(tensor.range());
                writes.add(tensor.range());
            }
            if (tensor.shared || crosses[next]) node.flags |= GGML_TENSOR_FLAG_OUTPUT;
            places[static_cast<uint32_t>(next)] = static_cast<uint32_t>(out.tensors.size());
            out.tensors.push_back(std::move(node));
            ++part.nodes;
        }
        std::ranges::sort(part.weights);
        part.weights.erase(std::unique(part.weights.begin(), part.weights.end()), part.weights.end());
        part.reads = reads.segments();
        part.writes = writes.segments();
        part.graph = out.encode();
        part.hash = wire::Graph::hash(part.graph);
        plan.parts.push_back(std::move(part));
    }
    return plan;
}

} // namespace strata::mesh
