#include "layers/gguf_testing.h"
#include "layers/quantize.h"
#include "layers/store_testing.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <llama-ext.h>
#include <llama.h>

#include <fstream>
#include <limits>
#include <random>
#include <regex>

namespace strata::layers {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::status_text;
using testing::TestTensor;

const std::vector<std::pair<ggml_type, llama_ftype>> kTypes = {
    {GGML_TYPE_F32, LLAMA_FTYPE_ALL_F32},           {GGML_TYPE_F16, LLAMA_FTYPE_MOSTLY_F16},
    {GGML_TYPE_BF16, LLAMA_FTYPE_MOSTLY_BF16},      {GGML_TYPE_Q1_0, LLAMA_FTYPE_MOSTLY_Q1_0},
    {GGML_TYPE_Q2_0, LLAMA_FTYPE_MOSTLY_Q2_0},      {GGML_TYPE_Q4_0, LLAMA_FTYPE_MOSTLY_Q4_0},
    {GGML_TYPE_Q4_1, LLAMA_FTYPE_MOSTLY_Q4_1},      {GGML_TYPE_Q5_0, LLAMA_FTYPE_MOSTLY_Q5_0},
    {GGML_TYPE_Q5_1, LLAMA_FTYPE_MOSTLY_Q5_1},      {GGML_TYPE_Q8_0, LLAMA_FTYPE_MOSTLY_Q8_0},
    {GGML_TYPE_Q2_K, LLAMA_FTYPE_MOSTLY_Q2_K},      {GGML_TYPE_Q3_K, LLAMA_FTYPE_MOSTLY_Q3_K_S},
    {GGML_TYPE_Q4_K, LLAMA_FTYPE_MOSTLY_Q4_K_S},    {GGML_TYPE_Q5_K, LLAMA_FTYPE_MOSTLY_Q5_K_S},
    {GGML_TYPE_Q6_K, LLAMA_FTYPE_MOSTLY_Q6_K},      {GGML_TYPE_TQ1_0, LLAMA_FTYPE_MOSTLY_TQ1_0},
    {GGML_TYPE_TQ2_0, LLAMA_FTYPE_MOSTLY_TQ2_0},    {GGML_TYPE_IQ3_S, LLAMA_FTYPE_MOSTLY_IQ3_S},
    {GGML_TYPE_IQ4_NL, LLAMA_FTYPE_MOSTLY_IQ4_NL},  {GGML_TYPE_IQ4_XS, LLAMA_FTYPE_MOSTLY_IQ4_XS},
    {GGML_TYPE_MXFP4, LLAMA_FTYPE_MOSTLY_MXFP4_MOE}};

std::vector<float> weights(size_t count, uint32_t seed = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0F, 0.05F);
    std::vector<float> values(count);
    for (float & value : values) value = normal(random);
    return values;
}

// Rows of values as a tensor of any type.
TestTensor tensor(std::string name, std::vector<int64_t> shape, ggml_type type, const std::vector<float> & values) {
    const auto rows = static_cast<int64_t>(values.size()) / shape[0];
    std::string data(static_cast<size_t>(rows) * ggml_row_size(type, shape[0]), '\0');
    ggml_quantize_chunk(type, values.data(), data.data(), 0, rows, shape[0], nullptr);
    return {std::move(name), std::move(shape), type, std::move(data)};
}

std::string layer(std::vector<TestTensor> tensors) {
    GgufBuilder builder;
    builder.u16("split.no", 7).tensors = std::move(tensors);
    return builder.build();
}

MappedBytes mapped(const std::string & bytes) {
    const auto owner = std::make_shared<std::string>(bytes);
    return {{reinterpret_cast<const uint8_t *>(owner->data()), owner->size()}, owner};
}

absl::StatusOr<std::string> quantize(const std::string & bytes, ggml_type type) {
    STRATA_ASSIGN_OR_RETURN(LayerQuantizer quantizer, LayerQuantizer::make("the layer", mapped(bytes), type));
    std::string made;
    while (true) {
        STRATA_ASSIGN_OR_RETURN(const auto piece, quantizer.next());
        if (piece.empty()) break;
        made.append(piece.begin(), piece.end());
    }
    EXPECT_EQ(made.size(), quantizer.bytes());
    return made;
}

// Every type from every type of a usual model: the whole file is the one that has these tensors.
TEST(Quantize, BytesAreThoseOfGgmlsQuantizer) {
    const auto values = weights(size_t{3} * 37 * 512);
    const auto norm = tensor("blk.6.attn_norm.weight", {33}, GGML_TYPE_F32, weights(33));
    for (const ggml_type from : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_1}) {
        const TestTensor source = tensor("blk.6.ffn_up_exps.weight", {512, 37, 3}, from, values);
        std::vector<float> read(values.size());
        if (from == GGML_TYPE_F32)
            read = values;
        else
            ggml_get_type_traits(from)->to_float(source.data.data(), read.data(), static_cast<int64_t>(read.size()));
        for (const auto & [to, ftype] : kTypes) {
            const auto made = quantize(layer({norm, source}), to);
            ASSERT_OK(made);
            const TestTensor expected = to == from ? source : tensor(source.name, source.shape, to, read);
            EXPECT_TRUE(*made == layer({norm, expected})) << type_name(from) << " to " << type_name(to);
        }
    }
}

TEST(Quantize, LongRowsAndShortOnes) {
    for (const std::vector<int64_t> & shape : {std::vector<int64_t>{20480, 3}, {32, 1000}}) {
        const auto values = weights(static_cast<size_t>(shape[0] * shape[1]));
        const auto made = quantize(layer({tensor("a.weight", shape, GGML_TYPE_F32, values)}), GGML_TYPE_Q5_1);
        ASSERT_OK(made);
        EXPECT_TRUE(*made == layer({tensor("a.weight", shape, GGML_TYPE_Q5_1, values)}));
    }
}

TEST(Quantize, ALayerWithoutTensorsStaysAsItIs) {
    std::string empty = layer({});
    empty.resize((empty.size() + 31) / 32 * 32); // as a model's shard is
    EXPECT_EQ(*quantize(empty, GGML_TYPE_Q4_0), empty);
}

// llama.cpp's own choice for every name of a tensor that it knows, and shapes that fit or do not.
TEST(Quantize, TypesAreThoseOfLlamaQuantize) {
    const llama_quant_model_desc desc = {"llama", 512, 1024, 8, 8, 8, 0, 64, 64};
    llama_model * model = llama_quant_model_from_metadata(&desc);
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.pure = true;
    quantize_state_impl * state = llama_quant_init(model, &params);
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);

    std::set<std::string> names;
    std::ifstream source(STRATA_LLAMA_ARCH);
    const std::regex name_in("LLM_TENSOR_\\w+, +\"([^\"]+)\"");
    for (std::string line; std::getline(source, line);) {
        std::smatch match;
        if (!std::regex_search(line, match, name_in)) continue;
        const std::string name = std::regex_replace(match[1].str(), std::regex("%d"), "3");
        for (const char * end : {".weight", ".bias", ""}) names.insert(name + end);
    }
    for (const char * name :
         {"v.position_embd.weight", "v.patch_embd.weight", "sam.pos_embd.weight", "sam.neck.0.weight",
          "sam.net_2.weight", "sam.blk.1.attn.rel_pos.weight", "v.patch_merger.weight", "a.rvq.codebook.weight",
          "mm.a.code_embd.weight", "sam.neg.weight", "token_types.weight", "position_embd.weight", "norm.weight"}) {
        names.insert(name);
    }
    ASSERT_GT(names.size(), 800);

    size_t kept = 0, changed = 0, refused = 0;
    for (const std::string & name : names) {
        for (const std::array<int64_t, 3> & shape :
             {std::array<int64_t, 3>{512, 4, 1}, {512, 4, 3}, {512, 1, 1}, {96, 4, 1}, {33, 4, 1}}) {
            GgufTensor ours;
            ours.name = name;
            ours.type = GGML_TYPE_F32;
            ours.dimensions = 3;
            std::ranges::copy(shape, ours.shape.begin());
            ggml_context * context = ggml_init({ggml_tensor_overhead(), nullptr, true});
            ggml_tensor * theirs = ggml_new_tensor(context, GGML_TYPE_F32, 3, shape.data());
            ggml_set_name(theirs, name.c_str());
            for (const auto & [type, ftype] : kTypes) {
                const auto got = quantized_type(ours, type);
                ggml_type expected = theirs->type;
                try {
                    if (llama_quant_tensor_allows_quantization(state, theirs))
                        llama_quant_compute_types(state, ftype, &theirs, &expected, 1);
                    ASSERT_EQ(status_text(got), "OK") << name;
                    EXPECT_EQ(type_name(*got), type_name(expected)) << name << " of " << shape[0];
                    ++(expected == theirs->type ? kept : changed);
                } catch (const std::exception &) {
                    EXPECT_FALSE(got.ok()) << name;
                    ++refused;
                }
            }
            ggml_free(context);
        }
    }
    EXPECT_GT(kept, 1000);
    EXPECT_GT(changed, 1000);
    EXPECT_GT(refused, 100);
    llama_quant_free(state);
    llama_model_free(model);
}

TEST(Quantize, TypesThatAreNoneAreNamed) {
    for (const ggml_type type :
         {GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_XXS}) {
        EXPECT_THAT(status_text(quantize(layer({}), type)), HasSubstr(type_name(type) + " needs an importance matrix"));
    }
    for (const ggml_type type : {GGML_TYPE_Q8_1, GGML_TYPE_Q8_K, GGML_TYPE_I32, GGML_TYPE_F64, GGML_TYPE_NVFP4}) {
        EXPECT_THAT(status_text(quantize(layer({}), type)), HasSubstr("can't be made " + type_name(type)));
    }
    EXPECT_EQ(type_named("q4_k"), GGML_TYPE_Q4_K);
    EXPECT_EQ(type_named("q4_k_m"), std::nullopt);
}

TEST(Quantize, WhatIsNoLayerIsNamed) {
    const auto why = [](const std::string & bytes) { return status_text(quantize(bytes, GGML_TYPE_Q4_0)); };
    EXPECT_THAT(why(""), HasSubstr("the layer is no layer of a model"));
    EXPECT_THAT(why("{\"schemaVersion\":2}"), HasSubstr("the layer is no layer of a model"));
    EXPECT_THAT(why(GgufBuilder().tensor("a.weight").build()), HasSubstr("\"split.no\" is missing"));
    EXPECT_THAT(why(GgufBuilder().text("split.no", "1").build()), HasSubstr("\"split.no\" is missing"));
    EXPECT_THAT(why(GgufBuilder().u32("split.no", 65536).build()), HasSubstr("\"split.no\" is missing"));
    EXPECT_THAT(why(GgufBuilder().u16("split.no", 0).text("general.name", "x").build()), HasSubstr("a model's head"));
    EXPECT_THAT(why(GgufBuilder().u16("split.no", 1).text("general.name", "x").build()), HasSubstr("keys beside"));
    const std::string whole = layer({tensor("a.weight", {32, 4}, GGML_TYPE_F32, weights(128))});
    for (size_t size = 0; size < whole.size() - 31; ++size)
        EXPECT_THAT(why(whole.substr(0, size)), HasSubstr("no layer"));
    EXPECT_THAT(why(GgufBuilder().u16("split.no", 1).tensor("a.weight", {32, 2}, 1, GGML_TYPE_I32).build()),
                HasSubstr("tensor \"a.weight\" has the type I32"));
    EXPECT_THAT(
        why(GgufBuilder().u16("split.no", 1).tensor("a.weight", {(1 << 24) + 128, 2}, 1, GGML_TYPE_Q1_0).build()),
        HasSubstr("rows of 16777344 values, which are too long"));
}

TEST(Quantize, ValuesThatAreNotFiniteAreNamed) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -3e38F}) {
        auto values = weights(size_t{256} * 64);
        values[256 * 40 + 3] = bad;
        for (const auto & [type, ftype] : kTypes) {
            if (type == GGML_TYPE_F32 || (type == GGML_TYPE_BF16 && std::isfinite(bad))) continue; // that is kept
            EXPECT_THAT(status_text(quantize(layer({tensor("a.weight", {256, 64}, GGML_TYPE_F32, values)}), type)),
                        HasSubstr("tensor \"a.weight\""))
                << type_name(type);
        }
    }
    // What is no matrix is copied, whatever it is.
    const std::string norm = layer({tensor("a_norm.weight", {3}, GGML_TYPE_F32, {NAN, 1, 2})});
    EXPECT_EQ(*quantize(norm, GGML_TYPE_Q4_0), norm);
}

// ggml's quantizers abort on some values: whatever is let through to them ends as bytes or as an error.
TEST(Quantize, HostileValuesAbortNothing) {
    std::mt19937 random(1);
    const std::vector<float> odd = {0.0F,
                                    -0.0F,
                                    1e-45F,
                                    -1e-38F,
                                    1e-20F,
                                    1.0F,
                                    -1.0F,
                                    65504.0F,
                                    8e6F,
                                    -8e6F,
                                    1e9F,
                                    3e38F,
                                    std::numeric_limits<float>::infinity(),
                                    NAN};
    size_t made = 0;
    for (int round = 0; round < 300; ++round) {
        const size_t choice = 1 + random() % odd.size();
        std::vector<float> values = weights(2048, random());
        const uint32_t share = 1 + random() % 8;
        for (float & value : values) {
            if (random() % 8 < share) value = odd[random() % choice];
        }
        for (const auto & [type, ftype] : kTypes)
            made += quantize(layer({tensor("a.weight", {256, 8}, GGML_TYPE_F32, values)}), type).ok();
    }
    EXPECT_GT(made, 1000);
}

// Any bytes as the blocks of a quantized tensor.
TEST(Quantize, HostileBlocksAbortNothing) {
    for (const ggml_type from :
         {GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q8_0, GGML_TYPE_Q2_K, GGML_TYPE_Q4_K, GGML_TYPE_Q6_K,
          GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_XS,
          GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4, GGML_TYPE_NVFP4, GGML_TYPE_Q1_0, GGML_TYPE_Q2_0}) {
        for (uint32_t seed = 0; seed < 10; ++seed) {
            const auto bytes = GgufBuilder().u16("split.no", 1).tensor("a.weight", {256, 2}, seed, from).build();
            for (const auto & [type, ftype] : kTypes) (void)quantize(bytes, type);
        }
    }
}

} // namespace
} // namespace strata::layers
