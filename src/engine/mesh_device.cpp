#include "engine/mesh_device.h"

#include "base/text.h"
#include "base/version.h"
#include "engine/log.h"
#include "engine/runtime.h"
#include "mesh/backend.h"
#include "wire/address.h"
#include "wire/tcp.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace strata::engine {
namespace {

wire::Network & network() {
    static auto * const network = new wire::TcpNetwork; // as long as ggml's devices
    return *network;
}

} // namespace

absl::StatusOr<std::unique_ptr<MeshDevice>>
MeshDevice::open(const std::vector<std::string> & on, const std::vector<double> & split, std::string_view model) {
    STRATA_RETURN_IF_ERROR(start_runtime());
    mesh::LaneOptions options;
    for (const std::string & text : on) {
        STRATA_ASSIGN_OR_RETURN(const wire::Address address, wire::Address::parse(text, wire::kDefaultExecutorPort));
        options.executors.push_back(address.to_string());
    }
    options.split = split;
    options.build = STRATA_ENGINE_BUILD_STRING;
    options.name = fmt::format("{} (pid {})", printable(model), getpid());
    options.on_loss = mesh::LaneOptions::OnLoss::kRebind;
    options.log = [](const std::string & line) { log_message(STRATA_LOG_WARN, line); };
    STRATA_ASSIGN_OR_RETURN(auto lane, mesh::Lane::open(network(), std::move(options)));
    mesh::Lane & kept = *lane;
    ggml_backend_dev_t device = mesh::add_device(std::move(lane));
    ggml_backend_device_register(device);
    return std::unique_ptr<MeshDevice>(new MeshDevice(device, kept));
}

MeshDevice::~MeshDevice() {
    lane_.close();
}

std::string MeshDevice::name() const {
    return ggml_backend_dev_name(device_);
}

nlohmann::ordered_json MeshDevice::parts() const {
    auto list = nlohmann::ordered_json::array();
    for (const auto & part : lane_.parts()) {
        list.push_back({{"executor", part.executor},
                        {"first_layer", part.first_layer},
                        {"last_layer", part.last_layer},
                        {"weights_bytes", part.weights_bytes},
                        {"bytes_out", part.counters.wire.bytes_out},
                        {"bytes_in", part.counters.wire.bytes_in},
                        {"graphs", part.counters.graphs},
                        {"busy_ms", static_cast<double>(part.counters.busy_ns) / 1e6}});
    }
    return list;
}

} // namespace strata::engine
