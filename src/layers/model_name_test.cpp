#include "layers/model_name.h"

#include <gtest/gtest.h>

namespace strata::layers {
namespace {

TEST(ModelName, ParseTakesNameAndTag) {
    const auto plain = ModelName::parse("smollm2");
    ASSERT_TRUE(plain.ok());
    EXPECT_EQ(plain->to_string(), "smollm2:latest");
    const auto full = ModelName::parse("org/smol_lm2-135m.v2:Q4_1");
    ASSERT_TRUE(full.ok());
    EXPECT_EQ(full->name, "org/smol_lm2-135m.v2");
    EXPECT_EQ(full->tag, "Q4_1");
}

TEST(ModelName, ParseRefusesWhatIsUnsafeOrAmbiguous) {
    for (const std::string & bad :
         {std::string(),          std::string(":"),      std::string("a:"),       std::string(":a"),
          std::string("A"),       std::string("a b"),    std::string("a\nb"),     std::string("a\x1b[31m"),
          std::string("a\0b", 3), std::string("../a"),   std::string("a/../b"),   std::string("/a"),
          std::string("a/"),      std::string("a//b"),   std::string("a..b"),     std::string("-a"),
          std::string("a-"),      std::string("a:b:c"),  std::string("a:.b"),     std::string("a:-b"),
          std::string("a:b/c"),   std::string("a:\x7f"), std::string("\xc3\xa4"), "a:" + std::string(129, 't'),
          std::string(256, 'a'),  std::string(250, 'a') /* with ":latest" too long */}) {
        const auto parsed = ModelName::parse(bad);
        EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << bad;
        for (const char c : parsed.status().message()) EXPECT_GE(static_cast<unsigned char>(c), 0x20) << bad;
    }
    EXPECT_TRUE(ModelName::parse("a:" + std::string(128, 't')).ok());
}

TEST(ModelName, FromFileFindsTheQuantization) {
    const std::pair<std::string, std::string> cases[] = {
        {"SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct:q4_1"},
        {"/models/smollm2-135m-instruct-q4_1.gguf", "smollm2-135m-instruct:q4_1"},
        {"Meta-Llama-3-8B-Instruct-Q4_K_M.GGUF", "meta-llama-3-8b-instruct:q4_k_m"},
        {"qwen2.5-7b-IQ2_XXS-00001-of-00003.gguf", "qwen2.5-7b:iq2_xxs"},
        {"gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b:mxfp4"},
        {"Qwen3-30B-UD-Q4_K_XL.gguf", "qwen3-30b:ud-q4_k_xl"},
        {"all-MiniLM-L6-v2_f16.gguf", "all-minilm-l6-v2:f16"},
        {"tiny.gguf", "tiny:latest"},
        {"q4_1.gguf", "q4_1:latest"},
        {"a model (1).gguf", "a-model-1:latest"},
        {"\xc3\xa4\xc3\xb6.gguf", "model:latest"},
        {"", "model:latest"},
        {"..", "model:latest"},
        {".gguf", "gguf:latest"},
    };
    for (const auto & [file, name] : cases) EXPECT_EQ(ModelName::from_file(file).to_string(), name) << file;
}

TEST(ModelName, FromFileIsAlwaysValid) {
    std::string text;
    for (int i = 0; i < 2000; ++i) {
        text += static_cast<char>(i * 7919 % 256);
        if (text.size() > 300) text.erase(0, 150);
        const ModelName name = ModelName::from_file(text + "-q8_0.gguf");
        const auto parsed = ModelName::parse(name.to_string());
        ASSERT_TRUE(parsed.ok()) << name.to_string();
        EXPECT_EQ(*parsed, name);
    }
}

} // namespace
} // namespace strata::layers
