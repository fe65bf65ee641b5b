// libggml-strata.so: what a stock llama.cpp program loads. The environment says which mesh:
//   STRATA_MESH=host:port,…   the executors
//   STRATA_MESH_SPLIT=2,1     their shares of the model
//   STRATA_MESH_CUTS=8        so many cuts, the executors taking turns
//   STRATA_MESH_SCATTER=7     every node on a random executor, from this seed
//   STRATA_MESH_REBIND=7      every few steps some layers move to a random executor, from this seed
//   STRATA_MESH_ON_LOSS=rebind  when an executor is lost the others take its layers; default: fail
//   STRATA_MESH_TLS=DIR       talk TLS, with the certificates in this folder: ca.pem, cert.pem, key.pem
#include "base/version.h"
#include "mesh/backend.h"
#include "wire/address.h"
#include "wire/tcp.h"

#include <fmt/format.h>
#include <ggml-backend-impl.h>

#include <charconv>
#include <cstdlib>

namespace strata::mesh {
namespace {

std::string_view variable(const char * name) {
    const char * value = std::getenv(name);
    return value == nullptr ? "" : value;
}

template <typename T>
absl::StatusOr<T> number(const char * name, std::string_view text) {
    T value{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) {
        return absl::InvalidArgumentError(fmt::format("{}: '{}' is not a number", name, text));
    }
    return value;
}

absl::StatusOr<LaneOptions> options_from_environment() {
    LaneOptions options;
    STRATA_ASSIGN_OR_RETURN(const auto addresses,
                            wire::parse_devices(variable("STRATA_MESH"), wire::kDefaultExecutorPort));
    for (const auto & address : addresses) options.executors.push_back(address.to_string());
    for (auto split = variable("STRATA_MESH_SPLIT"); !split.empty();) {
        const size_t comma = split.find(',');
        STRATA_ASSIGN_OR_RETURN(const double share, number<double>("STRATA_MESH_SPLIT", split.substr(0, comma)));
        options.split.push_back(share);
        split = comma == std::string_view::npos ? "" : split.substr(comma + 1);
    }
    if (const auto cuts = variable("STRATA_MESH_CUTS"); !cuts.empty()) {
        STRATA_ASSIGN_OR_RETURN(options.cuts, number<size_t>("STRATA_MESH_CUTS", cuts));
    }
    if (const auto seed = variable("STRATA_MESH_SCATTER"); !seed.empty()) {
        STRATA_ASSIGN_OR_RETURN(options.scatter_seed, number<uint64_t>("STRATA_MESH_SCATTER", seed));
    }
    if (const auto seed = variable("STRATA_MESH_REBIND"); !seed.empty()) {
        STRATA_ASSIGN_OR_RETURN(options.rebind_seed, number<uint64_t>("STRATA_MESH_REBIND", seed));
    }
    if (const auto on_loss = variable("STRATA_MESH_ON_LOSS"); on_loss == "rebind") {
        options.on_loss = LaneOptions::OnLoss::kRebind;
    } else if (!on_loss.empty() && on_loss != "fail") {
        return absl::InvalidArgumentError(fmt::format("STRATA_MESH_ON_LOSS is fail or rebind, not '{}'", on_loss));
    }
    options.build = STRATA_ENGINE_BUILD_STRING;
    options.name = fmt::format("{} (pid {})", program_invocation_short_name, getpid());
    return options;
}

absl::Status open_from_environment() {
    if (variable("STRATA_MESH").empty()) return absl::OkStatus();
    // Ends with its threads when there is no mesh: ggml unloads this library then. Else it lives as long as the
    // devices.
    std::shared_ptr<const wire::TlsContext> tls;
    if (const auto folder = variable("STRATA_MESH_TLS"); !folder.empty()) {
        STRATA_ASSIGN_OR_RETURN(tls, wire::TlsContext::load(folder));
    }
    auto network = std::make_unique<wire::TcpNetwork>(std::move(tls));
    STRATA_ASSIGN_OR_RETURN(LaneOptions options, options_from_environment());
    STRATA_ASSIGN_OR_RETURN(auto lane, Lane::open(*network, std::move(options)));
    add_device(std::move(lane));
    (void)network.release();
    return absl::OkStatus();
}

} // namespace
} // namespace strata::mesh

extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init() {
    const absl::Status status = strata::mesh::open_from_environment();
    if (!status.ok()) {
        fmt::print(stderr, "strata mesh: {}\n", std::string(status.message()));
        return nullptr;
    }
    return strata::mesh::registry();
}
