#pragma once

#include "engine/model_source.h"

namespace strata::engine {

constexpr size_t kPrintablePathBytes = 300; // of a path in a message

// The layers that a GGUF model would be imported as, after the same checks as at an import. `first_file`
// is the first one of a split model. Reads headers only. kInvalidArgument names the file and what is wrong with it.
absl::StatusOr<std::vector<SourceLayer>> read_gguf_layers(const std::filesystem::path & first_file);

} // namespace strata::engine
