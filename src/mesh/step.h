#pragma once

#include "mesh/directory.h"
#include "wire/graph.h"

#include <ggml.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace strata::mesh {

// What a range of weights memory is: a tensor of the model, the bytes of which lie in a blob.
struct WeightInfo {
    std::string name;
    int32_t layer = -1; // the block; -1: belongs to no layer; see Layers
    uint32_t type = 0;
    std::array<int64_t, 4> ne{};
    uint64_t bytes = 0;
    Digest blob;
    uint64_t offset = 0; // in the blob
    Holders bound = 0;   // executors that have it at this address
};
using Weights = std::map<uint64_t, WeightInfo>; // by address

// The weight that an address lies in; end() when it lies in none.
Weights::const_iterator weight_at(const Weights & weights, uint64_t address);

// A graph of libllama as numbers: tensors without views, in order, each after its sources. Shared by the plan, the wire
// and the journal, for none of which libllama's pointers live long enough.
struct CapturedGraph {
    struct Tensor {
        wire::GraphTensor wire;
        uint64_t bytes = 0;  // of its span
        bool whole = true;   // a node writes all bytes of its span
        int32_t root = -1;   // of a leaf: the node whose memory it views; of a node: itself
        bool shared = false; // read by more than the nodes that name it as a source
        Segment range() const { return {wire.address, bytes}; }
    };
    std::vector<Tensor> tensors;

    // Fails for a tensor that is not in the lane's memory.
    static absl::StatusOr<std::shared_ptr<const CapturedGraph>>
    capture(const ggml_cgraph & graph, const std::function<bool(const ggml_tensor &)> & is_ours);
};

// A node that writes rows of a tensor which only its indices know (ggml's SET_ROWS). The indices are an input, so that
// they can be looked at before the part runs; where they can't, the whole tensor counts as read and written.
struct RowWrite {
    Segment to;
    uint64_t row_bytes = 0;
    Segment indices;
    bool wide = false; // 64 bits each, not 32
};

// A run of nodes on one executor.
struct Part {
    size_t executor = 0;
    std::vector<uint8_t> graph; // encoded
    wire::GraphHash hash{};
    std::vector<uint64_t> weights; // addresses
    std::vector<Segment> reads;    // bytes that must be valid before
    std::vector<Segment> writes;   // all of them, but for row_writes
    std::vector<RowWrite> row_writes;
    size_t nodes = 0;
};

struct Plan {
    std::vector<Part> parts;
};

// Chooses the executor of each node: `anchor` gives the executor that a tensor's layer is bound to (npos: none), for
// weights and state. Nodes in between follow their neighbours, and where the executor changes the cut goes where the
// fewest bytes cross it.
inline constexpr size_t kAnywhere = SIZE_MAX;
std::vector<size_t> assign(const CapturedGraph & graph,
                           const std::function<size_t(const CapturedGraph::Tensor &)> & anchor, size_t fallback);

// `executors`: of each tensor, as assign() gives them; only nodes count.
Plan make_plan(const CapturedGraph & graph, const std::vector<size_t> & executors, const Weights & weights);

} // namespace strata::mesh
