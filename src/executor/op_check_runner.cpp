#include "executor/op_check_runner.h"

#include "base/check.h"
#include "executor/op_check.h"
#include "executor/op_cost.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <new>
#include <optional>

namespace strata::executor {

namespace {

constexpr size_t kSlotBytes = size_t{1} << 20;
constexpr size_t kSlots = GGML_MAX_SRC + 1;
constexpr double kMostOperations = 1e9;
constexpr double kMostScratchBytes = 1e8;

size_t page_bytes() {
    return static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

// Memory between two pages that must not be touched.
char * map_guarded(size_t bytes) {
    const size_t page = page_bytes();
    const size_t inner = (bytes + page - 1) / page * page;
    void * all = mmap(nullptr, inner + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    STRATA_CHECK(all != MAP_FAILED);
    char * start = static_cast<char *>(all) + page;
    STRATA_CHECK(mprotect(start, inner, PROT_READ | PROT_WRITE) == 0);
    return start;
}

// ggml's scratch memory comes from ggml_aligned_malloc, below.
struct GuardedScratch {
    std::mutex mutex;
    std::map<void *, std::pair<char *, size_t>> mappings; // by what was handed out
    bool enabled = false;
    size_t most_bytes = 0; // at once, since it was enabled
};

GuardedScratch & guarded_scratch() {
    static auto * scratch = new GuardedScratch;
    return *scratch;
}

void * allocate_scratch(size_t bytes) {
    constexpr size_t kAlignment = 64;
    constexpr size_t kMostGuarded = size_t{1} << 30;
    GuardedScratch & scratch = guarded_scratch();
    const size_t whole = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    if (!scratch.enabled || bytes > kMostGuarded) return std::aligned_alloc(kAlignment, whole);
    const size_t page = page_bytes();
    const size_t inner = (whole + page - 1) / page * page;
    char * start = map_guarded(whole);
    void * out = start + inner - whole;
    const std::lock_guard lock(scratch.mutex);
    scratch.mappings[out] = {start - page, inner + 2 * page};
    scratch.most_bytes = std::max(scratch.most_bytes, bytes);
    return out;
}

void free_scratch(void * pointer) {
    GuardedScratch & scratch = guarded_scratch();
    {
        const std::lock_guard lock(scratch.mutex);
        const auto found = scratch.mappings.find(pointer);
        if (found != scratch.mappings.end()) {
            munmap(found->second.first, found->second.second);
            scratch.mappings.erase(found);
            return;
        }
    }
    std::free(pointer);
}

class Random {
public:
    explicit Random(uint64_t seed)
        : state_(seed * 2 + 1) {}
    uint64_t next() { // splitmix64
        uint64_t z = (state_ += 0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    uint64_t below(uint64_t limit) { return next() % limit; }

private:
    uint64_t state_;
};

int64_t changed_count(FuzzInput & input, int64_t count) {
    switch (input.below(11)) {
    case 9:
        return input.below(4) == 0 ? 0 : 3;
    case 0:
        return count + 1;
    case 1:
        return std::max<int64_t>(count - 1, 1);
    case 2:
        return count * 2;
    case 3:
        return std::max<int64_t>(count / 2, 1);
    case 4:
        return 1;
    case 5:
        return 2;
    case 6:
        return static_cast<int64_t>(input.below(600)) + 1;
    case 7:
        return (static_cast<int64_t>(input.below(4)) + 1) * 256;
    case 8:
        return static_cast<int64_t>(input.take<uint32_t>() >> 1);
    default:
        return count + static_cast<int64_t>(input.below(9));
    }
}

size_t changed_stride(FuzzInput & input, const ggml_tensor & tensor, size_t stride) {
    const size_t size = ggml_type_size(tensor.type);
    switch (input.below(9)) {
    case 0:
        return 0;
    case 1:
        return size;
    case 2:
        return stride + size;
    case 3:
        return stride - std::min(stride, size);
    case 4:
        return stride * 2;
    case 5:
        return tensor.nb[input.below(GGML_MAX_DIMS)];
    case 6:
        return size * input.below(5000);
    case 7:
        return input.take<uint64_t>();
    default:
        return stride + input.below(8);
    }
}

int32_t changed_param(FuzzInput & input, int32_t value) {
    constexpr float kFloats[] = {
        0.0F,  -1.0F, 1e-5F, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
        3e38F, 7.5F};
    switch (input.below(9)) {
    case 0:
        return 0;
    case 1:
        return 1;
    case 2:
        return -1;
    case 3:
        return static_cast<int32_t>(static_cast<uint32_t>(value) + 1);
    case 4:
        return static_cast<int32_t>(static_cast<uint32_t>(value) - 1);
    case 5:
        return static_cast<int32_t>(input.below(64));
    case 6:
        return static_cast<int32_t>(input.take<uint32_t>());
    case 7:
        return INT32_MAX;
    default: {
        const float chosen = kFloats[input.below(std::size(kFloats))];
        int32_t out = 0;
        std::memcpy(&out, &chosen, sizeof out);
        return out;
    }
    }
}

// All dimensions of one length get another, as if the node came from a model of other sizes.
void resize_everywhere(FuzzInput & input, OwnedNode & node) {
    const int64_t before = node.tensors[input.below(node.tensors.size())].ne[input.below(GGML_MAX_DIMS)];
    const int64_t after = changed_count(input, before);
    for (ggml_tensor & tensor : node.tensors) {
        for (int64_t & count : tensor.ne) {
            if (count == before) count = after;
        }
        make_contiguous(tensor);
    }
}

void mutate(FuzzInput & input, OwnedNode & node) {
    ggml_tensor & tensor = node.tensors[input.below(node.tensors.size())];
    ggml_tensor & other = node.tensors[input.below(node.tensors.size())];
    const size_t dim = input.below(GGML_MAX_DIMS);
    const size_t other_dim = input.below(GGML_MAX_DIMS);
    const auto source = [&]() -> ggml_tensor *& { return node.node().src[input.below(GGML_MAX_SRC)]; };
    switch (input.below(16)) {
    case 0:
        tensor.type = static_cast<ggml_type>(input.below(GGML_TYPE_COUNT));
        break;
    case 1:
        tensor.type = static_cast<ggml_type>(input.below(GGML_TYPE_COUNT));
        make_contiguous(tensor);
        break;
    case 2:
        tensor.ne[dim] = changed_count(input, tensor.ne[dim]);
        break;
    case 3:
        tensor.ne[dim] = changed_count(input, tensor.ne[dim]);
        make_contiguous(tensor);
        break;
    case 4:
    case 5:
        tensor.nb[dim] = changed_stride(input, tensor, tensor.nb[dim]);
        break;
    case 6:
    case 7: {
        int32_t & param = node.node().op_params[input.below(16)];
        param = changed_param(input, param);
        break;
    }
    case 8:
        std::swap(source(), source());
        break;
    case 9:
        source() = input.below(2) == 0 ? nullptr : &tensor;
        break;
    case 10:
        std::swap(tensor.ne[dim], tensor.ne[other_dim]);
        std::swap(tensor.nb[dim], tensor.nb[other_dim]);
        break;
    case 11:
        std::swap(tensor.ne[dim], tensor.ne[other_dim]);
        make_contiguous(tensor);
        break;
    case 12:
    case 13:
        resize_everywhere(input, node);
        break;
    case 14:
        node.storages[input.below(node.storages.size())] = node.storages[input.below(node.storages.size())];
        break;
    default:
        if (input.below(8) == 0)
            node.node().op = static_cast<ggml_op>(input.below(GGML_OP_COUNT));
        else
            std::copy_n(other.ne, GGML_MAX_DIMS, tensor.ne);
        break;
    }
}

// What a decoder computes of a tensor from a peer: ggml_nbytes, unless something is out of range.
std::optional<size_t> span_within_slot(const ggml_tensor & tensor) {
    const int64_t block = ggml_blck_size(tensor.type);
    if (block < 1) return std::nullopt;
    if (ggml_is_empty(&tensor) && *std::min_element(tensor.ne, tensor.ne + GGML_MAX_DIMS) == 0) return 0;
    uint64_t bytes = block == 1 ? ggml_type_size(tensor.type) : 0;
    for (int i = 0; i < GGML_MAX_DIMS; ++i) {
        if (tensor.ne[i] < 1 || tensor.ne[i] > INT32_MAX) return std::nullopt;
        const bool blocks = i == 0 && block > 1;
        uint64_t reach = 0;
        if (__builtin_mul_overflow(static_cast<uint64_t>(blocks ? tensor.ne[i] : tensor.ne[i] - 1), tensor.nb[i],
                                   &reach)) {
            return std::nullopt;
        }
        if (__builtin_add_overflow(bytes, blocks ? reach / block : reach, &bytes)) return std::nullopt;
    }
    if (bytes > kSlotBytes) return std::nullopt;
    STRATA_CHECK(bytes == ggml_nbytes(&tensor));
    return bytes;
}

float random_float(Random & random) {
    constexpr float kSpecial[] = {0.0F, 1e30F, -1e30F, std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::quiet_NaN()};
    if (random.below(400) == 0) return kSpecial[random.below(std::size(kSpecial))];
    return static_cast<float>(random.below(4001)) / 1000.0F - 2.0F;
}

void fill(Random & random, ggml_type type, char * data, size_t bytes) {
    if (type == GGML_TYPE_F32) {
        for (size_t i = 0; i + sizeof(float) <= bytes; i += sizeof(float)) {
            const float value = random_float(random);
            std::memcpy(data + i, &value, sizeof value);
        }
        return;
    }
    for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(random.next());
}

// Values that the rule allows, the ends of the range above all.
void fill_indices(Random & random, const IndexRule & rule) {
    const ggml_tensor & index = *rule.index;
    if (index.type != GGML_TYPE_I32 && index.type != GGML_TYPE_I64) {
        for (size_t i = 0; i + sizeof(float) <= ggml_nbytes(&index); i += sizeof(float)) {
            const auto value = static_cast<float>(random.below(50));
            std::memcpy(static_cast<char *>(index.data) + i, &value, sizeof value);
        }
        return;
    }
    const uint64_t first = random.next();
    for (int64_t i = 0; i < ggml_nelements(&index); ++i) {
        int64_t at[GGML_MAX_DIMS];
        ggml_unravel_index(&index, i, &at[0], &at[1], &at[2], &at[3]);
        int64_t value = rule.min + static_cast<int64_t>((first + i) % (rule.limit - rule.min));
        if (!rule.distinct && random.below(3) == 0) value = random.below(2) == 0 ? rule.min : rule.limit - 1;
        char * place = static_cast<char *>(index.data);
        for (int dim = 0; dim < GGML_MAX_DIMS; ++dim) place += static_cast<size_t>(at[dim]) * index.nb[dim];
        std::memcpy(place, &value, ggml_type_size(index.type));
    }
}

ggml_backend_buffer_t repack_buffer() {
    static ggml_backend_buffer_t buffer = [] {
        ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        auto get = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
        ggml_backend_buffer_type_t * types = get == nullptr ? nullptr : get(device);
        for (; types != nullptr && *types != nullptr; ++types) {
            if (std::string(ggml_backend_buft_name(*types)) == "CPU_REPACK")
                return ggml_backend_buft_alloc_buffer(*types, 64);
        }
        return ggml_backend_buffer_t{};
    }();
    return buffer;
}

ggml_backend_t start_backend(int threads) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_t backend = ggml_backend_dev_init(device, nullptr);
    auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads"));
    STRATA_CHECK(backend != nullptr && set != nullptr);
    set(backend, threads);
    return backend;
}

struct ContextDeleter {
    void operator()(ggml_context * context) const { ggml_free(context); }
};
using Context = std::unique_ptr<ggml_context, ContextDeleter>;

Context make_context() {
    return Context(ggml_init({size_t{1} << 16, nullptr, true}));
}

// A node before it that all threads work on: ggml gives all nodes of a graph the threads of the one with the most.
void compute(ggml_tensor & node, int threads) {
    static std::array<float, 64> floats{};
    const Context context = make_context();
    ggml_tensor * first = ggml_dup(context.get(), ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 8, 8));
    first->data = first->src[0]->data = floats.data();
    ggml_cgraph * graph = ggml_new_graph_custom(context.get(), 16, false);
    for (ggml_tensor * each : {first, &node}) {
        each->flags |= GGML_TENSOR_FLAG_COMPUTE;
        ggml_graph_add_node(graph, each);
    }
    guarded_scratch().enabled = true;
    guarded_scratch().most_bytes = 0;
    ggml_backend_t backend = start_backend(threads);
    const ggml_status status = ggml_backend_graph_compute(backend, graph);
    ggml_backend_free(backend);
    guarded_scratch().enabled = false;
    STRATA_CHECK(status == GGML_STATUS_SUCCESS);
    STRATA_CHECK(static_cast<double>(guarded_scratch().most_bytes) <= op_cost(node, threads).scratch_bytes);
}

} // namespace

void make_contiguous(ggml_tensor & tensor) {
    tensor.nb[0] = ggml_type_size(tensor.type);
    const int64_t block = std::max<int64_t>(ggml_blck_size(tensor.type), 1);
    tensor.nb[1] = tensor.nb[0] * static_cast<size_t>(std::max<int64_t>(tensor.ne[0] / block, 1));
    for (int i = 2; i < GGML_MAX_DIMS; ++i) tensor.nb[i] = tensor.nb[i - 1] * static_cast<size_t>(tensor.ne[i - 1]);
}

std::string OwnedNode::text() const {
    std::string out = fmt::format("{} params [{}]", ggml_op_name(node().op), fmt::join(node().op_params, " "));
    const auto add = [&](std::string_view name, const ggml_tensor & t) {
        out += fmt::format("; {} {} ne {} {} {} {} nb {} {} {} {}", name, ggml_type_name(t.type), t.ne[0], t.ne[1],
                           t.ne[2], t.ne[3], t.nb[0], t.nb[1], t.nb[2], t.nb[3]);
    };
    add("dst", node());
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        if (node().src[i] != nullptr) add(fmt::format("src{}", i), *node().src[i]);
    }
    return out;
}

OwnedNode make_node(const NodeRecipe & recipe) {
    const Context context = make_context();
    const ggml_tensor * made = recipe.make(context.get());
    std::vector<const ggml_tensor *> all = {made};
    for (const ggml_tensor * source : made->src) {
        if (source != nullptr && std::find(all.begin(), all.end(), source) == all.end()) all.push_back(source);
    }
    OwnedNode out;
    for (const ggml_tensor * each : all) {
        out.tensors.push_back(*each);
        out.storages.push_back(each->view_src == nullptr ? each : each->view_src);
    }
    for (size_t i = 0; i < out.tensors.size(); ++i) {
        const auto first = std::find(out.storages.begin(), out.storages.end(), out.storages[i]) - out.storages.begin();
        out.tensors[i].view_src = nullptr;
        // NOLINTNEXTLINE(performance-no-int-to-ptr): never read
        out.tensors[i].data = reinterpret_cast<void *>(static_cast<uintptr_t>(first + 1) << 40);
    }
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        if (made->src[i] == nullptr) continue;
        out.node().src[i] = &out.tensors[std::find(all.begin(), all.end(), made->src[i]) - all.begin()];
    }
    return out;
}

const NodeRecipe & chosen_recipe(FuzzInput & input) {
    const std::span<const NodeRecipe> recipes = node_recipes();
    return recipes[input.below(recipes.size())];
}

OwnedNode changed_node(FuzzInput & input, const NodeRecipe & recipe) {
    OwnedNode node = make_node(recipe);
    for (size_t left = input.below(5); left > 0; --left) mutate(input, node);
    return node;
}

struct NodeRunner::Memory {
    std::array<char *, kSlots> slots{};
};

NodeRunner::NodeRunner()
    : memory_(std::make_unique<Memory>()) {
    for (char *& slot : memory_->slots) slot = map_guarded(kSlotBytes);
}

NodeRunner::~NodeRunner() {
    for (char * slot : memory_->slots) munmap(slot - page_bytes(), kSlotBytes + 2 * page_bytes());
}

NodeRunner::Result NodeRunner::run(std::span<const uint8_t> bytes) {
    FuzzInput input(bytes);
    const NodeRecipe & recipe = chosen_recipe(input);
    const bool repack = recipe.repackable && input.below(3) != 0;
    const int threads = 1 + static_cast<int>(input.below(2));
    const auto seed = input.take<uint64_t>();
    return run(changed_node(input, recipe), repack, threads, seed);
}

NodeRunner::Result NodeRunner::run(OwnedNode node, bool repack, int threads, uint64_t data_seed) {
    on_description(fmt::format("{}{}, {} threads", node.text(), repack ? ", repacked" : "", threads));
    Random random(data_seed);
    Result result;
    std::map<const void *, size_t> sizes;
    for (size_t i = 0; i < node.tensors.size(); ++i) {
        const std::optional<size_t> span = span_within_slot(node.tensors[i]);
        if (!span.has_value()) return result;
        sizes[node.storages[i]] = std::max(sizes[node.storages[i]], *span);
    }
    result.possible = true;

    std::map<const void *, char *> places;
    for (const auto & [storage, size] : sizes) {
        char * slot = memory_->slots[places.size()];
        places[storage] = random.below(4) == 0 ? slot : slot + kSlotBytes - size;
    }
    for (size_t i = 0; i < node.tensors.size(); ++i) {
        node.tensors[i].data = places[node.storages[i]];
        fill(random, node.tensors[i].type, places[node.storages[i]], ggml_nbytes(&node.tensors[i]));
    }
    ggml_tensor * weights = node.node().src[0];
    if (repack && weights != nullptr && repack_buffer() != nullptr) {
        weights->buffer = repack_buffer();
        STRATA_CHECK(ggml_backend_buffer_init_tensor(weights->buffer, weights) == GGML_STATUS_SUCCESS);
    }

    const absl::Status status = check_op(node.node());
    result.accepted = status.ok();
    result.refusal = std::string(status.message());
    if (!result.accepted) return result;
    const OpCost cost = op_cost(node.node(), threads);
    if (cost.operations > kMostOperations || cost.scratch_bytes > kMostScratchBytes) {
        result.refusal = "too much to do";
        return result;
    }
    for (const IndexRule & rule : index_rules(node.node())) {
        if (random.below(8) != 0) fill_indices(random, rule);
        const absl::Status indices = check_indices(rule);
        if (!indices.ok()) {
            result.refusal = std::string(indices.message());
            return result;
        }
    }
    compute(node.node(), threads);
    result.ran = true;
    return result;
}

} // namespace strata::executor

// Instead of libggml-base's.
extern "C" {
__attribute__((visibility("default"))) void * ggml_aligned_malloc(size_t bytes) {
    return strata::executor::allocate_scratch(bytes);
}
__attribute__((visibility("default"))) void ggml_aligned_free(void * pointer, size_t /*bytes*/) {
    strata::executor::free_scratch(pointer);
}
}
