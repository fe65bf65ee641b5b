#pragma once

#include "base/digest.h"
#include "base/status.h"

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// The documents of an OCI image layout (image-spec 1.1) as far as a store of models needs them, and the media types of
// the CNCF ModelPack form. Pure functions from text to structs and back; what is parsed is untrusted and checked.
namespace strata::layers::oci {

inline constexpr char kMediaManifest[] = "application/vnd.oci.image.manifest.v1+json";
inline constexpr char kMediaIndex[] = "application/vnd.oci.image.index.v1+json";
inline constexpr char kMediaEmpty[] = "application/vnd.oci.empty.v1+json";
inline constexpr char kEmptyJson[] = "{}"; // the content of every blob of that type

inline constexpr char kArtifactModel[] = "application/vnd.cncf.model.manifest.v1+json";
inline constexpr char kMediaModelConfig[] = "application/vnd.cncf.model.config.v1+json";
inline constexpr char kMediaWeight[] = "application/vnd.cncf.model.weight.v1.raw";
inline constexpr char kMediaWeightConfig[] = "application/vnd.cncf.model.weight.config.v1.raw";
inline constexpr char kArtifactLineage[] = "application/vnd.strata.lineage.v1+json"; // manifest and its one layer

inline constexpr char kAnnotationRefName[] = "org.opencontainers.image.ref.name";
inline constexpr char kAnnotationFilePath[] = "org.cncf.model.filepath";

struct Descriptor {
    std::string media_type;
    std::string artifact_type; // may be empty
    Digest digest;
    uint64_t size = 0;
    std::map<std::string, std::string> annotations;

    // An annotation's value; empty when it is not there.
    std::string_view annotation(const char * key) const;
};

// Names `bytes`, as a blob of the type.
Descriptor describe(std::string_view bytes, std::string_view media_type);

struct Manifest {
    std::string artifact_type;
    Descriptor config;
    std::vector<Descriptor> layers;
    std::optional<Descriptor> subject;
};

struct Index {
    std::vector<Descriptor> manifests;
};

// `what` names the document in errors. Fields that are not needed here are ignored.
absl::StatusOr<Manifest> parse_manifest(std::string_view text, std::string_view what);
absl::StatusOr<Index> parse_index(std::string_view text, std::string_view what);

// Equal structs give equal bytes.
std::string to_json(const Manifest & manifest);
std::string to_json(const Index & index);

// The tag under which the referrers of a manifest are listed where there is no referrers API (distribution-spec 1.1).
std::string referrers_tag(const Digest & subject);

} // namespace strata::layers::oci
