#include "gateway/routes.h"

#include <array>

namespace strata::gateway {

namespace {

constexpr std::array kRoutes = {
    Route{"/", Handler::kIndex, false, "this page"},
    Route{"/healthz", Handler::kHealth, false, "200 while requests are taken"},
    Route{"/metrics", Handler::kMetrics, false, "Prometheus metrics"},
    Route{"/v1/models", Handler::kModels, false, "the models of this node (OpenAI and Anthropic shape)"},
    Route{"/v1/models/", Handler::kModel, false, "one of them, by its name"},
    Route{"/v1/chat/completions", Handler::kApi, true, "OpenAI chat"},
    Route{"/v1/completions", Handler::kApi, true, "OpenAI text completion"},
    Route{"/v1/embeddings", Handler::kApi, true, "OpenAI embeddings"},
    Route{"/v1/responses", Handler::kApi, true, "OpenAI responses"},
    Route{"/v1/messages", Handler::kApi, true, "Anthropic messages"},
    Route{"/v1/messages/count_tokens", Handler::kApi, true, "Anthropic token counting"},
    Route{"/v1/rerank", Handler::kApi, true, "reranking"},
    Route{"/tokenize", Handler::kApi, true, "text to tokens (llama.cpp)"},
    Route{"/detokenize", Handler::kApi, true, "tokens to text (llama.cpp)"},
    Route{"/apply-template", Handler::kApi, true, "messages to a prompt (llama.cpp)"},
    Route{"/completion", Handler::kApi, true, "text completion (llama.cpp)"},
    Route{"/infill", Handler::kApi, true, "fill in the middle (llama.cpp)"},
};

int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

} // namespace

std::span<const Route> routes() {
    return kRoutes;
}

const Route * find_route(std::string_view path) {
    for (const Route & route : kRoutes) {
        const bool prefix = route.handler == Handler::kModel;
        if (prefix ? path.size() > route.path.size() && path.starts_with(route.path) : path == route.path) {
            return &route;
        }
    }
    return nullptr;
}

std::string percent_decoded(std::string_view text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0) {
            out += static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
            i += 2;
        } else {
            out += text[i];
        }
    }
    return out;
}

} // namespace strata::gateway
