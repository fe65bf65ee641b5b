#include "engine/runtime.h"

#include "engine/log.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <ggml-backend.h>
#include <llama.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace strata::engine {

namespace {

// The folder of the shared library that holds `symbol`, so that an installed tree works wherever it was moved to.
std::filesystem::path folder_of(const void * symbol) {
    Dl_info info{};
    if (::dladdr(symbol, &info) == 0 || info.dli_fname == nullptr) return {};
    std::error_code error; // the path as the loader has it when it can't be made canonical
    const auto path = std::filesystem::canonical(info.dli_fname, error);
    return (error ? std::filesystem::path(info.dli_fname) : path).parent_path();
}

absl::Status start() {
    route_llama_log();
    // A build with plug-ins has no backend yet; they lie beside libggml.so. A native build has them linked in.
    const auto folder = folder_of(reinterpret_cast<const void *>(&ggml_backend_reg_count));
    if (ggml_backend_reg_count() == 0) {
        ggml_backend_load_all_from_path(folder.c_str());
    } else if (const char * extra = std::getenv("GGML_BACKEND_PATH")) {
        ggml_backend_load(extra); // llama.cpp itself ignores the variable when a backend is registered already
    }
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        return absl::InternalError(
            fmt::format("no CPU backend of ggml in {}; the installation is incomplete", folder.string()));
    }
    llama_backend_init();
    return absl::OkStatus();
}

} // namespace

absl::Status start_runtime() {
    static const absl::Status status = start();
    return status;
}

} // namespace strata::engine
