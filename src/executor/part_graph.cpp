#include "executor/part_graph.h"

#include "executor/host_node.h"
#include "executor/limits.h"
#include "executor/op_check.h"
#include "executor/op_cost.h"

#include <fmt/format.h>
#include <ggml-backend-impl.h>
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

// Whether a device can compute a node whose sources are in its memory. What asks for room behind its result, which is
// somebody else's here, can't; nor is every kernel of a GPU content with places that the host's are content with.
bool runs_there(const DeviceTraits & device, const ggml_tensor & node) {
    constexpr uintptr_t kAlignment = 16;
    const auto aligned = [](const ggml_tensor * tensor) {
        return tensor == nullptr || reinterpret_cast<uintptr_t>(tensor->data) % kAlignment == 0;
    };
    if (ggml_op_alloc_size_may_expand(node.op) &&
        ggml_backend_buft_get_alloc_size(device.memory, &node) > ggml_nbytes(&node)) {
        return false;
    }
    return aligned(&node) && std::ranges::all_of(node.src, aligned) &&
           ggml_backend_dev_supports_op(device.device, &node);
}

absl::Status status_of(ggml_status status) {
    if (status == GGML_STATUS_SUCCESS) return absl::OkStatus();
    if (status == GGML_STATUS_ALLOC_FAILED) return absl::ResourceExhaustedError("no memory to run a graph");
    return absl::InternalError(fmt::format("ggml: {}", ggml_status_to_string(status)));
}

// The weight that an address lies in, and where it begins; nullptr: none.
const BoundWeights::value_type * weight_at(const BoundWeights & weights, uint64_t address) {
    const auto next = weights.upper_bound(address);
    if (next == weights.begin()) return nullptr;
    const auto & bound = *std::prev(next);
    return address - bound.first < bound.second.bytes ? &bound : nullptr;
}

} // namespace

absl::StatusOr<std::unique_ptr<PartGraph>> PartGraph::build(const wire::Graph & graph, Memory & memory,
                                                            const BoundWeights & weights, const DeviceTraits & device) {
    auto part = std::make_unique<PartGraph>();
    STRATA_RETURN_IF_ERROR(part->build_on(graph, memory, weights, device));
    part->count_uses();
    return part;
}

absl::StatusOr<PartGraph::Prepared> PartGraph::prepare(const wire::Graph & graph, Memory & memory,
                                                       const BoundWeights & weights, const DeviceTraits & device) {
    PartGraph part;
    part.preparing_ = true;
    STRATA_RETURN_IF_ERROR(part.build_on(graph, memory, weights, device));
    return part.copied_ ? Prepared::kOneMore : part.missing_ ? Prepared::kWaits : Prepared::kAll;
}

absl::Status PartGraph::build_on(const wire::Graph & graph, Memory & memory, const BoundWeights & weights,
                                 const DeviceTraits & device) {
    const size_t count = graph.tensors.size();
    context_.reset(
        ggml_init({(count + 1) * ggml_tensor_overhead() + ggml_graph_overhead_custom(count, false), nullptr, true}));
    if (context_ == nullptr) return absl::ResourceExhaustedError("no memory for a graph");
    graph_ = ggml_new_graph_custom(context_.get(), std::max<size_t>(count, 1), false);
    tensors_.reserve(count);
    // All have room before the first gets its place: what makes room may move others.
    for (size_t i = 0; i < count; ++i) STRATA_RETURN_IF_ERROR(make(graph.tensors[i], i, weights, memory));
    moves_ = memory.moves();
    for (size_t i = 0; i < count; ++i) {
        ggml_tensor & tensor = *tensors_[i];
        STRATA_RETURN_IF_ERROR(place(tensor, graph.tensors[i].address, weights, memory));
        if (tensor.op != GGML_OP_NONE) STRATA_RETURN_IF_ERROR(add_node(tensor, device.threads));
    }
    written_.clear();
    if (device.memory != nullptr) return upload_weights(device);
    repack_weights(device);
    return absl::OkStatus();
}

absl::Status PartGraph::make(const wire::GraphTensor & from, size_t place, const BoundWeights & weights,
                             Memory & memory) {
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
    for (size_t i = 0; i < from.sources.size(); ++i) {
        if (from.sources[i] != wire::GraphTensor::kNone) tensor->src[i] = tensors_[from.sources[i]];
    }
    tensors_.push_back(tensor);

    if (tensor->op == GGML_OP_NONE && !from.sources.empty()) return wrong(place, "a leaf has no sources");
    if (ggml_is_empty(tensor)) { // no kernel looks where it lies
        if (tensor->op != GGML_OP_NONE) return wrong(place, "it computes nothing");
        return absl::OkStatus();
    }
    const uint64_t bytes = span_bytes(*tensor);
    if (bytes == 0) return wrong(place, "it is too large");
    if (tensor->op == GGML_OP_NONE && weight_at(weights, from.address) != nullptr) return absl::OkStatus();
    return memory.reserve({from.address, bytes}, tensor->op != GGML_OP_NONE);
}

absl::Status PartGraph::place(ggml_tensor & tensor, uint64_t address, const BoundWeights & weights,
                              const Memory & memory) {
    static uint8_t nothing[64];
    if (ggml_is_empty(&tensor)) {
        tensor.data = nothing;
        return absl::OkStatus();
    }
    const wire::Segment range{address, span_bytes(tensor)};
    const BoundWeights::value_type * bound = tensor.op == GGML_OP_NONE ? weight_at(weights, address) : nullptr;
    if (bound == nullptr) return memory.place(tensor, range);
    const BoundWeight & weight = bound->second;
    const uint64_t offset = address - bound->first;
    if (range.bytes > weight.bytes - offset) return absl::OutOfRangeError("a view beyond its weight");
    if (weight.blob == nullptr && preparing_) {
        missing_ = true;
        return absl::OkStatus();
    }
    if (weight.blob == nullptr) return absl::UnavailableError(weight.digest.to_string());
    tensor.data = const_cast<uint8_t *>(weight.data().data()) + offset; // a leaf: never written
    tensor.buffer = weight.blob->buffer();
    const bool whole = offset == 0 && range.bytes == weight.bytes && tensor.type == static_cast<int>(weight.type) &&
                       ggml_is_contiguous(&tensor) &&
                       std::equal(weight.ne.begin(), weight.ne.end(), static_cast<int64_t *>(tensor.ne));
    weights_.push_back({&tensor, weight, offset, whole});
    return absl::OkStatus();
}

absl::Status PartGraph::add_node(ggml_tensor & node, int threads) {
    node.flags |= GGML_TENSOR_FLAG_COMPUTE;
    // The kernels that dequantize look there for the result's layout. As in ggml_cast.
    if (node.op == GGML_OP_CPY) node.src[1] = &node;
    STRATA_RETURN_IF_ERROR(check_op(node));
    const OpCost cost = op_cost(node, threads);
    STRATA_RETURN_IF_ERROR(check_cost(node, cost));
    operations_.push_back(cost.operations);
    all_operations_ += cost.operations;
    for (const IndexRule & rule : index_rules(node)) {
        checks_.push_back({graph_->n_nodes, written_before(*rule.index)});
    }
    graph_->nodes[graph_->n_nodes++] = &node;
    note_written(node);
    return absl::OkStatus();
}

// The numbers of the nodes that have each of the weights as a source; one that has it twice is there twice.
std::vector<std::vector<int>> PartGraph::users_of_weights() const {
    absl::flat_hash_map<const ggml_tensor *, size_t> places;
    for (size_t i = 0; i < weights_.size(); ++i) places[weights_[i].tensor] = i;
    std::vector<std::vector<int>> users(weights_.size());
    for (int node = 0; node < graph_->n_nodes; ++node) {
        for (const ggml_tensor * source : graph_->nodes[node]->src) {
            if (const auto found = places.find(source); found != places.end()) users[found->second].push_back(node);
        }
    }
    return users;
}

const ggml_tensor * PartGraph::copy_in(ggml_backend_buffer_type_t buft, const BoundWeight & weight) {
    if (!preparing_ || weight.has(buft)) return weight.in(buft);
    if (copied_) return nullptr;
    const ggml_tensor * copy = weight.in(buft);
    copied_ = copy != nullptr;
    return copy;
}

// Takes a weight's repacked form where all that use it in this graph can.
void PartGraph::repack_weights(const DeviceTraits & device) {
    if (device.extra_bufts.empty()) return;
    const auto users = users_of_weights();
    for (size_t i = 0; i < weights_.size(); ++i) {
        const Weight & weight = weights_[i];
        if (!weight.whole || users[i].empty()) continue;
        for (ggml_backend_buffer_type_t buft : device.extra_bufts) {
            const bool all = std::ranges::all_of(users[i], [&](int number) {
                const ggml_tensor * node = graph_->nodes[number];
                return node->src[0] == weight.tensor && std::ranges::count(node->src, weight.tensor) == 1 &&
                       (node->op == GGML_OP_MUL_MAT || node->op == GGML_OP_MUL_MAT_ID) && prefers(device, buft, *node);
            });
            if (!all) continue;
            const ggml_tensor * repacked = copy_in(buft, weight.bound);
            if (repacked == nullptr) continue;
            weight.tensor->data = repacked->data;
            weight.tensor->buffer = repacked->buffer;
            weight.tensor->extra = repacked->extra;
            break;
        }
    }
}

// Nodes that the device can't compute run on the host; weights that any of the others uses go to the device's memory.
absl::Status PartGraph::upload_weights(const DeviceTraits & device) {
    const ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(device.memory, 0));
    for (const Weight & weight : weights_) weight.tensor->buffer = empty.get(); // where they would be
    host_ = device.host;
    on_host_.resize(static_cast<size_t>(graph_->n_nodes));
    for (int i = 0; i < graph_->n_nodes; ++i) on_host_[static_cast<size_t>(i)] = !runs_there(device, *graph_->nodes[i]);
    const auto users = users_of_weights();
    for (size_t i = 0; i < weights_.size(); ++i) {
        const Weight & weight = weights_[i];
        weight.tensor->buffer = weight.bound.blob->buffer();
        const auto there = [&](int number) { return !on_host_[static_cast<size_t>(number)]; };
        if (std::ranges::none_of(users[i], there)) continue;
        const ggml_tensor * uploaded = copy_in(device.memory, weight.bound);
        if (uploaded == nullptr && copied_) continue; // the next time
        if (uploaded == nullptr) return absl::ResourceExhaustedError("the device has no memory left for a weight");
        for (const int number : users[i]) {
            if (there(number)) continue;
            ggml_tensor * here = host_weights_.emplace_back(std::make_unique<ggml_tensor>(*weight.tensor)).get();
            std::ranges::replace(graph_->nodes[number]->src, weight.tensor, here);
        }
        weight.tensor->data = static_cast<uint8_t *>(uploaded->data) + weight.offset;
        weight.tensor->buffer = uploaded->buffer;
        weight.tensor->extra = uploaded->extra;
    }
    return absl::OkStatus();
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
    while (begin < end) {
        int there = begin; // on the device up to here
        while (there < end && (on_host_.empty() || !on_host_[static_cast<size_t>(there)])) ++there;
        if (begin < there) {
            ggml_cgraph view = ggml_graph_view(graph_, begin, there);
            STRATA_RETURN_IF_ERROR(status_of(ggml_backend_graph_compute(backend, &view)));
        }
        if (there < end) STRATA_RETURN_IF_ERROR(compute_on_host(host_, *graph_->nodes[there++]));
        begin = there;
    }
    return absl::OkStatus();
}

absl::Status PartGraph::check(const Check & check) const {
    for (IndexRule rule : index_rules(*graph_->nodes[check.node])) {
        ggml_tensor copy = *rule.index;
        std::vector<uint8_t> bytes;
        if (copy.buffer != nullptr && !ggml_backend_buffer_is_host(copy.buffer)) {
            if (ggml_nbytes(&copy) > kMaxHostCopyBytes) return absl::ResourceExhaustedError("too many indices");
            bytes.resize(ggml_nbytes(&copy));
            ggml_backend_tensor_get(&copy, bytes.data(), 0, bytes.size());
            copy.data = bytes.data();
            rule.index = &copy;
        }
        STRATA_RETURN_IF_ERROR(check_indices(rule));
    }
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
    if (tensor.data == nullptr) return false; // a weight, which no node writes; it has its place when the graph runs
    const auto * begin = static_cast<const uint8_t *>(tensor.data);
    const auto next = written_.lower_bound(begin + ggml_nbytes(&tensor));
    return next != written_.begin() && std::prev(next)->second > begin;
}

} // namespace strata::executor
