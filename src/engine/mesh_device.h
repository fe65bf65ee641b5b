#pragma once

#include "base/status.h"
#include "engine/model_source.h"

#include <ggml-backend.h>
#include <nlohmann/json_fwd.hpp>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace strata::mesh {
class Lane;
}

namespace strata::engine {

// A device of ggml whose layers run on executors. ggml's devices live as long as the process: what ends with this are
// its connections.
class MeshDevice {
public:
    struct Options {
        std::vector<std::string> on; // addresses of executors
        std::vector<double> split;   // their shares of the model, or none
        std::string on_loss;         // as in DriverOptions
        std::string tls;             // as in DriverOptions
        std::string name;            // of the model, for people
        std::function<void(uint64_t done, uint64_t total)> progress;
    };
    // Where the source's weights lie is known to the executors by digest. `source` outlives it.
    static absl::StatusOr<std::unique_ptr<MeshDevice>> open(const Options & options, const ModelSource & source);
    ~MeshDevice();

    absl::Status health() const; // why the mesh is of no use any more; at once, unless it is so
    void end_loading();          // of the model: from now on graphs are run
    // Those of the hollow layers that the driver itself would compute with, once the model is loaded.
    std::set<size_t> layers_needed_here(const ModelSource & source) const;

    std::string name() const; // as llama.cpp's --device takes it
    absl::Status bind(int32_t first_layer, int32_t last_layer, const std::string & executor);
    // [{"executor":"127.0.0.1:7430","first_layer":0,"last_layer":14,"weights_bytes":..,"bytes_out":..,"bytes_in":..,
    // "graphs":..,"busy_ms":..}, …]: the parts of the lane. Within milliseconds, also during a decode.
    nlohmann::ordered_json parts() const;

private:
    MeshDevice(ggml_backend_dev_t device, mesh::Lane & lane)
        : device_(device)
        , lane_(lane) {}

    const ggml_backend_dev_t device_;
    mesh::Lane & lane_; // the device's
};

} // namespace strata::engine
