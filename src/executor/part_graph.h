#pragma once

#include "executor/blobs.h"
#include "executor/memory.h"
#include "wire/graph.h"

#include <absl/container/flat_hash_map.h>
#include <ggml-cpp.h>

#include <map>
#include <memory>
#include <vector>

namespace strata::executor {

// Weights as a session bound them, by address.
struct BoundWeight {
    Digest digest; // of the blob
    uint64_t offset = 0;
    uint32_t type = 0;
    std::array<int64_t, 4> ne{};
    uint64_t bytes = 0;
    std::shared_ptr<Blob> blob; // nullptr until it arrived

    std::span<const uint8_t> data() const { return blob->bytes().subspan(offset, bytes); }
    // As Blob::in().
    const ggml_tensor * in(ggml_backend_buffer_type_t buft) const {
        return blob->in(buft, offset, static_cast<ggml_type>(type), ne.data());
    }
    bool has(ggml_backend_buffer_type_t buft) const {
        return blob->has(buft, offset, static_cast<ggml_type>(type), ne.data());
    }
};
using BoundWeights = std::map<uint64_t, BoundWeight>;

// What a device's backend says of itself.
struct DeviceTraits {
    ggml_backend_dev_t device = nullptr;
    std::vector<ggml_backend_buffer_type_t> extra_bufts; // such as CPU_REPACK, in order of preference
    int threads = 1;
    // Its own memory, and a backend of the host for what it can't compute; nullptr: it works in the host's memory.
    ggml_backend_buffer_type_t memory = nullptr;
    ggml_backend_t host = nullptr;
};

// A graph of a driver made ready to run here: checked, its addresses resolved, its weights in the device's layout.
class PartGraph {
public:
    // Unavailable: a blob has not arrived yet. Any other error: the graph is wrong, and the message says how.
    static absl::StatusOr<std::unique_ptr<PartGraph>> build(const wire::Graph & graph, Memory & memory,
                                                            const BoundWeights & weights, const DeviceTraits & device);

    // Ahead of build(): puts one more of the graph's weights where it will be. kWaits: all whose blobs are here are
    // there.
    enum class Prepared { kOneMore, kWaits, kAll };
    static absl::StatusOr<Prepared> prepare(const wire::Graph & graph, Memory & memory, const BoundWeights & weights,
                                            const DeviceTraits & device);

    // Runs it, or goes on with it: so many operations (op_cost.h), and one node at least. False: there is more to do.
    // Looks at indices right before the nodes that use them.
    absl::StatusOr<bool> run(ggml_backend_t backend, double operations);
    // Whether its tensors still lie where they are.
    bool holds_in(const Memory & memory) const { return memory.moves() == moves_; }

private:
    // Indices that a node relies on. `late`: an earlier node of the graph writes them.
    struct Check {
        int node = 0;
        bool late = false;
    };

    absl::Status build_on(const wire::Graph & graph, Memory & memory, const BoundWeights & weights,
                          const DeviceTraits & device);
    absl::Status make(const wire::GraphTensor & from, size_t place, const BoundWeights & weights, Memory & memory);
    absl::Status place(ggml_tensor & tensor, uint64_t address, const BoundWeights & weights, const Memory & memory);
    absl::Status add_node(ggml_tensor & node, int threads);
    std::vector<std::vector<int>> users_of_weights() const;
    const ggml_tensor * copy_in(ggml_backend_buffer_type_t buft, const BoundWeight & weight);
    void repack_weights(const DeviceTraits & device);
    absl::Status upload_weights(const DeviceTraits & device);
    void count_uses();
    void note_written(const ggml_tensor & tensor);
    bool written_before(const ggml_tensor & tensor) const;
    int end_of_piece(double operations) const;
    absl::Status compute(ggml_backend_t backend, int begin, int end) const;
    absl::Status check(const Check & check) const;

    ggml_context_ptr context_;
    ggml_cgraph * graph_ = nullptr;
    std::vector<ggml_tensor *> tensors_;
    struct Weight {
        ggml_tensor * tensor;
        BoundWeight bound;
        uint64_t offset; // in the weight
        bool whole;      // not a view of it
    };
    std::vector<Weight> weights_;
    // While the weights are prepared: the first copy that has to be made is the last, and blobs may be missing.
    bool preparing_ = false;
    bool missing_ = false, copied_ = false;
    uint64_t moves_ = 0;            // of the memory, when this was built
    ggml_backend_t host_ = nullptr; // for the nodes that the device can't compute
    std::vector<bool> on_host_;     // by node; empty: none
    // Weights that are in the device's memory, where nodes on the host read them.
    std::vector<std::unique_ptr<ggml_tensor>> host_weights_;
    std::vector<Check> checks_;
    std::vector<double> operations_; // of each node
    double all_operations_ = 0;
    std::map<const uint8_t *, const uint8_t *> written_; // begins and ends of what nodes write, joined
    // Where the next piece begins.
    int next_ = 0;
    size_t next_check_ = 0;
};

} // namespace strata::executor
