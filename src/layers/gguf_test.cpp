#include "layers/gguf.h"
#include "layers/gguf_model.h"
#include "layers/gguf_testing.h"
#include "layers/shard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <random>

namespace strata::layers {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::small_model;

absl::StatusOr<GgufHeader> parse(std::string_view bytes) {
    return parse_gguf("file.gguf", bytes, bytes.size());
}

// Parses, checks and cuts a file as an import does, and reads every byte that the result points to.
absl::Status import_in_memory(std::string_view bytes) {
    absl::StatusOr<GgufHeader> header = parse(bytes);
    STRATA_RETURN_IF_ERROR(header.status());
    STRATA_ASSIGN_OR_RETURN(const GgufModel model, make_model(std::span(&*header, 1)));
    for (const Shard & shard : make_shards(model)) {
        for (const ShardTensor & tensor : shard.tensors) {
            const GgufTensor & source = *tensor.source.tensor;
            EXPECT_LE(source.offset + source.length, bytes.size());
            EXPECT_LE(tensor.offset + source.length, shard.size);
        }
    }
    for (const GgufValue * value : model.values) EXPECT_LT(value->as_text(100).size(), 1000u);
    return absl::OkStatus();
}

void expect_refused(const std::string & bytes, const std::string & sentence) {
    const absl::Status status = import_in_memory(bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("file.gguf: "));
    EXPECT_THAT(std::string(status.message()), HasSubstr(sentence));
}

TEST(Gguf, ReadsWhatWasWritten) {
    const GgufBuilder builder = small_model();
    const std::string bytes = builder.build();
    const auto header = parse(bytes);
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->version, 3u);
    EXPECT_EQ(header->values.size(), builder.pairs.size());
    for (size_t i = 0; i < builder.pairs.size(); ++i) EXPECT_EQ(header->values[i].pair, builder.pairs[i]);
    EXPECT_EQ(header->find("general.name")->as_string(), "Small");
    EXPECT_EQ(header->find("llama.context_length")->as_unsigned(), 128u);
    EXPECT_EQ(header->find("tokenizer.ggml.tokens")->count, 4u);
    EXPECT_EQ(header->find("nothing"), nullptr);

    ASSERT_EQ(header->tensors.size(), builder.tensors.size());
    for (size_t i = 0; i < builder.tensors.size(); ++i) {
        const GgufTensor & tensor = header->tensors[i];
        EXPECT_EQ(tensor.name, builder.tensors[i].name);
        EXPECT_EQ(bytes.substr(tensor.offset, tensor.length), builder.tensors[i].data);
        EXPECT_EQ(tensor.offset % 32, 0u);
    }
    EXPECT_TRUE(import_in_memory(bytes).ok());
}

TEST(Gguf, TakesVersion2AndCustomAlignmentAndScalars) {
    GgufBuilder builder = small_model();
    builder.version = 2;
    EXPECT_TRUE(import_in_memory(builder.build()).ok());
    for (const uint32_t alignment : {1u, 8u, 64u, 4096u}) {
        GgufBuilder aligned = small_model();
        aligned.set_alignment(alignment);
        EXPECT_TRUE(import_in_memory(aligned.build()).ok()) << alignment;
    }
    GgufBuilder scalar = small_model();
    scalar.tensor("scale", {});
    const std::string bytes = scalar.build();
    const auto header = parse(bytes);
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->tensors.back().dimensions, 1u);
    EXPECT_EQ(header->tensors.back().length, 4u);
}

TEST(Gguf, TheLastTensorNeedNoPadding) {
    GgufBuilder builder = small_model();
    builder.tensor("rope_freqs.weight", {1});
    std::string bytes = builder.build();
    bytes.resize(bytes.size() - 28);
    EXPECT_TRUE(import_in_memory(bytes).ok());
    bytes.pop_back();
    expect_refused(
        bytes, fmt::format("tensor \"rope_freqs.weight\": offset 1088 + 4 bytes lies beyond the end of the file ({} "
                           "bytes)",
                           bytes.size()));
}

// The start of the file.
TEST(GgufHostile, Start) {
    expect_refused("", "magic: 4 bytes are needed at byte 0, but the file ends after 0 bytes");
    expect_refused("GGUF", "version: 4 bytes are needed at byte 4, but the file ends after 4 bytes");
    const auto with = [](auto change) {
        GgufBuilder builder = small_model();
        change(builder);
        return builder.build();
    };
    expect_refused(with([](auto & b) { b.magic = "FUGG"; }), "it does not begin with \"GGUF\"");
    for (const uint32_t version : {0u, 1u, 4u, 0xffffffffu}) {
        expect_refused(with([&](auto & b) { b.version = version; }), fmt::format("version {} of GGUF", version));
    }
    expect_refused(with([](auto & b) { b.version = 0x03000000; }), "big-endian");
    for (const int64_t more : {int64_t{1000}, int64_t{1} << 40, int64_t{-100}, INT64_MAX}) {
        expect_refused(with([&](auto & b) { b.more_keys = more; }), "the number of keys");
        expect_refused(with([&](auto & b) { b.more_tensors = more; }), "the number of tensors");
    }
    EXPECT_FALSE(import_in_memory(with([](auto & b) { b.more_keys = 1; })).ok());
    EXPECT_FALSE(import_in_memory(with([](auto & b) { b.more_tensors = 1; })).ok());
}

// Keys and values.
TEST(GgufHostile, Keys) {
    const auto with = [](auto change) {
        GgufBuilder builder = small_model();
        change(builder);
        return builder.build();
    };
    const auto raw_key = [&](uint64_t size, std::string_view bytes) {
        return with([&](GgufBuilder & b) {
            std::string & pair = b.pairs.emplace_back();
            append(pair, size);
            pair += bytes;
        });
    };
    expect_refused(raw_key(UINT64_MAX, "x"), "key 10 of 10: name of 18446744073709551615 bytes is longer than 65535");
    expect_refused(raw_key(UINT64_MAX - 7, "x"), "is longer than");
    expect_refused(raw_key(60000, "x"), "name: 60000 bytes are needed at byte");
    expect_refused(raw_key(0, ""), "the name is empty");
    expect_refused(with([](auto & b) { b.u32("with space", 1); }), "key \"with space\": the name has characters");
    expect_refused(with([](auto & b) { b.u32(std::string_view("nul\0", 4), 1); }),
                   "key \"nul\\x00\": the name has characters");
    expect_refused(with([](auto & b) { b.u32("general.name", 1); }),
                   "key \"general.name\": there are two of this name");
    for (const int32_t type : {13, 1000, -1, INT32_MIN}) {
        expect_refused(with([&](auto & b) { b.start("k", type) += "12345678"; }),
                       fmt::format("key \"k\": type {} is unknown", type));
        expect_refused(with([&](auto & b) { b.start_array("k", type, 1) += "12345678"; }),
                       fmt::format("key \"k\": type {} is unknown", type));
    }
    expect_refused(with([](auto & b) { b.start_array("k", GGUF_TYPE_ARRAY, 1) += "12345678"; }), "an array of arrays");
    for (const uint64_t count : {uint64_t{1} << 20, uint64_t{1} << 61, uint64_t{1} << 63, UINT64_MAX}) {
        for (const gguf_type type : {GGUF_TYPE_UINT8, GGUF_TYPE_UINT32, GGUF_TYPE_FLOAT64, GGUF_TYPE_STRING}) {
            expect_refused(with([&](auto & b) { b.start_array("k", type, count); }), "lie beyond the end of the file");
        }
    }
    for (const uint64_t size : {uint64_t{1} << 20, uint64_t{1} << 40, UINT64_MAX - 1, UINT64_MAX}) {
        EXPECT_FALSE(import_in_memory(with([&](auto & b) { append(b.start("k", GGUF_TYPE_STRING), size); })).ok())
            << size;
        EXPECT_FALSE(
            import_in_memory(with([&](auto & b) { append(b.start_array("k", GGUF_TYPE_STRING, 1), size); })).ok());
    }
    for (const uint32_t alignment : {0u, 3u, 13u, 0x80000000u, 0xffffffffu}) {
        expect_refused(with([&](auto & b) { b.u32("general.alignment", alignment); }),
                       fmt::format("key \"general.alignment\": {} is not a power of two", alignment));
    }
    expect_refused(with([](auto & b) { b.i32("general.alignment", 32); }),
                   "key \"general.alignment\": the type is i32, not u32");
    expect_refused(with([](auto & b) { b.template numbers<uint32_t>("general.alignment", GGUF_TYPE_UINT32, {32}); }),
                   "key \"general.alignment\": the type is an array of u32, not u32");
}

// Tensor infos and data.
TEST(GgufHostile, Tensors) {
    // `change` gets the last tensor, "last" of 64 bytes.
    const auto with = [](auto change) {
        GgufBuilder builder = small_model();
        builder.tensor("last", {16});
        change(builder.tensors.back());
        return builder.build();
    };
    ASSERT_TRUE(import_in_memory(with([](auto &) {})).ok());
    expect_refused(with([](auto & t) { t.name = std::string(64, 'x'); }), "name of 64 bytes is longer than 63");
    expect_refused(with([](auto & t) { t.name = ""; }), "the name is empty");
    expect_refused(with([](auto & t) { t.name = "a\nb"; }), "tensor \"a\\x0ab\": the name has characters");
    expect_refused(with([](auto & t) { t.name = std::string("output_norm.weight\0", 19); }), "the name has characters");
    expect_refused(with([](auto & t) { t.name = "output_norm.weight"; }),
                   "tensor \"output_norm.weight\": there are two of this name");
    for (const uint32_t dimensions : {5u, 255u, 0xffffffffu}) {
        expect_refused(with([&](auto & t) { t.dimensions = {dimensions}; }),
                       fmt::format("tensor \"last\": {} dimensions are more than 4", dimensions));
    }
    expect_refused(with([](auto & t) { t.shape = {-1}; }), "tensor \"last\": dimension 0 has -1 elements");
    expect_refused(with([](auto & t) { t.shape = {0, 256}; }), "tensor \"last\": dimension 0 has 0 elements");
    expect_refused(with([](auto & t) { t.shape = {16, 0}; }), "tensor \"last\": dimension 1 has 0 elements");
    expect_refused(with([](auto & t) { t.shape = {INT64_MAX, 2}; }), "more elements than can be counted");
    expect_refused(with([](auto & t) {
                       t.shape = {int64_t{1} << 32, int64_t{1} << 32};
                   }),
                   "more elements than can be counted");
    expect_refused(with([](auto & t) {
                       t.shape = {1 << 16, 1 << 16, 1 << 16, 1 << 16};
                   }),
                   "more elements than can be counted");
    expect_refused(with([](auto & t) { t.shape = {(int64_t{1} << 62) + 16}; }),
                   "its size in bytes is more than can be counted");
    expect_refused(with([](auto & t) { t.shape = {17}; }), "+ 68 bytes lies beyond the end of the file");
    expect_refused(with([](auto & t) { t.type = GGML_TYPE_I8, t.shape = {0x7FFFFFFFFFFFFFC0}; }),
                   "+ 9223372036854775744 bytes lies beyond the end of the file");
    for (const int32_t type : {int32_t{GGML_TYPE_COUNT}, 0x100, -1, INT32_MIN}) {
        expect_refused(with([&](auto & t) { t.type = type; }),
                       fmt::format("tensor \"last\": type {} is unknown", type));
    }
    for (const int32_t type : {4, 5, 31, 36}) {
        expect_refused(with([&](auto & t) { t.type = type; }), fmt::format("type {} is no longer supported", type));
    }
    expect_refused(with([](auto & t) { t.type = GGML_TYPE_Q4_1, t.shape = {16}; }),
                   "a row of 16 elements is not a multiple of Q4_1's block of 32");
    for (const uint64_t offset : {UINT64_MAX, UINT64_MAX - 31, uint64_t{1} << 40}) {
        expect_refused(with([&](auto & t) { t.offset = {offset}; }),
                       fmt::format("tensor \"last\": offset {} + 64 bytes lies beyond the end of the file", offset));
    }
    // Overlap, and a gap that nobody checks.
    expect_refused(with([](auto & t) { t.offset = {0}; }),
                   "tensor \"last\": offset 0 is not where the tensor before it ends");
    expect_refused(with([](auto & t) { t.offset = {33}; }), "offset 33 is not where");
    // Upstream's HANDCRAFTED_DATA_MEM_SIZE_OVERFLOW: the sum of the sizes wraps.
    GgufBuilder wraps;
    wraps.tensors = {{"a", {0x7FFFFFFFFFFFFFC0}, GGML_TYPE_I8, std::string(32, 'x')},
                     {"b", {0x7FFFFFFFFFFFFFC0}, GGML_TYPE_I8, ""}};
    wraps.tensors[1].offset = {0x7FFFFFFFFFFFFFC0};
    expect_refused(wraps.build(), "tensor \"a\": offset 0 + 9223372036854775744 bytes lies beyond the end of the file");
}

// What a model must have beyond being a GGUF file.
TEST(GgufHostile, Model) {
    const auto without = [](std::string_view key) {
        GgufBuilder builder = small_model();
        std::erase_if(builder.pairs, [&](const std::string & pair) { return pair.substr(8, key.size()) == key; });
        return builder;
    };
    expect_refused(without("general.architecture").build(), "the key \"general.architecture\" is missing");
    expect_refused(without("llama.block_count").build(), "the key \"llama.block_count\" is missing");
    expect_refused(without("llama.block_count").u32("llama.block_count", 0).build(),
                   "key \"llama.block_count\": 0 blocks");
    expect_refused(without("llama.block_count").u32("llama.block_count", 0xffffffff).build(),
                   "key \"llama.block_count\": 4294967295 blocks");
    expect_refused(without("llama.block_count").i32("llama.block_count", -1).build(),
                   "key \"llama.block_count\": is not a number from 0 on");
    expect_refused(without("llama.block_count").u32("llama.block_count", 3).build(), "block 2 of 3 has no tensors");
    expect_refused(without("llama.block_count").u32("llama.block_count", 1).build(),
                   "tensor \"blk.1.attn_q.weight\": is not in one of the 1 blocks that \"llama.block_count\" says");
    expect_refused(without("general.architecture").u32("general.architecture", 1).build(), "is not a string");
    expect_refused(without("general.architecture").text("general.architecture", "../../x").build(), "is not a name");
    expect_refused(without("general.architecture").text("general.architecture", "").build(), "is not a name");
    expect_refused(small_model().text("general.type", "adapter").build(),
                   "the file is of type \"adapter\", not a model");
    for (const std::string name :
         {"blk.2.x", "blk.99999999999999999999.x", "blk.-1.x", "blk.x.y", "blk..x", "blk.01.x", "blk.0"}) {
        expect_refused(small_model().tensor(name).build(),
                       fmt::format("tensor \"{}\": is not in one of the 2 blocks", name));
    }
    for (const uint32_t id : {4u, 0x7fffffffu, 0xffffffffu}) {
        expect_refused(
            without("tokenizer.ggml.bos_token_id").u32("tokenizer.ggml.bos_token_id", id).build(),
            fmt::format("key \"tokenizer.ggml.bos_token_id\": token {} is outside of the vocabulary of 4 tokens", id));
    }
    expect_refused(small_model().i32("tokenizer.ggml.eot_token_id", -1).build(),
                   "token -1 is outside of the vocabulary");
    expect_refused(small_model().text("tokenizer.ggml.eot_token_id", "x").build(),
                   "token x is outside of the vocabulary");
    expect_refused(small_model().numbers<float>("tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, {1, 2}).build(),
                   "key \"tokenizer.ggml.scores\": 2 elements for a vocabulary of 4 tokens");
    expect_refused(
        without("tokenizer.ggml.tokens").numbers<int32_t>("tokenizer.ggml.tokens", GGUF_TYPE_INT32, {1, 2}).build(),
        "key \"tokenizer.ggml.tokens\": is not an array of strings");
    GgufBuilder empty;
    expect_refused(empty.build(), "the key \"general.architecture\" is missing");
}

// Counts in a file of less than 1 kB must not make the reader allocate much.
TEST(GgufHostile, ASmallFileAllocatesLittle) {
    GgufBuilder builder;
    builder.text("general.architecture", "llama");
    std::string & pair = builder.start_array("k", GGUF_TYPE_UINT8, uint64_t{1} << 32);
    pair += "x";
    builder.more_tensors = 0xffff;
    rlimit before{};
    ASSERT_EQ(getrlimit(RLIMIT_DATA, &before), 0);
    rlimit tight = before;
    tight.rlim_cur = 64u << 20; // above what the process has
    std::string huge_key = small_model().build();
    const std::vector<std::string> files = {builder.build(), huge_key.substr(0, 16) + std::string(8, '\x7f') + "rest"};
    for (const std::string & file : files) {
        ASSERT_LT(file.size(), 1000u);
        ASSERT_EQ(setrlimit(RLIMIT_DATA, &tight), 0);
        const absl::Status status = import_in_memory(file);
        ASSERT_EQ(setrlimit(RLIMIT_DATA, &before), 0);
        EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    }
}

TEST(GgufHostile, EveryTruncationIsRefused) {
    const std::string whole = small_model().build();
    for (size_t size = 0; size < whole.size(); ++size) {
        // A copy of its own, so that a sanitizer sees a read beyond the end.
        const std::vector<char> part(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
        const absl::Status status = import_in_memory(std::string_view(part.data(), part.size()));
        ASSERT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size << ": " << status;
    }
}

TEST(GgufHostile, EveryFlippedBitIsRefusedOrHarmless) {
    const GgufBuilder builder = small_model();
    const std::string whole = builder.build();
    const size_t header = builder.header().size();
    for (size_t bit = 0; bit < header * 8; ++bit) {
        std::vector<char> bytes(whole.begin(), whole.end());
        bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
        const absl::Status status = import_in_memory(std::string_view(bytes.data(), bytes.size()));
        ASSERT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << bit << ": " << status;
    }
}

TEST(GgufHostile, RandomBytesInTheHeader) {
    const GgufBuilder builder = small_model();
    const std::string whole = builder.build();
    const size_t header = builder.header().size();
    std::mt19937 random(1);
    for (int i = 0; i < 20000; ++i) {
        std::vector<char> bytes(whole.begin(), whole.end());
        for (unsigned changes = random() % 8 + 1; changes > 0; --changes) {
            bytes[random() % header] = random() % 2 == 0 ? static_cast<char>(random()) : '\xff';
        }
        const absl::Status status = import_in_memory(std::string_view(bytes.data(), bytes.size()));
        ASSERT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
    }
}

// Files that fuzzing or people found; none may do more than be refused.
TEST(GgufHostile, Corpus) {
    size_t files = 0;
    for (const auto & entry : std::filesystem::directory_iterator(STRATA_CORPUS "/gguf")) {
        std::ifstream file(entry.path(), std::ios::binary);
        const std::string bytes{std::istreambuf_iterator<char>(file), {}};
        const absl::Status status = import_in_memory(bytes);
        // Only one is a model: what an import must do with a fuzzer's first seed.
        const bool valid = entry.path().filename().string().starts_with("valid");
        EXPECT_EQ(status.code(), valid ? absl::StatusCode::kOk : absl::StatusCode::kInvalidArgument)
            << entry.path() << ": " << status;
        ++files;
    }
    EXPECT_GT(files, 0u);
}

TEST(Gguf, AsksForMoreOfALongHeader) {
    const std::string whole = small_model().build();
    for (size_t size = 0; size < 600; ++size) {
        EXPECT_EQ(parse_gguf("f", std::string_view(whole).substr(0, size), whole.size()).status().code(),
                  absl::StatusCode::kOutOfRange);
    }
}

TEST(Gguf, ValuesAsText) {
    const std::string bytes = GgufBuilder()
                                  .text("a", "caf\xc3\xa9\n\x1b\xff")
                                  .text("b", std::string(200, 'x'))
                                  .i32("c", -5)
                                  .number<float>("d", GGUF_TYPE_FLOAT32, 0.5f)
                                  .number<uint8_t>("e", GGUF_TYPE_BOOL, 1)
                                  .texts("f", {"a", "b\xff"})
                                  .numbers<uint32_t>("g", GGUF_TYPE_UINT32, {1, 2, 3, 4, 5, 6})
                                  .texts("h", {})
                                  .build();
    const auto header = parse(bytes);
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->find("a")->as_text(100), "caf\xc3\xa9\n\\x1b\\xff");
    EXPECT_EQ(header->find("b")->as_text(100), std::string(100, 'x') + "...");
    EXPECT_EQ(header->find("c")->as_text(100), "-5");
    EXPECT_EQ(header->find("c")->as_unsigned(), std::nullopt);
    EXPECT_EQ(header->find("d")->as_text(100), "0.5");
    EXPECT_EQ(header->find("e")->as_text(100), "true");
    EXPECT_EQ(header->find("f")->as_text(100), "[\"a\", \"b\\xff\"]");
    EXPECT_EQ(header->find("g")->as_text(100), "[1, 2, 3, 4, ... 6 in all]");
    EXPECT_EQ(header->find("h")->as_text(100), "[]");
}

class GgufFileTest : public ::testing::Test {
protected:
    void SetUp() override {
        std::string pattern = std::filesystem::temp_directory_path() / "strata-gguf-XXXXXX";
        ASSERT_NE(mkdtemp(pattern.data()), nullptr);
        folder_ = pattern;
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }
    std::filesystem::path write(std::string_view name, std::string_view bytes) {
        std::ofstream(folder_ / name, std::ios::binary) << bytes;
        return folder_ / name;
    }
    std::filesystem::path folder_;
};

TEST_F(GgufFileTest, OpensFilesAndLinksToFiles) {
    const GgufBuilder builder = small_model();
    const std::filesystem::path path = write("a.gguf", builder.build());
    std::filesystem::create_symlink(path, folder_ / "link");
    for (const auto & name : {path, folder_ / "link"}) {
        const auto file = GgufFile::open(name);
        ASSERT_TRUE(file.ok()) << file.status();
        const GgufTensor & tensor = file->header().tensors[1];
        std::string data(tensor.length, '\0');
        ASSERT_TRUE(file->read(tensor.offset, std::as_writable_bytes(std::span(data))).ok());
        EXPECT_EQ(data, builder.tensors[1].data);
        EXPECT_EQ(file->read(file->size() - 1, std::as_writable_bytes(std::span(data))).code(),
                  absl::StatusCode::kDataLoss);
    }
}

TEST_F(GgufFileTest, ReadsAHeaderLargerThanTheFirstRead) {
    GgufBuilder builder = small_model();
    builder.text("long", std::string(9u << 20, 'x'));
    const auto file = GgufFile::open(write("a.gguf", builder.build()));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->header().find("long")->as_string()->size(), 9u << 20);
    EXPECT_EQ(file->header().tensors.size(), builder.tensors.size());
}

TEST_F(GgufFileTest, TakesOnlyRegularFiles) {
    ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
    for (const std::filesystem::path & path :
         {folder_, folder_ / "pipe", std::filesystem::path("/dev/random"), std::filesystem::path("/dev/null")}) {
        EXPECT_THAT(std::string(GgufFile::open(path).status().message()), HasSubstr("is not a regular file")) << path;
    }
    EXPECT_EQ(GgufFile::open(folder_ / "nothing").status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(GgufFile::open(write("empty", "")).status().message()),
                HasSubstr("the file ends after 0 bytes"));
}

} // namespace
} // namespace strata::layers
