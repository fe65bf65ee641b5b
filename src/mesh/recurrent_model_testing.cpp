#include "mesh/recurrent_model_testing.h"

#include "base/check.h"

#include <fmt/format.h>

#include <cmath>
#include <random>

namespace strata::mesh {

namespace {

constexpr int64_t kWidth = RecurrentModel::kWidth;
constexpr auto kWeightType = GGML_TYPE_Q8_0;

// Of each layer.
const std::vector<std::vector<uint8_t>> & weights() {
    static const auto all = [] {
        std::mt19937 random(1);
        std::uniform_real_distribution<float> values(-0.1F, 0.1F);
        std::vector<std::vector<uint8_t>> made(RecurrentModel::kLayers);
        for (auto & quantized : made) {
            std::vector<float> numbers(kWidth * kWidth);
            for (float & number : numbers) number = values(random);
            quantized.resize(ggml_row_size(kWeightType, kWidth) * kWidth);
            ggml_quantize_chunk(kWeightType, numbers.data(), quantized.data(), 0, kWidth, kWidth, nullptr);
        }
        return made;
    }();
    return all;
}

std::string weight_name(int layer) {
    return fmt::format("blk.{}.ffn.weight", layer);
}

} // namespace

RecurrentModel::RecurrentModel(ggml_backend_dev_t device)
    : backend_(ggml_backend_dev_init(device, nullptr)) {
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    if (const auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
            ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads"))) {
        set(backend_.get(), 1);
    }
    ggml_backend_buffer_type_t buft = ggml_backend_dev_buffer_type(device);
    weights_context_.reset(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
    state_context_.reset(ggml_init({ggml_tensor_overhead() * 64, nullptr, true}));
    for (int i = 0; i < kLayers; ++i) {
        weights_.push_back(ggml_new_tensor_2d(weights_context_.get(), kWeightType, kWidth, kWidth));
        ggml_set_name(weights_.back(), weight_name(i).c_str());
        caches_.push_back(ggml_new_tensor_2d(state_context_.get(), GGML_TYPE_F16, kWidth, kRows));
        ggml_format_name(caches_.back(), "cache_l%d", i);
        states_.push_back(ggml_new_tensor_1d(state_context_.get(), GGML_TYPE_F32, kWidth));
        ggml_format_name(states_.back(), "state_l%d", i);
    }
    weights_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_context_.get(), buft));
    STRATA_CHECK(weights_buffer_ != nullptr);
    ggml_backend_buffer_set_usage(weights_buffer_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    state_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(state_context_.get(), buft));
    STRATA_CHECK(state_buffer_ != nullptr);
    ggml_backend_buffer_clear(state_buffer_.get(), 0);
    for (size_t i = 0; i < kLayers; ++i)
        ggml_backend_tensor_set(weights_[i], weights()[i].data(), 0, weights()[i].size());
    allocator_.reset(ggml_gallocr_new(buft));
}

std::vector<float> RecurrentModel::step(int number) {
    std::vector<float> result;
    if (!start(number, result)) return {};
    finish();
    return result;
}

bool RecurrentModel::start(int number, std::vector<float> & result) {
    ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 256 + ggml_graph_overhead(), nullptr, true}));
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_tensor * input = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, kWidth);
    ggml_tensor * row = ggml_new_tensor_1d(context.get(), GGML_TYPE_I64, 1);
    ggml_set_input(input);
    ggml_set_input(row);
    ggml_tensor * x = input;
    for (size_t i = 0; i < kLayers; ++i) {
        x = ggml_add(context.get(), x, ggml_mul_mat(context.get(), weights_[i], x));
        x = ggml_rms_norm(context.get(), x, 1e-5F);
        ggml_build_forward_expand(graph, ggml_set_rows(context.get(), caches_[i], x, row));
        ggml_tensor * all = ggml_cont(
            context.get(), ggml_transpose(context.get(), ggml_cast(context.get(), caches_[i], GGML_TYPE_F32)));
        ggml_tensor * sums = ggml_reshape_1d(context.get(), ggml_sum_rows(context.get(), all), kWidth);
        ggml_tensor * next = ggml_scale(context.get(), ggml_add(context.get(), states_[i], sums), 0.5F);
        x = ggml_add(context.get(), x, next);
        ggml_build_forward_expand(graph, ggml_cpy(context.get(), next, states_[i]));
    }
    ggml_set_output(x);
    ggml_build_forward_expand(graph, x);
    if (!ggml_gallocr_alloc_graph(allocator_.get(), graph)) return false;
    result.resize(kWidth);
    for (int64_t i = 0; i < kWidth; ++i) result[static_cast<size_t>(i)] = std::sin(static_cast<float>(number * 7 + i));
    const int64_t where = number % kRows;
    ggml_backend_tensor_set(input, result.data(), 0, ggml_nbytes(input));
    ggml_backend_tensor_set(row, &where, 0, sizeof(where));
    if (ggml_backend_graph_compute_async(backend_.get(), graph) != GGML_STATUS_SUCCESS) return false;
    ggml_backend_tensor_get_async(backend_.get(), x, result.data(), 0, ggml_nbytes(x));
    return true;
}

std::shared_ptr<const ModelLayers> RecurrentModel::layers() {
    static const auto made = [] {
        auto layers = std::make_shared<ModelLayers>();
        for (int i = 0; i < kLayers; ++i) {
            const auto & bytes = weights()[static_cast<size_t>(i)];
            const Digest digest = Digest::of(std::as_bytes(std::span(bytes)));
            layers->layers.push_back({digest, bytes.size(), {{0, bytes.size(), digest}}});
            layers->tensors[weight_name(i)] = {static_cast<size_t>(i), 0, bytes.size()};
        }
        layers->open = [](size_t layer) { return MappedBytes{weights()[layer], nullptr}; };
        return layers;
    }();
    return made;
}

const std::vector<std::vector<float>> & expected_steps() {
    static const auto results = [] {
        RecurrentModel model(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
        std::vector<std::vector<float>> all;
        for (int i = 0; i < kExpectedSteps; ++i) all.push_back(model.step(i));
        return all;
    }();
    return results;
}

} // namespace strata::mesh
