#include "executor/host_node.h"

#include "executor/limits.h"
#include "executor/raw_tensor.h"

#include <fmt/format.h>
#include <ggml-cpp.h>
#include <ggml-impl.h>

#include <algorithm>
#include <array>
#include <vector>

namespace strata::executor {
namespace {

// A range of a device's memory, and its copy.
struct Copied {
    ggml_backend_buffer_t device;
    uint8_t *begin, *end;
    ggml_backend_buffer_ptr host;

    uint8_t * data() const { return static_cast<uint8_t *>(ggml_backend_buffer_get_base(host.get())); }
};

bool on_device(const ggml_tensor & tensor) {
    return tensor.buffer != nullptr && !ggml_backend_buffer_is_host(tensor.buffer);
}

// What the tensors take of a device's memory; those that overlap, as results do that replace what they are made of, get
// one range.
std::vector<Copied> ranges_of(const std::vector<const ggml_tensor *> & tensors) {
    std::vector<Copied> ranges;
    for (const ggml_tensor * tensor : tensors) {
        auto * begin = static_cast<uint8_t *>(tensor->data);
        if (on_device(*tensor)) ranges.push_back({tensor->buffer, begin, begin + ggml_nbytes(tensor), nullptr});
    }
    std::ranges::sort(ranges, {}, &Copied::begin);
    std::vector<Copied> joined;
    for (Copied & range : ranges) {
        if (joined.empty() || range.begin >= joined.back().end || range.device != joined.back().device)
            joined.push_back(std::move(range));
        else
            joined.back().end = std::max(joined.back().end, range.end);
    }
    return joined;
}

absl::Status fetch(Copied & range) {
    const auto bytes = static_cast<size_t>(range.end - range.begin);
    range.host.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), bytes));
    if (range.host == nullptr) return absl::ResourceExhaustedError("no memory to compute a node on the host");
    const ggml_tensor raw = raw_tensor(range.device, range.begin, bytes);
    ggml_backend_tensor_get(&raw, range.data(), 0, bytes);
    return absl::OkStatus();
}

const Copied & range_of(const std::vector<Copied> & ranges, const ggml_tensor & tensor) {
    return *std::ranges::find_if(ranges, [&](const Copied & range) {
        return range.device == tensor.buffer && range.begin <= tensor.data && tensor.data < range.end;
    });
}

} // namespace

absl::Status compute_on_host(ggml_backend_t host, const ggml_tensor & node) {
    std::vector<const ggml_tensor *> tensors{&node};
    for (const ggml_tensor * source : node.src) {
        if (source != nullptr && std::ranges::find(tensors, source) == tensors.end()) tensors.push_back(source);
    }
    std::vector<Copied> ranges = ranges_of(tensors);
    uint64_t left = kMaxHostCopyBytes;
    for (Copied & range : ranges) {
        const auto bytes = static_cast<uint64_t>(range.end - range.begin);
        if (bytes > left) {
            return absl::ResourceExhaustedError(fmt::format(
                "{}: the device can't compute it, and it is too large for the host", ggml_op_name(node.op)));
        }
        left -= bytes;
        STRATA_RETURN_IF_ERROR(fetch(range));
    }

    std::array<ggml_tensor, 1 + GGML_MAX_SRC> copies{};
    for (size_t i = 0; i < tensors.size(); ++i) {
        copies[i] = *tensors[i];
        if (!on_device(*tensors[i])) continue;
        const Copied & range = range_of(ranges, *tensors[i]);
        copies[i].buffer = range.host.get();
        copies[i].data = range.data() + (static_cast<uint8_t *>(tensors[i]->data) - range.begin);
    }
    for (ggml_tensor *& source : copies[0].src) {
        if (source != nullptr)
            source = &copies[static_cast<size_t>(std::ranges::find(tensors, source) - tensors.begin())];
    }
    const ggml_context_ptr context(ggml_init({ggml_graph_overhead_custom(1, false), nullptr, true}));
    ggml_cgraph * graph = ggml_new_graph_custom(context.get(), 1, false);
    graph->nodes[graph->n_nodes++] = copies.data();
    const ggml_status status = ggml_backend_graph_compute(host, graph);
    if (status != GGML_STATUS_SUCCESS) {
        return absl::InternalError(fmt::format("ggml on the host: {}", ggml_status_to_string(status)));
    }
    const size_t bytes = ggml_nbytes(&node);
    ggml_tensor raw = raw_tensor(node.buffer, static_cast<uint8_t *>(node.data), bytes);
    ggml_backend_tensor_set(&raw, copies[0].data, 0, bytes);
    return absl::OkStatus();
}

} // namespace strata::executor
