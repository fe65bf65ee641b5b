#pragma once

#include "base/digest.h"
#include "base/status.h"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace strata::layers {

class FileLock;

// "hf://ORG/REPO/FILE[@REVISION]"; FILE may have folders. No part may be "." or ".." or hold control characters.
struct HubUrl {
    std::string repo; // "ORG/REPO"
    std::string file;
    std::string revision = "main";

    static absl::StatusOr<HubUrl> parse(std::string_view text);
    // All files of a split model when this is one of them ("…-00002-of-00003.gguf"), else this alone.
    std::vector<HubUrl> parts() const;
    std::string to_string() const;
};

struct HubOptions {
    std::string endpoint; // default: $HF_ENDPOINT, else the public hub
    // Default: $HF_TOKEN. Only ever sent to the endpoint's own scheme, host and port, and never in clear text to
    // another machine.
    std::string token;
    std::function<bool(uint64_t done, uint64_t total)> progress;         // may be empty; return false to cancel
    std::chrono::milliseconds back_off = std::chrono::milliseconds(500); // before the first retry; doubles each time
};

struct HubFile {
    std::filesystem::path path;
    std::optional<Digest> sha256; // of the file, as the hub stated it and it was checked; for large files
    // While it lives, other downloads of this file wait: keep it until the file was used and removed.
    std::shared_ptr<const FileLock> lock;
};

// Downloads a file into `folder`, which is created when it is not there; the caller removes the file after use. Its
// name there comes from a hash of the URL, never from the server. A download that was cut, in this call or an earlier
// one, is resumed when the server still has the same bytes (If-Range); the result is checked against the SHA-256 that
// the hub states for large files (the linked ETag), else against the git blob hash, before it gets its name. Blocking.
// Errors: kNotFound, kPermissionDenied and kUnauthenticated say what the person can do, kUnavailable when the network
// failed again and again, kDataLoss when the bytes are others than the hub stated, kResourceExhausted when the disk has
// too little room, kCancelled.
absl::StatusOr<HubFile> hub_download(const HubUrl & url, const std::filesystem::path & folder,
                                     const HubOptions & options);

} // namespace strata::layers
