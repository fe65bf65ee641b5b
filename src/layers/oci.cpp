#include "layers/oci.h"

#include "base/text.h"
#include "layers/json.h"
#include "layers/limits.h"

#include <fmt/format.h>

namespace strata::layers::oci {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

absl::StatusOr<Descriptor> parse_descriptor(const json & value, std::string_view what,
                                            std::optional<size_t> number = std::nullopt) {
    JsonFields fields(value, what, number);
    Descriptor parsed;
    parsed.media_type = fields.text("mediaType", limits::kWordBytes);
    if (fields.has("artifactType")) parsed.artifact_type = fields.text("artifactType", limits::kWordBytes);
    parsed.digest = fields.digest("digest");
    parsed.size = fields.number("size");
    JsonFields annotations(fields.object("annotations"), what, number);
    for (const auto & item : fields.object("annotations").items()) {
        parsed.annotations[item.key()] = annotations.raw_text(item.key().c_str(), limits::kOriginBytes);
    }
    STRATA_RETURN_IF_ERROR(fields.status());
    STRATA_RETURN_IF_ERROR(annotations.status());
    return parsed;
}

absl::StatusOr<std::vector<Descriptor>> parse_descriptors(const json & values, std::string_view what,
                                                          std::string_view entry) {
    const std::string name = fmt::format("{} {}", what, entry);
    std::vector<Descriptor> parsed;
    parsed.reserve(values.size());
    for (const json & value : values) {
        STRATA_ASSIGN_OR_RETURN(Descriptor descriptor, parse_descriptor(value, name, parsed.size()));
        parsed.push_back(std::move(descriptor));
    }
    return parsed;
}

void check_schema(JsonFields & fields, const char * media_type) {
    if (fields.number("schemaVersion") != 2) fields.fail("\"schemaVersion\" is not 2");
    // Optional in the specification; when there, it must be right, or two tools could read two kinds of document.
    if (fields.has("mediaType")) {
        const std::string found = fields.text("mediaType", limits::kWordBytes);
        if (found != media_type) fields.fail(fmt::format("\"mediaType\" is \"{}\"", printable(found)));
    }
}

ordered_json to_ordered(const Descriptor & descriptor) {
    ordered_json out;
    out["mediaType"] = descriptor.media_type;
    out["digest"] = descriptor.digest.to_string();
    out["size"] = descriptor.size;
    if (!descriptor.artifact_type.empty()) out["artifactType"] = descriptor.artifact_type;
    if (!descriptor.annotations.empty()) out["annotations"] = descriptor.annotations;
    return out;
}

ordered_json to_ordered(const std::vector<Descriptor> & descriptors) {
    ordered_json out = ordered_json::array();
    for (const Descriptor & descriptor : descriptors) out.push_back(to_ordered(descriptor));
    return out;
}

} // namespace

std::string_view Descriptor::annotation(const char * key) const {
    const auto found = annotations.find(key);
    return found == annotations.end() ? std::string_view() : std::string_view(found->second);
}

Descriptor describe(std::string_view bytes, std::string_view media_type) {
    Descriptor descriptor;
    descriptor.media_type = media_type;
    descriptor.digest = Digest::of(bytes);
    descriptor.size = bytes.size();
    return descriptor;
}

absl::StatusOr<Manifest> parse_manifest(std::string_view text, std::string_view what) {
    STRATA_ASSIGN_OR_RETURN(const json document, parse_json(text, what));
    JsonFields fields(document, what);
    check_schema(fields, kMediaManifest);
    Manifest parsed;
    if (fields.has("artifactType")) parsed.artifact_type = fields.text("artifactType", limits::kWordBytes);
    const json & layers = fields.array("layers", limits::kManifestLayers);
    STRATA_RETURN_IF_ERROR(fields.status());
    STRATA_ASSIGN_OR_RETURN(parsed.config, parse_descriptor(fields.object("config"), fmt::format("{} config", what)));
    STRATA_ASSIGN_OR_RETURN(parsed.layers, parse_descriptors(layers, what, "layer"));
    if (fields.has("subject")) {
        STRATA_ASSIGN_OR_RETURN(parsed.subject,
                                parse_descriptor(fields.object("subject"), fmt::format("{} subject", what)));
    }
    return parsed;
}

absl::StatusOr<Index> parse_index(std::string_view text, std::string_view what) {
    STRATA_ASSIGN_OR_RETURN(const json document, parse_json(text, what));
    JsonFields fields(document, what);
    check_schema(fields, kMediaIndex);
    const json & manifests = fields.array("manifests", limits::kModels);
    STRATA_RETURN_IF_ERROR(fields.status());
    Index parsed;
    STRATA_ASSIGN_OR_RETURN(parsed.manifests, parse_descriptors(manifests, what, "entry"));
    return parsed;
}

std::string to_json(const Manifest & manifest) {
    ordered_json out;
    out["schemaVersion"] = 2;
    out["mediaType"] = kMediaManifest;
    if (!manifest.artifact_type.empty()) out["artifactType"] = manifest.artifact_type;
    out["config"] = to_ordered(manifest.config);
    out["layers"] = to_ordered(manifest.layers);
    if (manifest.subject) out["subject"] = to_ordered(*manifest.subject);
    return dump_json(out);
}

std::string to_json(const Index & index) {
    ordered_json out;
    out["schemaVersion"] = 2;
    out["mediaType"] = kMediaIndex;
    out["manifests"] = to_ordered(index.manifests);
    return dump_json(out, 1); // people look at index.json
}

std::string referrers_tag(const Digest & subject) {
    return fmt::format("sha256-{}", subject.hex());
}

} // namespace strata::layers::oci
