#pragma once

#include "mesh/lane.h"

#include <ggml-backend.h>

namespace strata::mesh {

// The registry of mesh devices. As a plug-in (libggml-strata.so) it opens one lane over the executors that STRATA_MESH
// names; a program that links this adds lanes itself.
ggml_backend_reg_t registry();

// A device for a lane; lives as long as the process, as ggml's devices do.
ggml_backend_dev_t add_device(std::unique_ptr<Lane> lane);

} // namespace strata::mesh
