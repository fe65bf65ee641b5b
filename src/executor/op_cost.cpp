#include "executor/op_cost.h"

#include "executor/limits.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::executor {
namespace {

// Of an element that is read, computed and written: an exponential rather than a sum.
constexpr double kPerElement = 16;
// Tiles of flash attention (GGML_FA_TILE_Q, GGML_FA_TILE_KV).
constexpr double kTile = 64;

double elements(const ggml_tensor & tensor) {
    double out = 1;
    for (const int64_t n : tensor.ne) out *= static_cast<double>(n);
    return out;
}

double operations_of(const ggml_tensor & node) {
    const auto ne = [&](int source, int dim) { return static_cast<double>(node.src[source]->ne[dim]); };
    const auto count = [&](int source) { return elements(*node.src[source]); };
    const double result = elements(node);
    switch (node.op) {
    case GGML_OP_MUL_MAT:
    case GGML_OP_MUL_MAT_ID:
        return result * ne(0, 0) + kPerElement * count(1); // which is quantised
    case GGML_OP_OUT_PROD:
        return result * (ne(0, 1) + kPerElement);
    case GGML_OP_SOLVE_TRI:
        return result * ne(0, 0);
    case GGML_OP_FLASH_ATTN_EXT:
        return ne(1, 1) * (count(0) + result + kPerElement * count(0) / ne(0, 0)) + kPerElement * result;
    case GGML_OP_LIGHTNING_INDEXER:
        return result * ne(0, 0) * ne(0, 1) + kPerElement * result;
    case GGML_OP_SSM_CONV:
        return result * (ne(1, 0) + kPerElement);
    case GGML_OP_SSM_SCAN:
        return kPerElement * (count(1) * ne(0, 0) + result);
    case GGML_OP_RWKV_WKV6:
    case GGML_OP_RWKV_WKV7:
    case GGML_OP_GATED_LINEAR_ATTN:
        return kPerElement * (count(1) * ne(1, 0) + result);
    case GGML_OP_GATED_DELTA_NET:
        return kPerElement * (count(2) * ne(2, 0) + result);
    case GGML_OP_DSV4_HC_COMB:
        return kPerElement * result * node.op_params[1];
    case GGML_OP_DSV4_HC_POST:
        return kPerElement * result * ne(1, 1);
    case GGML_OP_POOL_2D:
        return result * (static_cast<double>(node.op_params[1]) * node.op_params[2] + kPerElement);
    // Of a large source or result they touch some rows.
    case GGML_OP_GET_ROWS:
        return kPerElement * result;
    case GGML_OP_SET_ROWS:
        return kPerElement * count(0);
    case GGML_OP_ARGSORT:
    case GGML_OP_TOP_K:
        return 4 * kPerElement * count(0);
    default: {
        double most = result;
        for (const ggml_tensor * source : node.src) {
            if (source != nullptr) most = std::max(most, elements(*source));
        }
        return kPerElement * most;
    }
    }
}

// As ggml_graph_plan, and what ggml's repacked weights ask for.
double scratch_of(const ggml_tensor & node, double threads) {
    const auto ne = [&](int source, int dim) { return static_cast<double>(node.src[source]->ne[dim]); };
    double row = static_cast<double>(node.ne[0]);
    for (const ggml_tensor * source : node.src) {
        if (source != nullptr) row = std::max(row, static_cast<double>(source->ne[0]));
    }
    // A row as floats, or eight rows of src0 as bytes.
    double bytes = threads * (16 * row + 1024);
    if (node.op == GGML_OP_MUL_MAT || node.op == GGML_OP_MUL_MAT_ID)
        bytes += sizeof(float) * elements(*node.src[1]) + 1024;
    if (node.op == GGML_OP_MUL_MAT_ID) bytes += ne(0, 2) * (128 + 8 * (1 + std::max(1.0, ne(2, 0)) * ne(2, 1)));
    if (node.op == GGML_OP_FLASH_ATTN_EXT) {
        const double widths = ne(1, 0) + ne(2, 0);
        bytes += threads * sizeof(float) * (2 * kTile * (widths + kTile) + (ne(0, 2) + 2) * (2 + widths));
    }
    if (node.op == GGML_OP_GATED_DELTA_NET) bytes += threads * sizeof(float) * ne(2, 0) * (1 + ne(2, 0));
    return bytes;
}

} // namespace

OpCost op_cost(const ggml_tensor & node, int threads) {
    return {operations_of(node), scratch_of(node, threads)};
}

absl::Status check_cost(const ggml_tensor & node, const OpCost & cost) {
    if (cost.operations > kMaxNodeOperations) {
        return absl::ResourceExhaustedError(fmt::format("{}: {:.1e} operations, more than the limit of {:.0e}",
                                                        ggml_op_name(node.op), cost.operations, kMaxNodeOperations));
    }
    if (cost.scratch_bytes > kMaxScratchBytes) {
        return absl::ResourceExhaustedError(
            fmt::format("{}: {:.1e} bytes of scratch memory, more than the limit of {:.0e}", ggml_op_name(node.op),
                        cost.scratch_bytes, kMaxScratchBytes));
    }
    return absl::OkStatus();
}

} // namespace strata::executor
