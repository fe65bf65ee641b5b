#include "layers/gguf_testing.h"
#include "layers/shard.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace strata::layers {
namespace {

using testing::GgufBuilder;
using testing::small_model;
using Names = std::vector<std::string>;

// The bytes of all shards of the model whose files are `files`.
std::vector<std::string> cut(const std::vector<std::string> & files) {
    std::vector<GgufHeader> headers;
    for (const std::string & bytes : files) {
        auto header = parse_gguf("file.gguf", bytes, bytes.size());
        EXPECT_TRUE(header.ok()) << header.status();
        if (!header.ok()) return {};
        headers.push_back(*std::move(header));
    }
    const auto model = make_model(headers);
    EXPECT_TRUE(model.ok()) << model.status();
    if (!model.ok()) return {};
    std::vector<std::string> shards;
    for (const Shard & shard : make_shards(*model)) {
        std::string bytes = shard.header;
        for (const ShardTensor & tensor : shard.tensors) {
            bytes.resize(tensor.offset, '\0');
            bytes += files[tensor.source.part].substr(tensor.source.tensor->offset, tensor.source.tensor->length);
        }
        bytes.resize(shard.size, '\0');
        shards.push_back(bytes);
    }
    return shards;
}

std::vector<std::string> names(std::string_view shard) {
    std::vector<std::string> result;
    const auto header = parse_gguf("shard", shard, shard.size());
    if (!header.ok()) return {std::string(header.status().message())};
    for (const GgufTensor & tensor : header->tensors) result.emplace_back(tensor.name);
    return result;
}

// The same model as files of a split one, the way that llama-gguf-split writes it: metadata in the first file only.
std::vector<std::string> split(const GgufBuilder & whole, size_t files) {
    std::vector<GgufBuilder> parts(files);
    parts[0].pairs = whole.pairs;
    for (size_t i = 0; i < files; ++i) {
        parts[i].u16("split.no", static_cast<uint16_t>(i));
        if (i > 0) continue;
        parts[i].u16("split.count", static_cast<uint16_t>(files));
        parts[i].i32("split.tensors.count", static_cast<int32_t>(whole.tensors.size()));
    }
    for (size_t i = 0; i < whole.tensors.size(); ++i) {
        parts[i * files / whole.tensors.size()].tensors.push_back(whole.tensors[i]);
    }
    std::vector<std::string> result;
    for (const GgufBuilder & part : parts) result.push_back(part.build());
    return result;
}

// A layer's header can be made from what a model's index says of it.
TEST(Shard, AHeaderFromTheIndexIsTheShards) {
    const std::string file = small_model(3).build();
    auto header = parse_gguf("file.gguf", file, file.size());
    ASSERT_TRUE(header.ok());
    const auto model = make_model(std::span(&*header, 1));
    ASSERT_TRUE(model.ok());
    const std::vector<Shard> shards = make_shards(*model);
    for (size_t i = 1; i < shards.size(); ++i) {
        LayerEntry entry;
        entry.kind = shards[i].kind;
        entry.block = shards[i].block;
        for (const ShardTensor & tensor : shards[i].tensors) {
            const GgufTensor & from = *tensor.source.tensor;
            entry.tensors.push_back({std::string(from.name),
                                     type_name(from.type),
                                     {from.shape.begin(), from.shape.begin() + from.dimensions},
                                     tensor.offset,
                                     from.length,
                                     Digest()});
        }
        const auto made = shard_header(entry, i);
        ASSERT_TRUE(made.ok()) << made.status();
        EXPECT_EQ(*made, shards[i].header) << i;
        if (entry.tensors.empty()) continue;
        entry.tensors.back().offset += 32;
        EXPECT_FALSE(shard_header(entry, i).ok());
        entry.tensors.back().type = "Q99";
        EXPECT_FALSE(shard_header(entry, i).ok());
    }
}

TEST(Shard, LayersOfADecoder) {
    const GgufBuilder builder = small_model(2);
    const std::vector<std::string> shards = cut({builder.build()});
    ASSERT_EQ(shards.size(), 5u);
    EXPECT_EQ(names(shards[0]), (Names{}));
    EXPECT_EQ(names(shards[1]), (Names{"token_embd.weight"}));
    EXPECT_EQ(names(shards[2]), (Names{"blk.0.attn_norm.weight", "blk.0.attn_q.weight"}));
    EXPECT_EQ(names(shards[3]), (Names{"blk.1.attn_norm.weight", "blk.1.attn_q.weight"}));
    EXPECT_EQ(names(shards[4]), (Names{"output_norm.weight"}));

    for (size_t i = 0; i < shards.size(); ++i) {
        EXPECT_EQ(shards[i].size() % 32, 0u);
        const auto header = parse_gguf("shard", shards[i], shards[i].size());
        ASSERT_TRUE(header.ok()) << header.status();
        EXPECT_EQ(header->find("split.no")->type, GGUF_TYPE_UINT16);
        EXPECT_EQ(header->find("split.no")->as_unsigned(), i);
        EXPECT_EQ(header->values.size() == 1, i > 0);
        for (const GgufTensor & tensor : header->tensors) {
            const auto source = std::find_if(builder.tensors.begin(), builder.tensors.end(),
                                             [&](const auto & other) { return other.name == tensor.name; });
            ASSERT_NE(source, builder.tensors.end());
            EXPECT_EQ(shards[i].substr(tensor.offset, tensor.length), source->data) << tensor.name;
        }
    }
    // The head: all metadata as it was, and what llama.cpp needs of a split model.
    const auto head = parse_gguf("head", shards[0], shards[0].size());
    ASSERT_EQ(head->values.size(), builder.pairs.size() + 3);
    for (size_t i = 0; i < builder.pairs.size(); ++i) EXPECT_EQ(head->values[i].pair, builder.pairs[i]);
    EXPECT_EQ(head->find("split.count")->type, GGUF_TYPE_UINT16);
    EXPECT_EQ(head->find("split.count")->as_unsigned(), 5u);
    EXPECT_EQ(head->find("split.tensors.count")->type, GGUF_TYPE_INT32);
    EXPECT_EQ(head->find("split.tensors.count")->as_unsigned(), builder.tensors.size());
}

TEST(Shard, TailsOfAllArchitectures) {
    GgufBuilder builder = small_model(1);
    for (const char * name :
         {"output.weight", "output.bias", "output_norm.bias", "output_hc_fn.weight", "cls.weight", "cls.output.bias",
          "cls.norm.weight", "enc.output_norm.weight", "dec.output_norm.weight", "dense_2.weight", "rope_freqs.weight",
          "token_embd_norm.weight", "position_embd.weight", "per_layer_token_embd.weight", "outputs.weight"}) {
        builder.tensor(name);
    }
    const std::vector<std::string> shards = cut({builder.build()});
    EXPECT_EQ(names(shards[1]), (Names{"outputs.weight", "per_layer_token_embd.weight", "position_embd.weight",
                                       "rope_freqs.weight", "token_embd.weight", "token_embd_norm.weight"}));
    EXPECT_EQ(names(shards[3]).size(), 11u);
}

TEST(Shard, EncoderDecoderBlocks) {
    GgufBuilder builder;
    builder.text("general.architecture", "t5").u32("t5.block_count", 1).u32("t5.decoder_block_count", 2);
    builder.tensor("token_embd.weight").tensor("enc.blk.0.attn_q.weight").tensor("dec.blk.0.attn_q.weight");
    builder.tensor("dec.blk.1.attn_q.weight");
    const std::vector<std::string> shards = cut({builder.build()});
    ASSERT_EQ(shards.size(), 5u);
    EXPECT_EQ(names(shards[2]), (Names{"dec.blk.0.attn_q.weight", "enc.blk.0.attn_q.weight"}));
    EXPECT_EQ(names(shards[3]), (Names{"dec.blk.1.attn_q.weight"}));
    EXPECT_EQ(names(shards[4]), (Names{}));
}

TEST(Shard, EqualLayersAreEqualBytes) {
    const GgufBuilder one = small_model(3);
    const std::vector<std::string> shards = cut({one.build()});

    GgufBuilder renamed = small_model(3);
    renamed.text("general.author", "Somebody");
    const std::vector<std::string> other_head = cut({renamed.build()});
    EXPECT_NE(shards[0], other_head[0]);
    EXPECT_TRUE(std::equal(shards.begin() + 1, shards.end(), other_head.begin() + 1, other_head.end()));

    GgufBuilder trained = small_model(3);
    trained.tensors[3].data[5] ^= 1; // blk.1.attn_q.weight
    const std::vector<std::string> other_block = cut({trained.build()});
    for (size_t i = 0; i < shards.size(); ++i) EXPECT_EQ(shards[i] != other_block[i], i == 3) << i;

    // The order of tensors, the alignment and the version of the file, and its being split, don't matter.
    GgufBuilder reordered = small_model(3);
    std::reverse(reordered.tensors.begin(), reordered.tensors.end());
    EXPECT_EQ(cut({reordered.build()}), shards);
    GgufBuilder old = small_model(3);
    old.version = 2;
    EXPECT_EQ(cut({old.build()}), shards);
    GgufBuilder aligned = small_model(3);
    aligned.set_alignment(8);
    const std::vector<std::string> other_alignment = cut({aligned.build()});
    EXPECT_TRUE(std::equal(shards.begin() + 1, shards.end(), other_alignment.begin() + 1, other_alignment.end()));
    std::vector<std::string> parts = split(one, 3);
    EXPECT_EQ(cut(parts), shards);
    std::swap(parts[0], parts[2]);
    EXPECT_EQ(cut(parts), shards);
}

std::string error(const std::vector<std::string> & files) {
    std::vector<GgufHeader> headers;
    for (size_t i = 0; i < files.size(); ++i) {
        headers.push_back(*parse_gguf(fmt::format("f{}", i), files[i], files[i].size()));
    }
    return std::string(make_model(headers).status().message());
}

TEST(Shard, SplitModelsMustBeWhole) {
    const GgufBuilder whole = small_model();
    const std::vector<std::string> parts = split(whole, 3);
    EXPECT_EQ(error({parts[0]}),
              "f0: key \"split.count\": the model is split into 3 files, but 1 was given; give all of its files");
    EXPECT_EQ(error({parts[1]}), "f0: it is file 2 of a split model, but only 1 file was given; give all of its files");
    EXPECT_EQ(error({parts[0], parts[1]}),
              "f0: key \"split.count\": the model is split into 3 files, but 2 were given; give all of its files");
    EXPECT_EQ(error({parts[0], parts[1], parts[1]}), "f2: file 2 of the split model was given twice");
    EXPECT_EQ(error({whole.build(), whole.build()}), "f0: the key \"split.no\" is missing");
    EXPECT_EQ(error({}), "no file was given to import");

    GgufBuilder twice = whole;
    twice.tensors.push_back(whole.tensors.front());
    EXPECT_EQ(error(split(twice, 2)), "f1: tensor \"token_embd.weight\": is also in f0");

    std::vector<std::string> wrong_count = split(whole, 2);
    GgufBuilder more;
    more.u16("split.no", 1).tensor("extra.weight");
    wrong_count[1] = more.build();
    EXPECT_EQ(error(wrong_count),
              "f0: key \"split.tensors.count\": 6 tensors are expected, but the files of the split model have 4");
}

} // namespace
} // namespace strata::layers
