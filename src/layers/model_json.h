#pragma once

#include "layers/oci.h"
#include "layers/store.h"

#include <string>
#include <string_view>

// The documents of one model: index layer, config, manifest and lineage, and the rules that hold between them. Pure
// functions. What is written is deterministic: equal models give equal bytes, so no times and no names of people's
// choosing.
namespace strata::layers {

// What every index obeys, one that we write as well as one that we read: head first, blocks in order, tensors inside of
// their blob, sane names, limits.
absl::Status check_model_index(const ModelIndex & index, std::string_view what);

std::string model_index_to_json(const ModelIndex & index);
absl::StatusOr<ModelIndex> parse_model_index(std::string_view text, std::string_view what);

std::string lineage_to_json(const Lineage & lineage);
absl::StatusOr<Lineage> parse_lineage(std::string_view text, std::string_view what);

// ModelPack's config of the model; `index_digest` is the index layer's.
std::string model_config_json(const ModelIndex & index, const Digest & index_digest);

oci::Manifest make_model_manifest(const ModelIndex & index, const oci::Descriptor & config,
                                  const oci::Descriptor & index_layer);
// The index layer's descriptor of a manifest that is a model of ours.
absl::StatusOr<oci::Descriptor> find_index_layer(const oci::Manifest & manifest, std::string_view what);
// The weight layers of a manifest are the layers of its index, one for one.
absl::Status check_same_layers(const oci::Manifest & manifest, const ModelIndex & index, std::string_view what);

// "model-00002-of-00032.gguf": llama.cpp's name of one file of a split model.
std::string shard_file_name(size_t layer, size_t layers);

// "the head", "block 3", …: a layer for people.
std::string layer_label(const LayerEntry & layer);

} // namespace strata::layers
