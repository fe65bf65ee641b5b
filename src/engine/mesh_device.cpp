#include "engine/mesh_device.h"

#include "base/text.h"
#include "base/version.h"
#include "engine/log.h"
#include "engine/runtime.h"
#include "layers/store_files.h"
#include "mesh/backend.h"
#include "wire/address.h"
#include "wire/tcp.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>

namespace strata::engine {
namespace {

// One for each folder of certificates, or without; as long as ggml's devices. A failure is not remembered.
absl::StatusOr<wire::Network *> network(const std::string & tls) {
    static std::mutex mutex;
    static auto * const networks = new std::map<std::string, std::unique_ptr<wire::TcpNetwork>>;
    const std::lock_guard lock(mutex);
    auto & network = (*networks)[tls];
    if (network != nullptr) return network.get();
    std::shared_ptr<const wire::TlsContext> context;
    if (!tls.empty()) {
        STRATA_ASSIGN_OR_RETURN(context, wire::TlsContext::load(tls));
    }
    network = std::make_unique<wire::TcpNetwork>(std::move(context));
    return network.get();
}

absl::StatusOr<std::vector<std::string>> full_addresses(const std::vector<std::string> & texts) {
    std::vector<std::string> addresses;
    for (const std::string & text : texts) {
        STRATA_ASSIGN_OR_RETURN(const auto address, wire::DeviceAddress::parse(text, wire::kDefaultExecutorPort));
        addresses.push_back(address.to_string());
    }
    return addresses;
}

absl::StatusOr<mesh::LaneOptions::OnLoss> on_loss_of(std::string_view text) {
    using OnLoss = mesh::LaneOptions::OnLoss;
    if (text.empty() || text == "rebind") return OnLoss::kRebind;
    if (text == "wait") return OnLoss::kWait;
    if (text == "fail") return OnLoss::kFail;
    return absl::InvalidArgumentError(fmt::format("on_loss is rebind, wait or fail, not '{}'", printable(text)));
}

// nullptr for a file, of which no digests are known.
std::shared_ptr<const mesh::ModelLayers> layers_of(const ModelSource & source) {
    if (!source.stored()) return nullptr;
    auto model = std::make_shared<mesh::ModelLayers>();
    const auto index = source.stored()->index;
    for (const layers::LayerEntry & entry : index->layers) {
        mesh::ModelLayers::Layer layer{entry.digest, entry.size, {}};
        for (const layers::TensorEntry & tensor : entry.tensors) {
            model->tensors[tensor.name] = {model->layers.size(), tensor.offset, tensor.length};
            layer.tensors.push_back({tensor.offset, tensor.length, tensor.sha256});
        }
        std::ranges::sort(layer.tensors, {}, &wire::BlobPart::offset);
        model->layers.push_back(std::move(layer));
    }
    // Not hashed here: who gets the bytes hashes them.
    model->open = [store = source.store(), index](size_t layer) -> absl::StatusOr<MappedBytes> {
        const auto path = store->blob_path(index->layers[layer].digest);
        STRATA_ASSIGN_OR_RETURN(const layers::OpenFile file, layers::open_regular(path));
        return map_file(file.fd.get(), 0, file.size); // of another size than the index says: the lane refuses it
    };
    return model;
}

} // namespace

absl::StatusOr<std::unique_ptr<MeshDevice>> MeshDevice::open(const Options & options, const ModelSource & source) {
    STRATA_RETURN_IF_ERROR(start_runtime());
    mesh::LaneOptions lane_options;
    STRATA_ASSIGN_OR_RETURN(lane_options.executors, full_addresses(options.on));
    lane_options.split = options.split;
    lane_options.build = STRATA_ENGINE_BUILD_STRING;
    lane_options.name = fmt::format("{} (pid {})", printable(options.name), getpid());
    STRATA_ASSIGN_OR_RETURN(lane_options.on_loss, on_loss_of(options.on_loss));
    lane_options.model = layers_of(source);
    lane_options.progress = options.progress;
    lane_options.log = [](const std::string & line) { log_message(STRATA_LOG_WARN, line); };
    STRATA_ASSIGN_OR_RETURN(wire::Network * const over, network(options.tls));
    STRATA_ASSIGN_OR_RETURN(auto lane, mesh::Lane::open(*over, std::move(lane_options)));
    lane->begin_loading();
    mesh::Lane & kept = *lane;
    ggml_backend_dev_t device = mesh::add_device(std::move(lane));
    ggml_backend_device_register(device);
    return std::unique_ptr<MeshDevice>(new MeshDevice(device, kept));
}

absl::Status MeshDevice::health() const {
    return lane_.failed() ? lane_.status() : absl::OkStatus();
}

void MeshDevice::end_loading() {
    lane_.end_loading();
}

std::set<size_t> MeshDevice::layers_needed_here(const ModelSource & source) const {
    std::set<size_t> needed;
    for (const size_t layer : source.hollow_layers()) {
        for (const auto & tensor : source.stored()->index->layers[layer].tensors) {
            if (!lane_.has_weight(tensor.name)) needed.insert(layer);
        }
    }
    return needed;
}

MeshDevice::~MeshDevice() {
    lane_.close();
}

absl::Status MeshDevice::bind(int32_t first_layer, int32_t last_layer, const std::string & executor) {
    STRATA_ASSIGN_OR_RETURN(const auto address, wire::DeviceAddress::parse(executor, wire::kDefaultExecutorPort));
    return lane_.move(first_layer, last_layer, address.to_string());
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
                        {"lost", part.lost},
                        {"bytes_out", part.counters.wire.bytes_out},
                        {"bytes_in", part.counters.wire.bytes_in},
                        {"graphs", part.counters.graphs},
                        {"busy_ms", static_cast<double>(part.counters.busy_ns) / 1e6}});
    }
    return list;
}

} // namespace strata::engine
