#include "layers/gguf_model.h"

#include "base/text.h"
#include "layers/gguf_bytes.h"
#include "layers/gguf_limits.h"

#include <fmt/format.h>
#include <llama.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <map>

namespace strata::layers {

namespace {

constexpr std::string_view kSplitNo = "split.no";
constexpr std::string_view kSplitCount = "split.count";
constexpr std::string_view kSplitTensors = "split.tensors.count";

absl::Status refuse(const GgufHeader & header, std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("{}: {}", header.file, what));
}

absl::StatusOr<const GgufValue *> require(const GgufHeader & header, std::string_view key) {
    const GgufValue * value = header.find(key);
    if (value == nullptr) return refuse(header, fmt::format("the key \"{}\" is missing", key));
    return value;
}

absl::StatusOr<std::string> require_string(const GgufHeader & header, std::string_view key) {
    STRATA_ASSIGN_OR_RETURN(const GgufValue * value, require(header, key));
    if (!value->as_string().has_value()) return refuse(header, fmt::format("key \"{}\": is not a string", key));
    return std::string(*value->as_string());
}

absl::StatusOr<uint64_t> require_unsigned(const GgufHeader & header, std::string_view key) {
    STRATA_ASSIGN_OR_RETURN(const GgufValue * value, require(header, key));
    if (!value->as_unsigned().has_value()) {
        return refuse(header, fmt::format("key \"{}\": is not a number from 0 on", key));
    }
    return *value->as_unsigned();
}

absl::StatusOr<uint64_t> unsigned_or(const GgufHeader & header, std::string_view key, uint64_t otherwise) {
    if (header.find(key) == nullptr) return otherwise;
    return require_unsigned(header, key);
}

// The index of the first file of a split model in `parts`, after a check that all files are there once.
absl::StatusOr<size_t> check_parts(std::span<const GgufHeader> parts) {
    size_t first = parts.size();
    std::vector<bool> seen(parts.size(), false);
    for (size_t i = 0; i < parts.size(); ++i) {
        STRATA_ASSIGN_OR_RETURN(const uint64_t number, parts.size() == 1 ? unsigned_or(parts[i], kSplitNo, 0)
                                                                         : require_unsigned(parts[i], kSplitNo));
        if (number >= parts.size()) {
            return refuse(parts[i],
                          fmt::format("it is file {} of a split model, but only {} {} given; give all of its files",
                                      number + 1, parts.size(), parts.size() == 1 ? "file was" : "files were"));
        }
        if (seen[number])
            return refuse(parts[i], fmt::format("file {} of the split model was given twice", number + 1));
        seen[number] = true;
        if (number == 0) first = i;
    }
    STRATA_ASSIGN_OR_RETURN(const uint64_t count, unsigned_or(parts[first], kSplitCount, 1));
    if (std::max<uint64_t>(count, 1) != parts.size()) {
        return refuse(parts[first],
                      fmt::format("key \"{}\": the model is split into {} files, but {} {} given; give all of "
                                  "its files",
                                  kSplitCount, count, parts.size(), parts.size() == 1 ? "was" : "were"));
    }
    if (parts.size() > 1) {
        uint64_t tensors = 0;
        for (const GgufHeader & part : parts) tensors += part.tensors.size();
        STRATA_ASSIGN_OR_RETURN(const uint64_t expected, require_unsigned(parts[first], kSplitTensors));
        if (expected != tensors) {
            return refuse(parts[first],
                          fmt::format("key \"{}\": {} tensors are expected, but the files of the split model have {}",
                                      kSplitTensors, expected, tensors));
        }
    }
    return first;
}

absl::Status check_architecture(const GgufHeader & header, std::string_view architecture) {
    const bool plain = !architecture.empty() && architecture.size() <= 64 &&
                       std::all_of(architecture.begin(), architecture.end(), [](char c) {
                           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                                  c == '-' || c == '_' || c == '.';
                       });
    if (!plain) {
        return refuse(header,
                      fmt::format("key \"general.architecture\": \"{}\" is not a name", printable(architecture)));
    }
    // Adapters, projectors and importance matrices are GGUF files as well, but no models of their own.
    if (const GgufValue * type = header.find("general.type"); type != nullptr) {
        const std::string_view text = type->as_string().value_or("");
        if (text != "model") {
            return refuse(
                header, fmt::format("key \"general.type\": the file is of type \"{}\", not a model", printable(text)));
        }
    }
    return absl::OkStatus();
}

// Tables that run parallel to the tokens, and token ids, which some versions of llama.cpp use without a look.
absl::Status check_vocabulary(const GgufHeader & header) {
    const GgufValue * tokens = header.find("tokenizer.ggml.tokens");
    if (tokens == nullptr) return absl::OkStatus(); // a model without a vocabulary; llama.cpp says so when it matters
    if (!tokens->is_array || tokens->type != GGUF_TYPE_STRING || tokens->count == 0) {
        return refuse(header, "key \"tokenizer.ggml.tokens\": is not an array of strings, or an empty one");
    }
    for (const std::string_view key : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
        const GgufValue * table = header.find(key);
        if (table == nullptr) continue;
        if (!table->is_array || scalar_bytes(table->type) != 4) {
            return refuse(header, fmt::format("key \"{}\": is not an array of 32-bit numbers", key));
        }
        if (table->count != tokens->count) {
            return refuse(header, fmt::format("key \"{}\": {} elements for a vocabulary of {} tokens", key,
                                              table->count, tokens->count));
        }
    }
    for (const GgufValue & value : header.values) {
        if (!value.key.starts_with("tokenizer.ggml.") || !value.key.ends_with("_token_id")) continue;
        const std::optional<uint64_t> id = value.as_unsigned();
        if (!id.has_value() || *id >= tokens->count) {
            return refuse(header, fmt::format("key \"{}\": token {} is outside of the vocabulary of {} tokens",
                                              printable(value.key), value.as_text(40), tokens->count));
        }
    }
    return absl::OkStatus();
}

// The number of the block that a tensor's name says, -1 for a tensor outside of blocks, -2 for a name that begins like
// a block's and is none. An encoder-decoder model's blocks of one number (enc.blk.3, dec.blk.3) are one layer.
constexpr int64_t kNoBlock = -1;
constexpr int64_t kBadBlock = -2;
int64_t block_of(std::string_view name) {
    for (const std::string_view prefix : {"blk.", "enc.blk.", "dec.blk."}) {
        if (!name.starts_with(prefix)) continue;
        const std::string_view rest = name.substr(prefix.size());
        const std::string_view digits = rest.substr(0, rest.find('.'));
        uint32_t number = 0;
        const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
        const bool whole = error == std::errc() && end == digits.data() + digits.size() && digits.size() < rest.size();
        if (!whole || (digits.size() > 1 && digits[0] == '0')) return kBadBlock;
        return number;
    }
    return kNoBlock;
}

// Output norm and projection, in llama.cpp's names of all architectures (LLM_TENSOR_LAYER_OUTPUT in llama-arch.cpp).
bool belongs_to_tail(std::string_view name) {
    const std::string_view stem = name.substr(0, name.rfind('.'));
    constexpr std::array kStems = {"cls",     "cls.output", "cls.norm", "enc.output_norm", "dec.output_norm",
                                   "dense_2", "dense_3"};
    return stem == "output" || stem.starts_with("output_") ||
           std::find(kStems.begin(), kStems.end(), stem) != kStems.end();
}

absl::StatusOr<uint64_t> block_count(const GgufHeader & header, const std::string & architecture) {
    const std::string key = architecture + ".block_count";
    STRATA_ASSIGN_OR_RETURN(const uint64_t encoder_blocks, require_unsigned(header, key));
    STRATA_ASSIGN_OR_RETURN(const uint64_t decoder_blocks,
                            unsigned_or(header, architecture + ".decoder_block_count", 0));
    const uint64_t blocks = encoder_blocks == 0 ? 0 : std::max(encoder_blocks, decoder_blocks);
    if (blocks == 0 || blocks > kMaxModelBlocks) {
        return refuse(header,
                      fmt::format("key \"{}\": {} blocks (1 to {} are possible)", key, blocks, kMaxModelBlocks));
    }
    return blocks;
}

absl::Status fill_layers(std::span<const GgufHeader> parts, const GgufHeader & first, GgufModel & model) {
    STRATA_ASSIGN_OR_RETURN(const uint64_t blocks, block_count(first, model.architecture));
    model.layers.resize(blocks + 3);
    model.layers.front().kind = LayerKind::kHead;
    ModelLayer & embedding = model.layers[1];
    embedding.kind = LayerKind::kEmbedding;
    for (uint64_t i = 0; i < blocks; ++i) {
        model.layers[i + 2].kind = LayerKind::kBlock;
        model.layers[i + 2].block = static_cast<int32_t>(i);
    }
    ModelLayer & tail = model.layers.back();
    tail.kind = LayerKind::kTail;

    for (size_t part = 0; part < parts.size(); ++part) {
        for (const GgufTensor & tensor : parts[part].tensors) {
            const int64_t block = block_of(tensor.name);
            if (block == kBadBlock || block >= static_cast<int64_t>(blocks)) {
                return refuse(parts[part],
                              fmt::format("tensor \"{}\": is not in one of the {} blocks that \"{}.block_count\" says",
                                          tensor.name, blocks, model.architecture));
            }
            ModelLayer & layer = block >= 0                     ? model.layers[static_cast<size_t>(block) + 2]
                                 : belongs_to_tail(tensor.name) ? tail
                                                                : embedding;
            layer.tensors.push_back({part, &tensor});
        }
    }
    for (ModelLayer & layer : model.layers) {
        if (layer.kind == LayerKind::kBlock && layer.tensors.empty()) {
            return refuse(first,
                          fmt::format("block {} of {} has no tensors (blk.{}.*)", layer.block, blocks, layer.block));
        }
        std::sort(layer.tensors.begin(), layer.tensors.end(),
                  [](const ModelTensor & a, const ModelTensor & b) { return a.tensor->name < b.tensor->name; });
        const auto twice = std::adjacent_find(
            layer.tensors.begin(), layer.tensors.end(),
            [](const ModelTensor & a, const ModelTensor & b) { return a.tensor->name == b.tensor->name; });
        if (twice != layer.tensors.end()) {
            return refuse(parts[std::next(twice)->part],
                          fmt::format("tensor \"{}\": is also in {}", twice->tensor->name, parts[twice->part].file));
        }
    }
    return absl::OkStatus();
}

// Names of llama.cpp's file types as people know them from file names.
const char * file_type_name(uint64_t type) {
    switch (type) {
    case LLAMA_FTYPE_ALL_F32:
        return "F32";
    case LLAMA_FTYPE_MOSTLY_F16:
        return "F16";
    case LLAMA_FTYPE_MOSTLY_BF16:
        return "BF16";
    case LLAMA_FTYPE_MOSTLY_Q4_0:
        return "Q4_0";
    case LLAMA_FTYPE_MOSTLY_Q4_1:
        return "Q4_1";
    case LLAMA_FTYPE_MOSTLY_Q5_0:
        return "Q5_0";
    case LLAMA_FTYPE_MOSTLY_Q5_1:
        return "Q5_1";
    case LLAMA_FTYPE_MOSTLY_Q8_0:
        return "Q8_0";
    case LLAMA_FTYPE_MOSTLY_Q2_K:
        return "Q2_K";
    case LLAMA_FTYPE_MOSTLY_Q2_K_S:
        return "Q2_K_S";
    case LLAMA_FTYPE_MOSTLY_Q3_K_S:
        return "Q3_K_S";
    case LLAMA_FTYPE_MOSTLY_Q3_K_M:
        return "Q3_K_M";
    case LLAMA_FTYPE_MOSTLY_Q3_K_L:
        return "Q3_K_L";
    case LLAMA_FTYPE_MOSTLY_Q4_K_S:
        return "Q4_K_S";
    case LLAMA_FTYPE_MOSTLY_Q4_K_M:
        return "Q4_K_M";
    case LLAMA_FTYPE_MOSTLY_Q5_K_S:
        return "Q5_K_S";
    case LLAMA_FTYPE_MOSTLY_Q5_K_M:
        return "Q5_K_M";
    case LLAMA_FTYPE_MOSTLY_Q6_K:
        return "Q6_K";
    case LLAMA_FTYPE_MOSTLY_IQ1_S:
        return "IQ1_S";
    case LLAMA_FTYPE_MOSTLY_IQ1_M:
        return "IQ1_M";
    case LLAMA_FTYPE_MOSTLY_IQ2_XXS:
        return "IQ2_XXS";
    case LLAMA_FTYPE_MOSTLY_IQ2_XS:
        return "IQ2_XS";
    case LLAMA_FTYPE_MOSTLY_IQ2_S:
        return "IQ2_S";
    case LLAMA_FTYPE_MOSTLY_IQ2_M:
        return "IQ2_M";
    case LLAMA_FTYPE_MOSTLY_IQ3_XXS:
        return "IQ3_XXS";
    case LLAMA_FTYPE_MOSTLY_IQ3_XS:
        return "IQ3_XS";
    case LLAMA_FTYPE_MOSTLY_IQ3_S:
        return "IQ3_S";
    case LLAMA_FTYPE_MOSTLY_IQ3_M:
        return "IQ3_M";
    case LLAMA_FTYPE_MOSTLY_IQ4_NL:
        return "IQ4_NL";
    case LLAMA_FTYPE_MOSTLY_IQ4_XS:
        return "IQ4_XS";
    case LLAMA_FTYPE_MOSTLY_TQ1_0:
        return "TQ1_0";
    case LLAMA_FTYPE_MOSTLY_TQ2_0:
        return "TQ2_0";
    case LLAMA_FTYPE_MOSTLY_MXFP4_MOE:
        return "MXFP4_MOE";
    case LLAMA_FTYPE_MOSTLY_NVFP4:
        return "NVFP4";
    case LLAMA_FTYPE_MOSTLY_Q1_0:
        return "Q1_0";
    case LLAMA_FTYPE_MOSTLY_Q2_0:
        return "Q2_0";
    default:
        return nullptr;
    }
}

void fill_numbers(std::span<const GgufHeader> parts, const GgufHeader & first, GgufModel & model) {
    std::map<ggml_type, uint64_t> bytes;
    for (const GgufHeader & part : parts) {
        model.tensor_count += part.tensors.size();
        for (const GgufTensor & tensor : part.tensors) {
            model.parameters += static_cast<uint64_t>(tensor.elements());
            model.tensor_bytes += tensor.length;
            bytes[tensor.type] += tensor.length;
        }
    }
    if (const GgufValue * type = first.find("general.file_type"); type != nullptr && type->as_unsigned().has_value()) {
        if (const char * name = file_type_name(*type->as_unsigned()); name != nullptr) model.quantization = name;
    }
    if (model.quantization.empty()) {
        const auto most = std::max_element(bytes.begin(), bytes.end(),
                                           [](const auto & a, const auto & b) { return a.second < b.second; });
        model.quantization = type_name(most->first);
    }
    if (const GgufValue * value = first.find(model.architecture + ".context_length"); value != nullptr) {
        model.context_tokens = value->as_unsigned().value_or(0);
    }
}

} // namespace

absl::Status check_head(const GgufHeader & header) {
    STRATA_ASSIGN_OR_RETURN(const std::string architecture, require_string(header, "general.architecture"));
    STRATA_RETURN_IF_ERROR(check_architecture(header, architecture));
    STRATA_RETURN_IF_ERROR(block_count(header, architecture).status());
    return check_vocabulary(header);
}

absl::StatusOr<GgufModel> make_model(std::span<const GgufHeader> parts) {
    if (parts.empty()) return absl::InvalidArgumentError("no file was given to import");
    if (parts.size() > kMaxModelParts) {
        return absl::InvalidArgumentError(
            fmt::format("{} files are more than the {} that a split model can have", parts.size(), kMaxModelParts));
    }
    STRATA_ASSIGN_OR_RETURN(const size_t first_index, check_parts(parts));
    const GgufHeader & first = parts[first_index];

    GgufModel model;
    STRATA_RETURN_IF_ERROR(check_head(first));
    STRATA_ASSIGN_OR_RETURN(model.architecture, require_string(first, "general.architecture"));
    STRATA_RETURN_IF_ERROR(fill_layers(parts, first, model));
    fill_numbers(parts, first, model);
    for (const GgufValue & value : first.values) {
        if (!value.key.starts_with("split.")) model.values.push_back(&value);
    }
    return model;
}

} // namespace strata::layers
