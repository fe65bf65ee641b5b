#include "executor/part_graph.h"

#include "executor/op_check.h"
#include "executor/op_cost.h"

#include <fmt/format.h>
#include <ggml-impl.h>

#include <algorithm>

namespace strata::executor {
namespace {

constexpr int32_t kKnownFlags = GGML_TENSOR_FLAG_INPUT | GGML_TENSOR_FLAG_OUTPUT | GGML_TENSOR_FLAG_PARAM |
                                GGML_TENSOR_FLAG_LOSS | GGML_TENSOR_FLAG_COMPUTE;
constexpr uint64_t kMaxTensorBytes = uint64_t{1} << 44;

absl::Status wrong(size_t place, std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("tensor {} of a graph: {}", place, what));
}

// ggml_nbytes, without its overflows. 0: too large.
uint64_t span_bytes(const ggml_tensor & tensor) {
    const auto block = static_cast<uint64_t>(ggml_blck_size(tensor.type));
    __extension__ using Wide = unsigned __int128;
    Wide bytes = block == 1 ? ggml_type_size(tensor.type) : Wide(tensor.ne[0]) * tensor.nb[0] / block;
    for (int i = block == 1 ? 0 : 1; i < GGML_MAX_DIMS; ++i) bytes += Wide(tensor.ne[i] - 1) * tensor.nb[i];
    return bytes <= kMaxTensorBytes ? static_cast<uint64_t>(bytes) : 0;
}

// Whether a device would rather have the weight of `node` in memory of this type. As llama.cpp asks: the weight in an
// empty buffer.
bool prefers(const DeviceTraits & device, ggml_backend_buffer_type_t buft, const ggml_tensor & node) {
    ggml_tensor weight = *node.src[0];
    const ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(buft, 0));
    weight.buffer = empty.get();
    weight.data = nullptr;
    ggml_tensor asked = node;
    asked.src[0] = &weight;
    if (!ggml_backend_dev_supports_op(device.device, &asked)) return false;
    weight.extra = &weight; // as a repacked one has, whose node is held to more
    return check_op(asked).ok();
}

} // namespace

absl::StatusOr<std::unique_ptr<PartGraph>> PartGraph::build(const wire::Graph & graph, Memory & memory,
                                                            BoundWeights & weights, const DeviceTraits & device) {
    auto part = std::make_unique<PartGraph>();
    const size_t count = graph.tensors.size();
    part->context_.reset(
        ggml_init({(count + 1) * ggml_tensor_overhead() + ggml_graph_overhead_custom(count, false), nullptr, true}));
    if (part->context_ == nullptr) return absl::ResourceExhaustedError("no memory for a graph");
    part->graph_ = ggml_new_graph_custom(part->context_.get(), std::max<size_t>(count, 1), false);
    part->tensors_.reserve(count);
    for (size_t i = 0; i < count; ++i)
        STRATA_RETURN_IF_ERROR(part->add(graph.tensors[i], i, memory, weights, device.threads));
    part->written_.clear();
    part->place_weights(device);
    part->count_uses();
    return part;
}

absl::Status PartGraph::add(const wire::GraphTensor & from, size_t place, Memory & memory, BoundWeights & weights,
                            int threads) {
    if (from.type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(from.type)) == 0) {
        return wrong(place, fmt::format("unknown type {}", from.type));
    }
    if (from.op >= GGML_OP_COUNT) return wrong(place, fmt::format("unknown op {}", from.op));
    if (from.sources.size() > GGML_MAX_SRC) return wrong(place, "too many sources");
    ggml_tensor * tensor = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I8, 1);
    tensor->type = static_cast<ggml_type>(from.type);
    tensor->op = static_cast<ggml_op>(from.op);
    tensor->flags = static_cast<int32_t>(from.flags) & kKnownFlags;
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        tensor->ne[i] = from.ne[i];
        tensor->nb[i] = from.nb[i];
        if (tensor->ne[i] > INT32_MAX) return wrong(place, "a dimension is out of range");
    }
    if (tensor->ne[0] % ggml_blck_size(tensor->type) != 0) return wrong(place, "a row is not whole blocks");
    if (ggml_blck_size(tensor->type) > 1 && tensor->nb[0] != ggml_type_size(tensor->type)) {
        return wrong(place, "blocks with gaps between them");
    }
    std::copy(from.op_params.begin(), from.op_params.end(), tensor->op_params);
    tensors_.push_back(tensor);

    if (tensor->op == GGML_OP_NONE && !from.sources.empty()) return wrong(place, "a leaf has no sources");
    if (ggml_is_empty(tensor)) { // no kernel looks where it lies
        if (tensor->op != GGML_OP_NONE) return wrong(place, "it computes nothing");
        static uint8_t nothing[64];
        tensor->data = nothing;
        return absl::OkStatus();
    }
    const uint64_t bytes = span_bytes(*tensor);
    if (bytes == 0) return wrong(place, "it is too large");
    if (tensor->op == GGML_OP_NONE) {
        return resolve_leaf(*tensor, from.address, memory, weights);
    }
    STRATA_ASSIGN_OR_RETURN(tensor->data, memory.for_writing({from.address, bytes}));
    tensor->buffer = memory.buffer(from.address);
    tensor->flags |= GGML_TENSOR_FLAG_COMPUTE;
    for (size_t i = 0; i < from.sources.size(); ++i) {
        if (from.sources[i] != wire::GraphTensor::kNone) tensor->src[i] = tensors_[from.sources[i]];
    }
    // The kernels that dequantize look there for the result's layout. As in ggml_cast.
    if (tensor->op == GGML_OP_CPY) tensor->src[1] = tensor;
    STRATA_RETURN_IF_ERROR(check_op(*tensor));
    const OpCost cost = op_cost(*tensor, threads);
    STRATA_RETURN_IF_ERROR(check_cost(*tensor, cost));
    operations_.push_back(cost.operations);
    all_operations_ += cost.operations;
    for (const IndexRule & rule : index_rules(*tensor)) {
        checks_.push_back({graph_->n_nodes, written_before(*rule.index)});
    }
    graph_->nodes[graph_->n_nodes++] = tensor;
    note_written(*tensor);
    return absl::OkStatus();
}

absl::Status PartGraph::resolve_leaf(ggml_tensor & tensor, uint64_t address, Memory & memory, BoundWeights & weights) {
    const uint64_t bytes = span_bytes(tensor);
    auto bound = weights.upper_bound(address);
    if (bound != weights.begin() && address - (--bound)->first < bound->second.bytes) {
        const uint64_t offset = address - bound->first;
        BoundWeight & weight = bound->second;
        if (bytes > weight.bytes - offset) return absl::OutOfRangeError("a view beyond its weight");
        if (weight.blob == nullptr) return absl::UnavailableError(weight.digest.to_string());
        tensor.data = const_cast<uint8_t *>(weight.data().data()) + offset; // a leaf: never written
        tensor.buffer = memory.buffer(address);
        held_.push_back(weight.blob);
        const bool whole = offset == 0 && bytes == weight.bytes && tensor.type == static_cast<int>(weight.type) &&
                           ggml_is_contiguous(&tensor) &&
                           std::equal(weight.ne.begin(), weight.ne.end(), static_cast<int64_t *>(tensor.ne));
        if (whole) weight_leafs_.push_back({&tensor, weight.blob, weight.offset});
        return absl::OkStatus();
    }
    STRATA_ASSIGN_OR_RETURN(tensor.data, memory.at({address, bytes}));
    tensor.buffer = memory.buffer(address);
    return absl::OkStatus();
}

// Takes a weight's repacked form where all that use it in this graph can.
void PartGraph::place_weights(const DeviceTraits & device) {
    if (device.extra_bufts.empty()) return;
    absl::flat_hash_map<const ggml_tensor *, std::vector<const ggml_tensor *>> users;
    for (const Leaf & leaf : weight_leafs_) users[leaf.tensor];
    for (int i = 0; i < graph_->n_nodes; ++i) {
        for (const ggml_tensor * source : graph_->nodes[i]->src) {
            if (const auto found = users.find(source); found != users.end()) found->second.push_back(graph_->nodes[i]);
        }
    }
    for (const Leaf & leaf : weight_leafs_) {
        const auto & its_users = users[leaf.tensor]; // one that has it twice is there twice
        if (its_users.empty()) continue;
        for (ggml_backend_buffer_type_t buft : device.extra_bufts) {
            const bool all = std::ranges::all_of(its_users, [&](const ggml_tensor * node) {
                return node->src[0] == leaf.tensor && std::ranges::count(node->src, leaf.tensor) == 1 &&
                       (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) && prefers(device, buft, *node);
            });
            if (!all) continue;
            const ggml_tensor * repacked = leaf.blob->repacked(leaf.offset, buft, leaf.tensor->type, leaf.tensor->ne);
            if (repacked == nullptr) continue;
            leaf.tensor->data = repacked->data;
            leaf.tensor->buffer = repacked->buffer;
            leaf.tensor->extra = repacked->extra;
            break;
        }
    }
}

// ggml fuses nodes when a result has one use only.
void PartGraph::count_uses() {
    for (int i = 0; i < graph_->n_nodes; ++i) {
        ggml_hash_find_or_insert(&graph_->visited_hash_set, graph_->nodes[i]);
        for (ggml_tensor * source : graph_->nodes[i]->src) {
            if (source != nullptr) ++graph_->use_counts[ggml_hash_find_or_insert(&graph_->visited_hash_set, source)];
        }
    }
}

absl::StatusOr<bool> PartGraph::run(ggml_backend_t backend, double operations) {
    if (next_ == 0) {
        for (const Check & check : checks_) {
            if (!check.late) STRATA_RETURN_IF_ERROR(this->check(check));
        }
    }
    const int end = end_of_piece(operations);
    for (; next_check_ < checks_.size() && checks_[next_check_].node < end; ++next_check_) {
        const Check & check = checks_[next_check_];
        if (!check.late) continue;
        STRATA_RETURN_IF_ERROR(compute(backend, next_, check.node));
        next_ = check.node;
        STRATA_RETURN_IF_ERROR(this->check(check));
    }
    STRATA_RETURN_IF_ERROR(compute(backend, next_, end));
    next_ = end;
    if (next_ < graph_->n_nodes) return false;
    next_ = 0;
    next_check_ = 0;
    return true;
}

int PartGraph::end_of_piece(double operations) const {
    if (next_ == 0 && all_operations_ <= operations) return graph_->n_nodes;
    int end = next_;
    do {
        operations -= operations_[static_cast<size_t>(end++)];
    } while (end < graph_->n_nodes && operations_[static_cast<size_t>(end)] <= operations);
    // ggml's CPU kernels compute it and the product after it as one, with other roundings perhaps.
    while (end < graph_->n_nodes && graph_->nodes[end - 1]->op == GGML_OP_RMS_NORM) ++end;
    return end;
}

absl::Status PartGraph::compute(ggml_backend_t backend, int begin, int end) const {
    if (begin == end) return absl::OkStatus();
    ggml_cgraph view = ggml_graph_view(graph_, begin, end);
    const ggml_status status = ggml_backend_graph_compute(backend, &view);
    if (status == GGML_STATUS_SUCCESS) return absl::OkStatus();
    if (status == GGML_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError("no memory to run a graph");
    return absl::InternalError(fmt::format("ggml: {}", ggml_status_to_string(status)));
}

absl::Status PartGraph::check(const Check & check) const {
    for (const IndexRule & rule : index_rules(*graph_->nodes[check.node])) STRATA_RETURN_IF_ERROR(check_indices(rule));
    return absl::OkStatus();
}

// By addresses: whoever sent the graph may have let tensors overlap.
void PartGraph::note_written(const ggml_tensor & tensor) {
    const auto * begin = static_cast<const uint8_t *>(tensor.data);
    const auto * end = begin + ggml_nbytes(&tensor);
    auto next = written_.upper_bound(begin);
    if (next != written_.begin() && std::prev(next)->second >= begin) --next;
    while (next != written_.end() && next->first <= end) {
        begin = std::min(begin, next->first);
        end = std::max(end, next->second);
        next = written_.erase(next);
    }
    written_.emplace(begin, end);
}

bool PartGraph::written_before(const ggml_tensor & tensor) const {
    const auto * begin = static_cast<const uint8_t *>(tensor.data);
    const auto next = written_.lower_bound(begin + ggml_nbytes(&tensor));
    return next != written_.begin() && std::prev(next)->second > begin;
}

} // namespace strata::executor
