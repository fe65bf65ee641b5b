#pragma once

#include "base/status.h"

#include <ggml-backend.h>
#include <nlohmann/json_fwd.hpp>

#include <memory>
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
    // on: addresses of executors. split: their shares of the model, or none.
    static absl::StatusOr<std::unique_ptr<MeshDevice>> open(const std::vector<std::string> & on,
                                                            const std::vector<double> & split, std::string_view model);
    ~MeshDevice();

    std::string name() const; // as llama.cpp's --device takes it
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
