#pragma once

#include "base/status.h"

#include <compare>
#include <string>
#include <string_view>

namespace strata::layers {

// "NAME[:TAG]" as people write it; the tag is "latest" when none is given. NAME is one or more parts joined by "/",
// each of lower-case letters, digits and single ". _ -" between them; TAG is up to 128 of [A-Za-z0-9_.-]. In all at
// most 255 bytes. Such a name is safe in an OCI annotation, but is never used as a path.
struct ModelName {
    std::string name;
    std::string tag = "latest";

    static absl::StatusOr<ModelName> parse(std::string_view text);
    // A valid name made from a file name: "SmolLM2-135M-Instruct.Q4_1.gguf" gives "smollm2-135m-instruct:q4_1" (a
    // quantization at the end becomes the tag), a split's "-00001-of-00003" is left out.
    static ModelName from_file(std::string_view path);
    std::string to_string() const { return name + ":" + tag; }
    auto operator<=>(const ModelName &) const = default;
};

} // namespace strata::layers
