#include "engine/bind_command.h"

#include "strata/v1/engine.grpc.pb.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <nlohmann/json.hpp>

#include <charconv>
#include <cstdio>
#include <optional>
#include <utility>

namespace strata::engine {
namespace {

std::optional<int32_t> number(std::string_view text) {
    int32_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < 0) return std::nullopt;
    return value;
}

std::optional<std::pair<int32_t, int32_t>> range(std::string_view text) {
    const size_t dash = text.find('-');
    const auto first = number(text.substr(0, dash));
    const auto last = dash == std::string_view::npos ? first : number(text.substr(dash + 1));
    if (!first || !last || *first > *last) return std::nullopt;
    return std::pair(*first, *last);
}

} // namespace

int run_bind(const BindCommand & command) {
    const auto layers = range(command.layers);
    if (!layers) {
        fmt::print(stderr, "--layers is a block or a range of them, as in 10-19, not '{}'\n", command.layers);
        return 2;
    }
    const auto stub =
        v1::Engine::NewStub(grpc::CreateChannel("unix:" + command.socket, grpc::InsecureChannelCredentials()));
    v1::BindRequest request;
    request.set_first_layer(layers->first);
    request.set_last_layer(layers->second);
    request.set_executor(command.to);
    grpc::ClientContext context;
    v1::BindResponse response;
    const grpc::Status status = stub->Bind(&context, request, &response);
    if (!status.ok()) {
        fmt::print(stderr, "{}\n", status.error_message());
        return 1;
    }
    auto parts = nlohmann::ordered_json::array();
    for (const v1::PartStatus & part : response.parts()) {
        parts.push_back(
            {{"executor", part.executor()}, {"first_layer", part.first_layer()}, {"last_layer", part.last_layer()}});
    }
    const nlohmann::ordered_json json = {{"elapsed_ms", response.elapsed_ms()}, {"parts", std::move(parts)}};
    fmt::print("{}\n", json.dump());
    return 0;
}

} // namespace strata::engine
