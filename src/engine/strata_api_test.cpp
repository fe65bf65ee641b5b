// The C interface as a program uses it: strata.h alone, with real models.
#include "strata/strata.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

fs::path cached_model(const char * variable, const char * file) {
    if (const char * path = std::getenv(variable)) return path;
    if (const char * cache = std::getenv("STRATA_CACHE")) return fs::path(cache) / "models" / file;
    if (const char * cache = std::getenv("XDG_CACHE_HOME")) return fs::path(cache) / "strata/models" / file;
    return fs::path(std::getenv("HOME")) / ".cache/strata/models" / file;
}

const fs::path kSmolLm2 = cached_model("STRATA_TEST_MODEL", "smollm2-135m-instruct-q4_1.gguf");
const fs::path kMiniLm = cached_model("STRATA_TEST_EMBEDDING_MODEL", "minilm-f16.gguf");
constexpr const char * kPrompt = "The capital of France is";

struct CloseModel {
    void operator()(strata_model * model) const { strata_model_close(model); }
};
struct CloseSession {
    void operator()(strata_session * session) const { strata_session_close(session); }
};
struct Free {
    void operator()(void * pointer) const { strata_free(pointer); }
};
using Model = std::unique_ptr<strata_model, CloseModel>;
using Session = std::unique_ptr<strata_session, CloseSession>;
using Text = std::unique_ptr<char, Free>;

Model open_model(const fs::path & path, const strata_model_options * options = nullptr) {
    strata_model * model = nullptr;
    EXPECT_EQ(strata_model_open(path.c_str(), options, &model), STRATA_OK)
        << strata_last_error() << "\n(scripts/test-models.sh makes the test models)";
    return Model(model);
}

Session open_session(strata_model * model, int32_t context = 512, bool embeddings = false) {
    strata_session_options options;
    STRATA_INIT(&options);
    options.context_tokens = context;
    options.embeddings = embeddings;
    options.threads = 1; // ggml's threads spin, which is slow where tests run side by side
    strata_session * session = nullptr;
    EXPECT_EQ(strata_session_open(model, &options, &session), STRATA_OK) << strata_last_error();
    return Session(session);
}

strata_sampling sampling_of(int32_t max_tokens) {
    strata_sampling sampling;
    STRATA_INIT(&sampling);
    sampling.max_tokens = max_tokens;
    return sampling;
}

bool append(const strata_token * token, void * user) {
    EXPECT_EQ(std::strlen(token->text), token->text_bytes);
    static_cast<std::string *>(user)->append(token->text, token->text_bytes);
    return true;
}

std::string generate(strata_session * session, const char * prompt, const strata_sampling & sampling,
                     strata_stats * stats = nullptr) {
    std::string text;
    EXPECT_EQ(strata_generate(session, prompt, &sampling, append, &text, stats), STRATA_OK) << strata_last_error();
    return text;
}

std::vector<float> embed(strata_session * session, const std::string & text, size_t size) {
    std::vector<float> embedding(size);
    EXPECT_EQ(strata_embed(session, text.c_str(), embedding.data(), size), STRATA_OK) << strata_last_error();
    return embedding;
}

double dot(const std::vector<float> & a, const std::vector<float> & b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

class TemporaryFolder {
public:
    TemporaryFolder() {
        std::string pattern = (fs::temp_directory_path() / "strata-api-test-XXXXXX").string();
        path_ = ::mkdtemp(pattern.data());
    }
    ~TemporaryFolder() { fs::remove_all(path_); }
    fs::path operator/(const char * name) const { return path_ / name; }

private:
    fs::path path_;
};

// One model for all tests that only read it: loading is the slow part.
class StrataApi : public testing::Test {
protected:
    static void SetUpTestSuite() { model_ = open_model(kSmolLm2).release(); }
    static void TearDownTestSuite() {
        strata_model_close(model_);
        model_ = nullptr;
    }
    void SetUp() override { ASSERT_NE(model_, nullptr); }

    static strata_model * model_;
};
strata_model * StrataApi::model_ = nullptr;

// ---- models

TEST(StrataVersion, IsTold) {
    EXPECT_EQ(strata_api_version(), STRATA_API_VERSION);
    EXPECT_STREQ(strata_version(), "0.1.0");
    EXPECT_THAT(strata_engine_build(), HasSubstr("strata-0.1.0-"));
}

TEST_F(StrataApi, LayersOfAFile) {
    ASSERT_EQ(strata_model_layer_count(model_), 33U); // head, embedding, 30 blocks, tail
    uint64_t bytes = 0;
    for (size_t i = 0; i < 33; ++i) {
        strata_layer_info layer;
        ASSERT_EQ(strata_model_layer(model_, i, &layer), STRATA_OK);
        EXPECT_STREQ(layer.kind, i == 0 ? "head" : i == 1 ? "embedding" : i == 32 ? "tail" : "block");
        EXPECT_EQ(layer.block, i >= 2 && i < 32 ? static_cast<int32_t>(i) - 2 : -1);
        EXPECT_STREQ(layer.digest, "");
        if (layer.block >= 0) {
            EXPECT_EQ(layer.tensor_count, 9U);
        }
        bytes += layer.size_bytes;
    }
    EXPECT_GT(bytes, 90'000'000U);
    EXPECT_LT(bytes, fs::file_size(kSmolLm2));
}

TEST_F(StrataApi, SizesAndMetadata) {
    EXPECT_EQ(strata_model_vocab_size(model_), 49152);
    EXPECT_EQ(strata_model_embedding_size(model_), 576);
    EXPECT_EQ(strata_model_context_size(model_), 8192);
    char * value = nullptr;
    ASSERT_EQ(strata_model_metadata(model_, "general.architecture", &value), STRATA_OK);
    EXPECT_STREQ(Text(value).get(), "llama");
    EXPECT_EQ(strata_model_metadata(model_, "no.such.key", &value), STRATA_NOT_FOUND);
    EXPECT_EQ(value, nullptr);
    EXPECT_THAT(strata_last_error(), HasSubstr("no.such.key"));
}

TEST_F(StrataApi, TokenizeRoundTrip) {
    const std::string text = "Grüße, 世界! <|im_end|> 🙂\n\ttabs";
    for (const bool special : {false, true}) {
        int32_t * tokens = nullptr;
        size_t count = 0;
        ASSERT_EQ(strata_tokenize(model_, text.c_str(), text.size(), false, special, &tokens, &count), STRATA_OK);
        const std::unique_ptr<int32_t, Free> owned(tokens);
        ASSERT_GT(count, 5U);
        const bool has_end = std::find(tokens, tokens + count, 2) != tokens + count; // <|im_end|>
        EXPECT_EQ(has_end, special);
        char * back = nullptr;
        size_t bytes = 0;
        ASSERT_EQ(strata_detokenize(model_, tokens, count, &back, &bytes), STRATA_OK);
        EXPECT_EQ(std::string(Text(back).get(), bytes), text);
    }
}

TEST_F(StrataApi, ChatTemplateIsTheModelsOwn) {
    const strata_chat_message messages[] = {{"system", "Be brief."}, {"user", "Hi"}};
    char * prompt = nullptr;
    ASSERT_EQ(strata_apply_chat_template(model_, messages, 2, &prompt), STRATA_OK) << strata_last_error();
    EXPECT_STREQ(Text(prompt).get(), "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                                     "<|im_start|>assistant\n");
}

TEST(StrataModel, ProgressIsToldAndCancels) {
    struct Seen {
        uint64_t last = 0, total = 0;
        int calls = 0, stop_after = 0;
    } seen;
    strata_model_options options;
    STRATA_INIT(&options);
    options.user = &seen;
    options.progress = [](const char * phase, uint64_t done, uint64_t total, void * user) {
        auto & seen = *static_cast<Seen *>(user);
        EXPECT_STREQ(phase, "loading");
        EXPECT_GE(done, seen.last);
        seen.last = done;
        seen.total = total;
        return ++seen.calls != seen.stop_after;
    };
    ASSERT_NE(open_model(kSmolLm2, &options), nullptr);
    EXPECT_GT(seen.calls, 2);
    EXPECT_EQ(seen.last, seen.total);

    seen = {.last = 0, .total = 0, .calls = 0, .stop_after = 2};
    strata_model * model = reinterpret_cast<strata_model *>(8);
    EXPECT_EQ(strata_model_open(kSmolLm2.c_str(), &options, &model), STRATA_CANCELLED);
    EXPECT_EQ(model, nullptr);
}

TEST(StrataModel, RefusesWhatIsNoModel) {
    const TemporaryFolder folder;
    const auto write = [&](const char * name, const std::string & bytes) {
        std::ofstream(folder / name, std::ios::binary) << bytes;
        return (folder / name).string();
    };
    std::string start(1 << 20, '\0'); // the first megabyte of a real model
    std::ifstream(kSmolLm2, std::ios::binary).read(start.data(), static_cast<std::streamsize>(start.size()));
    std::string huge_count = start;
    std::memset(huge_count.data() + 8, 0xFF, 8); // n_tensors
    const std::pair<std::string, const char *> cases[] = {
        {write("empty.gguf", ""), "empty.gguf"},
        {write("text.gguf", "this is no model"), "text.gguf"},
        {write("cut.gguf", start), "cut.gguf"},
        {write("huge.gguf", huge_count), "huge.gguf"},
        {(folder / "").string() + ".gguf", "there is no file"},
        {"/dev/null/x.gguf", "x.gguf"},
    };
    for (const auto & [path, says] : cases) {
        strata_model * model = reinterpret_cast<strata_model *>(8);
        const strata_status status = strata_model_open(path.c_str(), nullptr, &model);
        EXPECT_TRUE(status == STRATA_INVALID_ARGUMENT || status == STRATA_NOT_FOUND) << path << ": " << status;
        EXPECT_EQ(model, nullptr);
        EXPECT_THAT(strata_last_error(), HasSubstr(says));
    }
    fs::create_directory(folder / "folder.gguf");
    strata_model * model = nullptr;
    EXPECT_EQ(strata_model_open((folder / "folder.gguf").c_str(), nullptr, &model), STRATA_INVALID_ARGUMENT);
}

// ---- generation

TEST_F(StrataApi, GreedyTextIsRightAndRepeats) {
    const Session session = open_session(model_);
    strata_stats stats;
    STRATA_INIT(&stats);
    const std::string first = generate(session.get(), kPrompt, sampling_of(24), &stats);
    EXPECT_THAT(first, testing::StartsWith(" Paris"));
    EXPECT_EQ(stats.prompt_tokens, 5);
    EXPECT_EQ(stats.reused_tokens, 0);
    EXPECT_EQ(stats.generated_tokens, 24);
    EXPECT_GT(stats.prompt_ms, 0);
    EXPECT_GT(stats.generate_ms, 0);

    EXPECT_EQ(generate(open_session(model_).get(), kPrompt, sampling_of(24)), first);
    // NULL sampling is greedy too, and goes on to the end of the text or of the context.
    std::string long_text;
    EXPECT_EQ(strata_generate(open_session(model_, 96).get(), kPrompt, nullptr, append, &long_text, nullptr),
              STRATA_OK);
    EXPECT_THAT(long_text, testing::StartsWith(first));
}

TEST_F(StrataApi, KvIsReused) {
    const Session session = open_session(model_);
    const std::string answer = generate(session.get(), kPrompt, sampling_of(16));
    strata_stats stats;
    STRATA_INIT(&stats);
    generate(session.get(), (kPrompt + answer + " And").c_str(), sampling_of(4), &stats);
    EXPECT_GT(stats.reused_tokens, 15);
    EXPECT_LT(stats.reused_tokens, stats.prompt_tokens);
    // A prompt that differs from its second word on shares what comes before.
    generate(session.get(), "The weather in London", sampling_of(4), &stats);
    EXPECT_EQ(stats.reused_tokens, 1);

    strata_sampling anew = sampling_of(16);
    anew.no_reuse = true;
    EXPECT_EQ(generate(session.get(), kPrompt, anew, &stats), answer);
    EXPECT_EQ(stats.reused_tokens, 0);
}

TEST_F(StrataApi, SeedsAreReproducible) {
    const Session session = open_session(model_);
    strata_sampling sampling = sampling_of(24);
    sampling.temperature = 1.5F;
    sampling.top_k = 50;
    sampling.top_p = 0.95F;
    sampling.min_p = 0.01F;
    sampling.repeat_penalty = 1.1F;
    sampling.no_reuse = true;
    std::vector<std::string> texts;
    for (const uint32_t seed : {0U, 7U, UINT32_MAX}) { // the last one is llama.cpp's word for a random seed
        sampling.seed = seed;
        texts.push_back(generate(session.get(), kPrompt, sampling));
        EXPECT_EQ(generate(session.get(), kPrompt, sampling), texts.back()) << seed;
    }
    EXPECT_NE(texts[0], texts[1]);
    EXPECT_NE(texts[1], texts[2]);
}

TEST_F(StrataApi, GrammarRulesTheText) {
    const Session session = open_session(model_);
    strata_sampling sampling = sampling_of(16);
    sampling.grammar = "root ::= (\"yes\" | \"no\") \"!\"";
    const std::string text = generate(session.get(), "Is water wet? Answer: ", sampling);
    EXPECT_TRUE(text == "yes!" || text == "no!") << text;
}

TEST_F(StrataApi, CallbackEndsTheGeneration) {
    const Session session = open_session(model_);
    int calls = 0;
    const auto third = [](const strata_token *, void * user) { return ++*static_cast<int *>(user) < 3; };
    strata_stats stats;
    STRATA_INIT(&stats);
    ASSERT_EQ(strata_generate(session.get(), kPrompt, nullptr, third, &calls, &stats), STRATA_OK);
    EXPECT_EQ(calls, 3);
    EXPECT_EQ(stats.generated_tokens, 3);
}

TEST_F(StrataApi, CancelFromTheCallback) {
    const Session session = open_session(model_);
    struct State {
        strata_session * session;
        int calls = 0;
    } state{session.get()};
    const auto cancel = [](const strata_token *, void * user) {
        auto & state = *static_cast<State *>(user);
        if (++state.calls == 2) strata_session_cancel(state.session);
        return true;
    };
    strata_stats stats;
    STRATA_INIT(&stats);
    EXPECT_EQ(strata_generate(session.get(), kPrompt, nullptr, cancel, &state, &stats), STRATA_CANCELLED);
    EXPECT_EQ(state.calls, 2);
    EXPECT_EQ(stats.generated_tokens, 2);
    // The session is as good as before.
    EXPECT_THAT(generate(session.get(), kPrompt, sampling_of(8)), testing::StartsWith(" Paris"));
}

TEST_F(StrataApi, CancelFromAnotherThread) {
    const Session session = open_session(model_, 4096);
    const Session reference = open_session(model_, 4096);
    std::string prompt; // a prompt whose computation takes a while, so that the cancel meets a decode
    for (int i = 0; i < 60; ++i) prompt += "word number " + std::to_string(i) + " ";
    std::atomic<bool> done = false;
    std::thread canceller([&] {
        // Again and again, since a cancel before the call begins has no effect.
        while (!done) {
            strata_session_cancel(session.get());
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
    });
    std::string text;
    const strata_status status = strata_generate(session.get(), prompt.c_str(), nullptr, append, &text, nullptr);
    done = true;
    canceller.join();
    EXPECT_EQ(status, STRATA_CANCELLED);
    // What is left in the KV must be right: the text equals that of a session that was never cancelled.
    strata_sampling sampling = sampling_of(16);
    EXPECT_EQ(generate(session.get(), prompt.c_str(), sampling), generate(reference.get(), prompt.c_str(), sampling));
}

TEST_F(StrataApi, TwoSessionsAtOnce) {
    const std::string alone = generate(open_session(model_).get(), kPrompt, sampling_of(16));
    std::vector<std::thread> threads;
    std::vector<std::string> texts(2);
    for (std::string & text : texts) {
        threads.emplace_back([&] { text = generate(open_session(model_).get(), kPrompt, sampling_of(16)); });
    }
    for (std::thread & thread : threads) thread.join();
    EXPECT_THAT(texts, testing::Each(alone));
}

TEST_F(StrataApi, SessionInUseIsRefused) {
    const Session session = open_session(model_);
    const auto again = [](const strata_token *, void * user) {
        EXPECT_EQ(strata_generate(static_cast<strata_session *>(user), kPrompt, nullptr, nullptr, nullptr, nullptr),
                  STRATA_INVALID_ARGUMENT);
        return false;
    };
    EXPECT_EQ(strata_generate(session.get(), kPrompt, nullptr, again, session.get(), nullptr), STRATA_OK);
}

TEST_F(StrataApi, ContextIsALimit) {
    const Session session = open_session(model_, 64);
    std::string prompt;
    for (int i = 0; i < 64; ++i) prompt += " word";
    EXPECT_EQ(strata_generate(session.get(), prompt.c_str(), nullptr, nullptr, nullptr, nullptr),
              STRATA_INVALID_ARGUMENT);
    EXPECT_THAT(strata_last_error(), HasSubstr("64 tokens and does not fit the context of 64"));

    strata_stats stats;
    STRATA_INIT(&stats);
    strata_sampling sampling = sampling_of(0);
    sampling.grammar = "root ::= [a-z ]{2000}"; // the context ends first
    generate(session.get(), kPrompt, sampling, &stats);
    EXPECT_EQ(stats.prompt_tokens + stats.generated_tokens, 64);
}

// ---- bad input

TEST_F(StrataApi, NullArgumentsAreErrors) {
    strata_model * model = nullptr;
    strata_session * session = nullptr;
    strata_layer_info layer;
    int32_t * tokens = nullptr;
    size_t count = 1;
    char * text = nullptr;
    float number = 1;
    const Session open = open_session(model_);
    EXPECT_EQ(strata_model_open(nullptr, nullptr, &model), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_model_open(kSmolLm2.c_str(), nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_THAT(strata_last_error(), HasSubstr("out must not be NULL"));
    EXPECT_EQ(strata_model_layer(nullptr, 0, &layer), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_model_layer(model_, 0, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_model_metadata(model_, nullptr, &text), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_tokenize(model_, nullptr, 0, true, true, &tokens, &count), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(count, 0U);
    EXPECT_EQ(strata_detokenize(model_, nullptr, 1, &text, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_apply_chat_template(model_, nullptr, 1, &text), STRATA_INVALID_ARGUMENT);
    const strata_chat_message no_content = {"user", nullptr};
    EXPECT_EQ(strata_apply_chat_template(model_, &no_content, 1, &text), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_session_open(nullptr, nullptr, &session), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_session_open(model_, nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_generate(nullptr, kPrompt, nullptr, nullptr, nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_generate(open.get(), nullptr, nullptr, nullptr, nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_embed(nullptr, "x", &number, 1), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_import(nullptr, nullptr, 1, nullptr, nullptr, nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_pull(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_model_layer_count(nullptr), 0U);
    EXPECT_EQ(strata_model_vocab_size(nullptr), 0);
    strata_model_close(nullptr);
    strata_session_close(nullptr);
    strata_session_cancel(nullptr);
    strata_init_struct(nullptr, 8);
    strata_free(nullptr);
}

TEST_F(StrataApi, StructSizeIsChecked) {
    strata_session * session = nullptr;
    strata_session_options options;
    STRATA_INIT(&options);
    for (const size_t size : {size_t{0}, size_t{1}, sizeof(size_t), SIZE_MAX}) {
        options.struct_size = size;
        EXPECT_EQ(strata_session_open(model_, &options, &session), STRATA_INVALID_ARGUMENT) << size;
        EXPECT_THAT(strata_last_error(), HasSubstr("STRATA_INIT"));
    }
    // A program built against an older header: members behind its size are not read.
    STRATA_INIT(&options);
    options.context_tokens = 256;
    options.threads = 1;
    options.embeddings = true;
    options.struct_size = offsetof(strata_session_options, embeddings);
    ASSERT_EQ(strata_session_open(model_, &options, &session), STRATA_OK) << strata_last_error();
    const Session owned(session);
    EXPECT_THAT(generate(session, kPrompt, sampling_of(4)), HasSubstr("Paris"));
    // A program built against a newer one: what it sets beyond this library's struct is refused, zeros are not.
    struct Newer {
        strata_session_options known;
        uint64_t unknown;
    } newer{};
    newer.known.struct_size = sizeof(newer);
    newer.known.context_tokens = 256;
    ASSERT_EQ(strata_session_open(model_, &newer.known, &session), STRATA_OK) << strata_last_error();
    strata_session_close(session);
    newer.unknown = 1;
    EXPECT_EQ(strata_session_open(model_, &newer.known, &session), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(session, nullptr);
    // An older stats struct is written as far as it goes.
    strata_stats stats;
    std::memset(&stats, 0x5A, sizeof(stats));
    stats.struct_size = offsetof(strata_stats, prompt_ms);
    generate(owned.get(), kPrompt, sampling_of(2), &stats);
    EXPECT_EQ(stats.generated_tokens, 2);
    unsigned char behind[sizeof(double)];
    std::memcpy(behind, &stats.prompt_ms, sizeof(behind));
    EXPECT_THAT(behind, testing::Each(0x5A));
}

TEST_F(StrataApi, AbsurdOptionsAreRefused) {
    strata_session * session = nullptr;
    const auto refuses = [&](auto change) {
        strata_session_options options;
        STRATA_INIT(&options);
        change(options);
        EXPECT_EQ(strata_session_open(model_, &options, &session), STRATA_INVALID_ARGUMENT) << strata_last_error();
        EXPECT_EQ(session, nullptr);
    };
    refuses([](auto & options) { options.context_tokens = -1; });
    refuses([](auto & options) { options.context_tokens = INT32_MAX; });
    refuses([](auto & options) { options.context_tokens = 8193; }); // one more than it was trained for
    refuses([](auto & options) { options.batch_tokens = INT32_MIN; });
    refuses([](auto & options) { options.threads = 100000; });
}

TEST_F(StrataApi, AbsurdSamplingIsRefused) {
    const Session session = open_session(model_);
    const auto refuses = [&](auto change, const char * says) {
        strata_sampling sampling = sampling_of(4);
        change(sampling);
        EXPECT_EQ(strata_generate(session.get(), kPrompt, &sampling, nullptr, nullptr, nullptr),
                  STRATA_INVALID_ARGUMENT);
        EXPECT_THAT(strata_last_error(), HasSubstr(says));
    };
    refuses([](auto & s) { s.temperature = -1; }, "temperature");
    refuses([](auto & s) { s.temperature = NAN; }, "temperature");
    refuses([](auto & s) { s.top_k = -1; }, "top_k");
    refuses([](auto & s) { s.top_p = 1.01F; }, "top_p");
    refuses([](auto & s) { s.min_p = INFINITY; }, "min_p");
    refuses([](auto & s) { s.repeat_penalty = 1e-40F; }, "repeat_penalty");
    refuses([](auto & s) { s.max_tokens = INT32_MIN; }, "max_tokens");
    refuses([](auto & s) { s.grammar = "root ::= (\"a\""; }, "expecting ')'"); // llama.cpp's own words
    refuses([](auto & s) { s.grammar = "root ::= root \"a\""; }, "left recursion");
    refuses([](auto & s) { s.grammar = "%llguidance {}"; }, "grammar");
    const std::string deep = "root ::= " + std::string(200000, '(') + "\"a\"" + std::string(200000, ')');
    refuses([&](auto & s) { s.grammar = deep.c_str(); }, "grammar");
    std::string chain = "root ::= r0\n"; // as CVE-2026-2069, but along rules
    for (int i = 0; i < 20000; ++i) chain += "r" + std::to_string(i) + "::=r" + std::to_string(i + 1) + "\n";
    refuses([&](auto & s) { s.grammar = chain.c_str(); }, "grammar");
    EXPECT_THAT(generate(session.get(), kPrompt, sampling_of(4)), HasSubstr("Paris"));
}

TEST_F(StrataApi, AbsurdTextsAreHandled) {
    const Session session = open_session(model_);
    EXPECT_EQ(strata_generate(session.get(), "", nullptr, nullptr, nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    const std::string huge(17 << 20, 'a');
    EXPECT_EQ(strata_generate(session.get(), huge.c_str(), nullptr, nullptr, nullptr, nullptr),
              STRATA_INVALID_ARGUMENT);
    strata_sampling sampling = sampling_of(2);
    EXPECT_EQ(strata_generate(session.get(), "not UTF-8: \xff\xfe\xc3", &sampling, nullptr, nullptr, nullptr),
              STRATA_OK)
        << strata_last_error();
    char * text = nullptr;
    for (const int32_t token : {-1, 49152, INT32_MAX, INT32_MIN}) {
        EXPECT_EQ(strata_detokenize(model_, &token, 1, &text, nullptr), STRATA_INVALID_ARGUMENT) << token;
    }
    int32_t * tokens = nullptr;
    size_t count = 0;
    ASSERT_EQ(strata_tokenize(model_, "a\0b", 3, false, false, &tokens, &count), STRATA_OK);
    EXPECT_EQ(count, 3U);
    strata_free(tokens);
}

TEST_F(StrataApi, ErrorsBelongToTheirThread) {
    EXPECT_EQ(strata_model_metadata(model_, "key.of.this.thread", nullptr), STRATA_INVALID_ARGUMENT);
    std::thread([&] {
        EXPECT_STREQ(strata_last_error(), "");
        char * text = nullptr;
        EXPECT_EQ(strata_model_metadata(model_, "key.of.that.thread", &text), STRATA_NOT_FOUND);
    }).join();
    EXPECT_THAT(strata_last_error(), HasSubstr("out must not be NULL"));
}

TEST_F(StrataApi, LogGoesWhereItIsSent) {
    std::string log; // the library calls it from several threads at once in general; here there is one
    strata_set_log([](strata_log_level, const char * text, void * user) { *static_cast<std::string *>(user) += text; },
                   &log);
    open_session(model_);
    strata_set_log(nullptr, nullptr);
    EXPECT_THAT(log, HasSubstr("n_ctx"));
    const std::string before = log;
    open_session(model_);
    EXPECT_EQ(log, before);
}

// ---- embeddings

TEST(StrataEmbed, PairsRankAsTheyShould) {
    const Model model = open_model(kMiniLm);
    ASSERT_NE(model, nullptr);
    ASSERT_EQ(strata_model_embedding_size(model.get()), 384);
    const Session session = open_session(model.get(), 0, true);
    const auto vector = [&](const char * text) { return embed(session.get(), text, 384); };
    const auto cat = vector("A cat sleeps on the sofa.");
    EXPECT_NEAR(dot(cat, cat), 1, 1e-5);
    EXPECT_EQ(vector("A cat sleeps on the sofa."), cat);
    const double kitten = dot(cat, vector("A kitten is napping on the couch."));
    const double dog = dot(cat, vector("A dog runs in the park."));
    const double bank = dot(cat, vector("The central bank raised interest rates."));
    EXPECT_GT(kitten, 0.6);
    EXPECT_GT(kitten, dog + 0.2);
    EXPECT_GT(dog, bank);

    std::vector<float> embedding(384, 1);
    EXPECT_EQ(strata_embed(session.get(), "x", embedding.data(), 383), STRATA_INVALID_ARGUMENT);
    std::string long_text;
    for (int i = 0; i < 600; ++i) long_text += " word";
    EXPECT_EQ(strata_embed(session.get(), long_text.c_str(), embedding.data(), 384), STRATA_INVALID_ARGUMENT);
    EXPECT_THAT(strata_last_error(), HasSubstr("does not fit the context of 512"));
    EXPECT_THAT(embedding, testing::Each(0));

    strata_session * none = nullptr;
    EXPECT_EQ(strata_session_open(model.get(), nullptr, &none), STRATA_INVALID_ARGUMENT);
    EXPECT_THAT(strata_last_error(), HasSubstr("embeddings"));
}

TEST_F(StrataApi, SessionsKeepToTheirKind) {
    float numbers[576];
    const Session generates = open_session(model_);
    EXPECT_EQ(strata_embed(generates.get(), "x", numbers, 576), STRATA_INVALID_ARGUMENT);
    const Session embeds = open_session(model_, 256, true); // a chat model's states, averaged
    EXPECT_EQ(strata_generate(embeds.get(), kPrompt, nullptr, nullptr, nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    const auto vector = embed(embeds.get(), "a text", 576);
    EXPECT_NEAR(dot(vector, vector), 1, 1e-5);
}

// ---- the store

TEST(StrataStore, ImportOpenVerify) {
    const TemporaryFolder folder;
    const std::string store = (folder / "store").string();
    const char * const source = kSmolLm2.c_str();
    char * reference = nullptr;
    ASSERT_EQ(strata_import(store.c_str(), &source, 1, "smol:test", nullptr, nullptr, &reference), STRATA_OK)
        << strata_last_error();
    EXPECT_THAT(Text(reference).get(), testing::StartsWith("smol:test@sha256:"));

    strata_model_options options;
    STRATA_INIT(&options);
    options.store = store.c_str();
    options.verify = true;
    {
        const Model model = open_model("smol:test", &options);
        ASSERT_NE(model, nullptr);
        ASSERT_EQ(strata_model_layer_count(model.get()), 33U);
        strata_layer_info layer;
        ASSERT_EQ(strata_model_layer(model.get(), 5, &layer), STRATA_OK);
        EXPECT_STREQ(layer.kind, "block");
        EXPECT_THAT(layer.digest, testing::StartsWith("sha256:"));
        const Model file = open_model(kSmolLm2);
        EXPECT_EQ(generate(open_session(model.get()).get(), kPrompt, sampling_of(24)),
                  generate(open_session(file.get()).get(), kPrompt, sampling_of(24)));
    }
    char * problems = nullptr;
    EXPECT_EQ(strata_verify(store.c_str(), nullptr, nullptr, nullptr, &problems), STRATA_OK) << strata_last_error();
    EXPECT_STREQ(Text(problems).get(), "[]");

    // A flipped byte in a blob is found by verify and by an open with verify, and its layer named.
    for (const auto & entry : fs::directory_iterator(fs::path(store) / "blobs/sha256")) {
        if (entry.file_size() < 2'000'000) continue;
        fs::permissions(entry.path(), fs::perms::owner_write, fs::perm_options::add);
        std::fstream blob(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
        blob.seekp(-1, std::ios::end);
        blob.put('\x55');
        break;
    }
    EXPECT_EQ(strata_verify(store.c_str(), "smol:test", nullptr, nullptr, &problems), STRATA_CORRUPT);
    EXPECT_THAT(Text(problems).get(), HasSubstr("smol:test"));
    strata_model * model = nullptr;
    EXPECT_EQ(strata_model_open("smol:test", &options, &model), STRATA_CORRUPT);
    EXPECT_THAT(strata_last_error(), HasSubstr("sha256:"));
}

TEST(StrataStore, ErrorsAreTold) {
    const TemporaryFolder folder;
    const std::string store = (folder / "store").string();
    strata_model_options options;
    STRATA_INIT(&options);
    options.store = store.c_str();
    strata_model * model = nullptr;
    EXPECT_EQ(strata_model_open("nothing", &options, &model), STRATA_NOT_FOUND);
    EXPECT_FALSE(fs::exists(store)) << "looking must not make a store";
    EXPECT_EQ(strata_model_open("../../etc/passwd", &options, &model), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_model_open("", &options, &model), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_model_open(std::string(10000, 'a').c_str(), &options, &model), STRATA_INVALID_ARGUMENT);
    const char * const sources[] = {"/nonexistent.gguf"};
    char * reference = reinterpret_cast<char *>(8);
    EXPECT_EQ(strata_import(store.c_str(), sources, 1, "x", nullptr, nullptr, &reference), STRATA_NOT_FOUND);
    EXPECT_EQ(reference, nullptr);
    EXPECT_THAT(strata_last_error(), HasSubstr("/nonexistent.gguf"));
    EXPECT_EQ(strata_import(store.c_str(), sources, 0, "x", nullptr, nullptr, &reference), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_import(store.c_str(), sources, SIZE_MAX, "x", nullptr, nullptr, &reference),
              STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_import(store.c_str(), sources, 1, "Bad Name", nullptr, nullptr, &reference),
              STRATA_INVALID_ARGUMENT);
    for (const char * url : {"http://x/y", "hf://a/b/../c", "hf://", ""}) {
        EXPECT_EQ(strata_pull(store.c_str(), url, nullptr, nullptr, nullptr, nullptr), STRATA_INVALID_ARGUMENT) << url;
    }
    EXPECT_EQ(strata_verify((folder / "none").c_str(), nullptr, nullptr, nullptr, nullptr), STRATA_NOT_FOUND);
}

} // namespace
