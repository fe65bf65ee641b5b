#include "layers/model_json.h"

#include "base/text.h"
#include "layers/json.h"
#include "layers/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

namespace strata::layers {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr uint64_t kIndexVersion = 1;
constexpr char kIndexFileName[] = "tensor-index.json";
constexpr std::array kKinds = {LayerKind::kHead, LayerKind::kEmbedding, LayerKind::kBlock, LayerKind::kTail};

bool is_name(std::string_view text, size_t limit) {
    return !text.empty() && text.size() <= limit &&
           std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
}

absl::Status check_tensor(const TensorEntry & tensor, const LayerEntry & layer) {
    if (!is_name(tensor.name, limits::kTensorNameBytes)) {
        return absl::InvalidArgumentError(
            fmt::format("has a tensor with the name \"{}\"; a name is 1 to {} printable ASCII characters",
                        printable(tensor.name), limits::kTensorNameBytes));
    }
    const auto refuse = [&tensor](std::string_view why) {
        return absl::InvalidArgumentError(fmt::format("has the tensor \"{}\" {}", tensor.name, why));
    };
    if (!is_name(tensor.type, limits::kWordBytes)) return refuse("without a valid type");
    if (tensor.shape.empty() || tensor.shape.size() > limits::kTensorDims) return refuse("without 1 to 4 dimensions");
    if (std::any_of(tensor.shape.begin(), tensor.shape.end(), [](int64_t n) { return n < 0; })) {
        return refuse("with a negative dimension");
    }
    if (tensor.offset > layer.size || tensor.length > layer.size - tensor.offset) {
        return refuse(fmt::format("outside of its blob (offset {}, {} bytes, blob {} bytes)", tensor.offset,
                                  tensor.length, layer.size));
    }
    return absl::OkStatus();
}

absl::Status with_prefix(const absl::Status & status, std::string_view what) {
    const auto message = status.message();
    return {status.code(), fmt::format("{} {}", what, std::string_view(message.data(), message.size()))};
}

absl::StatusOr<TensorEntry> parse_tensor(const json & value, std::string_view what, size_t number) {
    JsonFields fields(value, what, number);
    TensorEntry tensor;
    tensor.name = fields.text("name", limits::kTensorNameBytes);
    tensor.type = fields.text("type", limits::kWordBytes);
    for (const json & dimension : fields.array("shape", limits::kTensorDims)) {
        const bool valid = dimension.is_number_unsigned() &&
                           dimension.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
        if (!valid) fields.fail("\"shape\" has a number that is no dimension");
        tensor.shape.push_back(valid ? dimension.get<int64_t>() : 0);
    }
    tensor.offset = fields.number("offset");
    tensor.length = fields.number("length");
    tensor.sha256 = fields.digest("sha256");
    STRATA_RETURN_IF_ERROR(fields.status());
    return tensor;
}

absl::StatusOr<LayerEntry> parse_layer(const json & value, std::string_view what) {
    JsonFields fields(value, what);
    LayerEntry layer;
    const std::string kind = fields.text("kind", limits::kWordBytes);
    const auto found =
        std::find_if(kKinds.begin(), kKinds.end(), [&kind](LayerKind known) { return kind == to_string(known); });
    if (found == kKinds.end()) {
        fields.fail(fmt::format("\"kind\" is \"{}\"", printable(kind)));
    } else {
        layer.kind = *found;
    }
    if (layer.kind == LayerKind::kBlock) {
        const uint64_t block = fields.number("block");
        if (block > limits::kManifestLayers) fields.fail("\"block\" is too large");
        layer.block = static_cast<int32_t>(std::min<uint64_t>(block, limits::kManifestLayers));
    }
    layer.digest = fields.digest("digest");
    layer.size = fields.number("size");
    const json & tensors = fields.array("tensors", limits::kTensors);
    STRATA_RETURN_IF_ERROR(fields.status());
    const std::string name = fmt::format("{} tensor", what);
    layer.tensors.reserve(tensors.size());
    for (const json & tensor : tensors) {
        STRATA_ASSIGN_OR_RETURN(TensorEntry entry, parse_tensor(tensor, name, layer.tensors.size()));
        layer.tensors.push_back(std::move(entry));
    }
    return layer;
}

// "135M", "7.6B": ModelPack's paramSize.
std::string short_count(uint64_t parameters) {
    constexpr std::array kUnits = {"", "K", "M", "B", "T"};
    double value = static_cast<double>(parameters);
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < kUnits.size()) {
        value /= 1000;
        ++unit;
    }
    std::string text = fmt::format("{:.{}f}", value, unit > 0 && value < 9.95 ? 1 : 0);
    if (text.ends_with(".0")) text.resize(text.size() - 2);
    return text + kUnits[unit];
}

} // namespace

const char * to_string(LayerKind kind) {
    switch (kind) {
    case LayerKind::kHead:
        return "head";
    case LayerKind::kEmbedding:
        return "embedding";
    case LayerKind::kBlock:
        return "block";
    case LayerKind::kTail:
        return "tail";
    }
    return "unknown";
}

std::string layer_label(const LayerEntry & layer) {
    return layer.kind == LayerKind::kBlock ? fmt::format("block {}", layer.block)
                                           : fmt::format("the {}", to_string(layer.kind));
}

absl::Status check_model_index(const ModelIndex & index, std::string_view what) {
    const auto refuse = [what](std::string_view why) {
        return absl::InvalidArgumentError(fmt::format("{} {}", what, why));
    };
    // One of the manifest's layers is the index itself.
    if (index.layers.empty() || index.layers.size() >= limits::kManifestLayers) {
        return refuse(
            fmt::format("has {} layers; a model has 1 to {}", index.layers.size(), limits::kManifestLayers - 1));
    }
    if (index.architecture.size() > limits::kWordBytes || index.quantization.size() > limits::kWordBytes) {
        return refuse("has an architecture or quantization whose name is too long");
    }
    if (index.metadata.size() > limits::kMetadataEntries) return refuse("has too many metadata entries");
    for (const auto & [key, value] : index.metadata) {
        if (key.size() > limits::kTextBytes || value.size() > limits::kTextBytes) {
            return refuse(fmt::format("has metadata that is too long at \"{}\"", printable(key)));
        }
    }
    size_t tensors = 0;
    int32_t next_block = 0;
    for (size_t i = 0; i < index.layers.size(); ++i) {
        const LayerEntry & layer = index.layers[i];
        if ((layer.kind == LayerKind::kHead) != (i == 0)) return refuse("does not have its head as the first layer");
        if (layer.kind == LayerKind::kBlock && layer.block != next_block++) {
            return refuse(fmt::format("has block {} where block {} belongs", layer.block, next_block - 1));
        }
        if (layer.kind == LayerKind::kTail && i + 1 != index.layers.size()) return refuse("has layers after its tail");
        tensors += layer.tensors.size();
        if (tensors > limits::kTensors) return refuse(fmt::format("has more than {} tensors", limits::kTensors));
        for (const TensorEntry & tensor : layer.tensors) {
            if (absl::Status checked = check_tensor(tensor, layer); !checked.ok()) {
                return with_prefix(checked, fmt::format("{} {}", what, layer_label(layer)));
            }
        }
    }
    return absl::OkStatus();
}

std::string model_index_to_json(const ModelIndex & index) {
    ordered_json out;
    out["version"] = kIndexVersion;
    out["architecture"] = index.architecture;
    out["quantization"] = index.quantization;
    out["parameters"] = index.parameters;
    out["context_tokens"] = index.context_tokens;
    ordered_json & metadata = out["metadata"] = ordered_json::array();
    for (const auto & [key, value] : index.metadata) metadata.push_back({{"key", key}, {"value", value}});
    ordered_json & layers = out["layers"] = ordered_json::array();
    for (const LayerEntry & layer : index.layers) {
        ordered_json entry;
        entry["kind"] = to_string(layer.kind);
        if (layer.kind == LayerKind::kBlock) entry["block"] = layer.block;
        entry["digest"] = layer.digest.to_string();
        entry["size"] = layer.size;
        ordered_json & tensors = entry["tensors"] = ordered_json::array();
        for (const TensorEntry & tensor : layer.tensors) {
            ordered_json item;
            item["name"] = tensor.name;
            item["type"] = tensor.type;
            item["shape"] = tensor.shape;
            item["offset"] = tensor.offset;
            item["length"] = tensor.length;
            item["sha256"] = tensor.sha256.to_string();
            tensors.push_back(std::move(item));
        }
        layers.push_back(std::move(entry));
    }
    return dump_json(out);
}

absl::StatusOr<ModelIndex> parse_model_index(std::string_view text, std::string_view what) {
    STRATA_ASSIGN_OR_RETURN(const json document, parse_json(text, what));
    JsonFields fields(document, what);
    if (const uint64_t version = fields.number("version"); fields.ok() && version != kIndexVersion) {
        return absl::FailedPreconditionError(fmt::format(
            "{} has version {}; this build of strata reads version {}: use a newer one", what, version, kIndexVersion));
    }
    ModelIndex index;
    index.architecture = fields.text("architecture", limits::kWordBytes);
    index.quantization = fields.text("quantization", limits::kWordBytes);
    index.parameters = fields.number("parameters");
    index.context_tokens = fields.number("context_tokens");
    const std::string metadata = fmt::format("{} metadata", what);
    for (const json & item : fields.array("metadata", limits::kMetadataEntries)) {
        JsonFields entry(item, metadata, index.metadata.size());
        std::string key = entry.raw_text("key", limits::kTextBytes);
        std::string value = entry.raw_text("value", limits::kTextBytes);
        STRATA_RETURN_IF_ERROR(entry.status());
        index.metadata.emplace_back(std::move(key), std::move(value));
    }
    const json & layers = fields.array("layers", limits::kManifestLayers);
    STRATA_RETURN_IF_ERROR(fields.status());
    index.layers.reserve(layers.size());
    for (const json & layer : layers) {
        STRATA_ASSIGN_OR_RETURN(LayerEntry entry,
                                parse_layer(layer, fmt::format("{} layer {}", what, index.layers.size())));
        index.layers.push_back(std::move(entry));
    }
    STRATA_RETURN_IF_ERROR(check_model_index(index, what));
    return index;
}

std::string lineage_to_json(const Lineage & lineage) {
    ordered_json out;
    out["operation"] = lineage.operation;
    out["origin"] = lineage.origin;
    if (lineage.origin_sha256) out["origin_sha256"] = lineage.origin_sha256->to_string();
    out["created_unix_ms"] = lineage.created_unix_ms;
    out["engine_build"] = lineage.engine_build;
    return dump_json(out);
}

absl::StatusOr<Lineage> parse_lineage(std::string_view text, std::string_view what) {
    STRATA_ASSIGN_OR_RETURN(const json document, parse_json(text, what));
    JsonFields fields(document, what);
    Lineage lineage;
    lineage.operation = fields.text("operation", limits::kWordBytes);
    lineage.origin = fields.text("origin", limits::kOriginBytes);
    if (fields.has("origin_sha256")) lineage.origin_sha256 = fields.digest("origin_sha256");
    lineage.created_unix_ms = fields.signed_number("created_unix_ms");
    lineage.engine_build = fields.text("engine_build", limits::kWordBytes);
    STRATA_RETURN_IF_ERROR(fields.status());
    return lineage;
}

std::string model_config_json(const ModelIndex & index, const Digest & index_digest) {
    ordered_json out;
    ordered_json & descriptor = out["descriptor"] = ordered_json::object();
    descriptor["family"] = index.architecture;
    for (const auto & [key, value] : index.metadata) {
        if (key == "general.name") descriptor["name"] = value;
    }
    ordered_json & files = out["modelfs"];
    files["type"] = "layers";
    ordered_json & diff_ids = files["diffIds"] = ordered_json::array();
    for (const LayerEntry & layer : index.layers) diff_ids.push_back(layer.digest.to_string());
    diff_ids.push_back(index_digest.to_string());
    ordered_json & config = out["config"];
    config["architecture"] = "transformer";
    config["format"] = "gguf";
    config["paramSize"] = short_count(index.parameters);
    config["quantization"] = index.quantization;
    return dump_json(out);
}

oci::Manifest make_model_manifest(const ModelIndex & index, const oci::Descriptor & config,
                                  const oci::Descriptor & index_layer) {
    oci::Manifest manifest;
    manifest.artifact_type = oci::kArtifactModel;
    manifest.config = config;
    for (size_t i = 0; i < index.layers.size(); ++i) {
        oci::Descriptor layer;
        layer.media_type = oci::kMediaWeight;
        layer.digest = index.layers[i].digest;
        layer.size = index.layers[i].size;
        layer.annotations[oci::kAnnotationFilePath] = shard_file_name(i, index.layers.size());
        manifest.layers.push_back(std::move(layer));
    }
    manifest.layers.push_back(index_layer);
    manifest.layers.back().annotations[oci::kAnnotationFilePath] = kIndexFileName;
    return manifest;
}

absl::StatusOr<oci::Descriptor> find_index_layer(const oci::Manifest & manifest, std::string_view what) {
    if (manifest.artifact_type != oci::kArtifactModel) {
        return absl::InvalidArgumentError(fmt::format("{} is not a ModelPack model: its artifactType is \"{}\"", what,
                                                      printable(manifest.artifact_type)));
    }
    for (const oci::Descriptor & layer : manifest.layers) {
        if (layer.media_type == oci::kMediaWeightConfig &&
            layer.annotation(oci::kAnnotationFilePath) == kIndexFileName) {
            return layer;
        }
    }
    return absl::InvalidArgumentError(
        fmt::format("{} has no tensor index, so strata did not make it: import the model's GGUF file instead", what));
}

absl::Status check_same_layers(const oci::Manifest & manifest, const ModelIndex & index, std::string_view what) {
    size_t weights = 0;
    for (const oci::Descriptor & layer : manifest.layers) {
        if (layer.media_type == oci::kMediaWeightConfig) continue;
        if (layer.media_type != oci::kMediaWeight) {
            return absl::InvalidArgumentError(
                fmt::format("{} has a layer of the type \"{}\", which strata does not read (was it compressed when it "
                            "was copied?)",
                            what, printable(layer.media_type)));
        }
        if (weights >= index.layers.size() || layer.digest != index.layers[weights].digest ||
            layer.size != index.layers[weights].size) {
            return absl::InvalidArgumentError(fmt::format("{} and its tensor index name different layers", what));
        }
        ++weights;
    }
    if (weights != index.layers.size()) {
        return absl::InvalidArgumentError(fmt::format("{} lacks layers that its tensor index names", what));
    }
    return absl::OkStatus();
}

std::string shard_file_name(size_t layer, size_t layers) {
    return fmt::format("model-{:05}-of-{:05}.gguf", layer + 1, layers);
}

} // namespace strata::layers
