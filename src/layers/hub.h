#pragma once

#include "base/status.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace strata::layers {

// "hf://ORG/REPO/FILE[@REVISION]"; FILE may have folders. No part may be "." or ".." or hold control characters.
struct HubUrl {
    std::string repo; // "ORG/REPO"
    std::string file;
    std::string revision = "main";

    static absl::StatusOr<HubUrl> parse(std::string_view text);
};

struct HubOptions {
    std::string endpoint;   // default: $HF_ENDPOINT, else the public hub
    std::string token;      // default: $HF_TOKEN; only ever sent to the endpoint's own host, port and scheme
    std::function<bool(uint64_t done, uint64_t total)> progress; // may be empty; return false to cancel
};

// Downloads to `folder` and returns the file's path. The name in the folder comes from a hash, never from the server. A
// download that was cut is resumed when the server's ETag is still the same; the result is checked against the SHA-256 that the hub
// states for large files (the linked ETag), else against the git blob hash. Blocking.
absl::StatusOr<std::filesystem::path> hub_download(const HubUrl & url, const std::filesystem::path & folder,
                                                   const HubOptions & options);

} // namespace strata::layers
