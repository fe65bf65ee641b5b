#pragma once

#include "mesh/model_layers.h"

#include <ggml-alloc.h>
#include <ggml-cpp.h>

#include <memory>
#include <vector>

namespace strata::mesh {

// A small recurrent model: each step changes state that the next one needs, so that anything that is lost, repeated or
// out of order shows in all results after it. kLayers blocks: x = x + W·x, a row of the layer's cache is set, the cache
// is summed in, and a running state is updated.
class RecurrentModel {
public:
    static constexpr int64_t kWidth = 64;
    static constexpr int kLayers = 6;
    static constexpr int64_t kRows = 8; // of each layer's cache

    explicit RecurrentModel(ggml_backend_dev_t device);

    // One step; empty when it failed.
    std::vector<float> step(int number);
    // A step of which the result is there, as step() gives it, after finish(). False: it failed.
    bool start(int number, std::vector<float> & result);
    void finish() { ggml_backend_synchronize(backend_.get()); }

    const ggml_tensor * state(size_t layer) const { return states_[layer]; }
    ggml_tensor * cache(size_t layer) { return caches_[layer]; }

    // Where its weights lie: in a blob for each layer.
    static std::shared_ptr<const ModelLayers> layers();

private:
    ggml_backend_ptr backend_;
    ggml_context_ptr weights_context_, state_context_;
    ggml_backend_buffer_ptr weights_buffer_, state_buffer_;
    ggml_gallocr_ptr allocator_;
    std::vector<ggml_tensor *> weights_, caches_, states_;
};

// What steps 0 to kExpectedSteps - 1 give on one machine.
inline constexpr int kExpectedSteps = 40;
const std::vector<std::vector<float>> & expected_steps();

} // namespace strata::mesh
