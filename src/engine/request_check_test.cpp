#include "engine/driver_limits.h"
#include "engine/request_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace strata::engine {
namespace {

using testing::HasSubstr;

constexpr ModelBounds kBounds = {/*slots*/ 4, /*vocab_tokens*/ 1000, /*max_prompt_bytes*/ 1000};

std::string refusal(BodyKind kind, const std::string & body) {
    const auto checked = check_request(kind, body, kBounds);
    return checked.ok() ? std::string() : std::string(checked.status().message());
}

std::string completion(const std::string & fields) {
    return refusal(BodyKind::kCompletion, R"({"prompt":"x",)" + fields + "}");
}

TEST(RequestCheck, takes_honest_bodies) {
    EXPECT_EQ(completion(R"("max_tokens":16,"temperature":0.7,"stop":["a","b"],"logit_bias":{"5":-1.5},"n":4)"), "");
    EXPECT_EQ(completion(R"("max_tokens":null,"seed":4294967295,"logprobs":5,"grammar":"root ::= \"a\"")"), "");
    EXPECT_EQ(completion(R"("max_tokens":16.0)"), "");
    EXPECT_EQ(
        refusal(BodyKind::kChat, R"({"messages":[{"role":"user","content":"hi"}],"logprobs":true,"top_logprobs":3})"),
        "");
    EXPECT_EQ(refusal(BodyKind::kEmbedding, R"({"input":["a","b",[1,2]]})"), "");
    EXPECT_EQ(refusal(BodyKind::kTokens, R"({"tokens":[0,999]})"), "");
}

TEST(RequestCheck, tells_where_json_is_malformed) {
    EXPECT_THAT(refusal(BodyKind::kChat, R"({"messages": [})"), HasSubstr("malformed JSON in the body at byte 15"));
    EXPECT_THAT(refusal(BodyKind::kChat, ""), HasSubstr("malformed JSON"));
    EXPECT_THAT(refusal(BodyKind::kChat, "[1]"), HasSubstr("must be a JSON object"));
    EXPECT_THAT(refusal(BodyKind::kChat, std::string("{\"a\":\"\0\"}", 9)), HasSubstr("malformed JSON"));
}

TEST(RequestCheck, refuses_deep_nesting_but_not_brackets_in_text) {
    const std::string deep = R"({"prompt":"x","a":)" + std::string(100000, '[') + std::string(100000, ']') + "}";
    EXPECT_THAT(refusal(BodyKind::kCompletion, deep), HasSubstr("nested more than"));
    EXPECT_EQ(refusal(BodyKind::kCompletion, R"({"prompt":")" + std::string(500, '[') + R"(\"{"})"), "");
}

TEST(RequestCheck, names_numbers_out_of_range) {
    EXPECT_THAT(completion(R"("max_tokens":1000000000000000000)"), HasSubstr("max_tokens must be an integer from -1"));
    EXPECT_THAT(completion(R"("max_tokens":4294967396)"), HasSubstr("max_tokens"));
    EXPECT_THAT(completion(R"("max_tokens":18446744073709551615)"), HasSubstr("max_tokens"));
    EXPECT_THAT(completion(R"("n_predict":-5)"), HasSubstr("n_predict"));
    EXPECT_THAT(completion(R"("n_predict":1.5)"), HasSubstr("n_predict"));
    EXPECT_THAT(completion(R"("n_predict":"many")"), HasSubstr("n_predict"));
    EXPECT_THAT(completion(R"("n_discard":-1)"), HasSubstr("n_discard"));
    EXPECT_THAT(completion(R"("n":5)"), HasSubstr("n must be an integer from 1 to 4"));
    EXPECT_THAT(completion(R"("n":0)"), HasSubstr("n must be"));
    EXPECT_THAT(completion(R"("n_probs":2000000000)"), HasSubstr("n_probs"));
    EXPECT_THAT(completion(R"("logprobs":49152)"), HasSubstr("logprobs"));
    EXPECT_THAT(completion(R"("repeat_last_n":2147483647)"), HasSubstr("repeat_last_n"));
    EXPECT_THAT(completion(R"("temperature":1e300)"), HasSubstr("temperature"));
    EXPECT_THAT(completion(R"("logit_bias":{"5":1e39})"), HasSubstr("logit_bias"));
    EXPECT_THAT(completion(R"("logit_bias":[[5,-1e39]])"), HasSubstr("logit_bias"));
    EXPECT_THAT(refusal(BodyKind::kRerank, R"({"query":"a","documents":["b"],"top_n":-1})"), HasSubstr("top_n"));
}

TEST(RequestCheck, refuses_what_reaches_asserts_of_the_server) {
    EXPECT_THAT(completion(R"("grammar":"%llguidance {}")"), HasSubstr("grammar"));
    EXPECT_THAT(completion(R"("backend_sampling":true,"grammar":"root ::= \"a\"")"), HasSubstr("backend_sampling"));
    EXPECT_THAT(completion(R"("grammar_triggers":[{"type":99,"value":"a"}])"), HasSubstr("grammar_triggers"));
    EXPECT_THAT(completion(R"("chat_parser":"{}")"), HasSubstr("chat_parser"));
    EXPECT_THAT(refusal(BodyKind::kCompletion, R"({"prompt":[1,-1]})"), HasSubstr("no token of the model"));
    EXPECT_THAT(refusal(BodyKind::kCompletion, R"({"prompt":[[1],[1000]]})"), HasSubstr("no token of the model"));
    EXPECT_THAT(refusal(BodyKind::kTokens, R"({"tokens":[99999999999]})"), HasSubstr("no token of the model"));
    EXPECT_THAT(refusal(BodyKind::kTokens, R"({"tokens":"abc"})"), HasSubstr("list of integers"));
}

TEST(RequestCheck, refuses_what_would_wait_for_ever) {
    EXPECT_THAT(refusal(BodyKind::kCompletion, R"({"prompt":"","n":2})"), HasSubstr("prompt is empty"));
    EXPECT_THAT(refusal(BodyKind::kCompletion, R"({"prompt":["a",""],"n":2})"), HasSubstr("prompt is empty"));
    EXPECT_THAT(refusal(BodyKind::kCompletion, R"({"prompt":[[]],"n":2})"), HasSubstr("prompt is empty"));
    EXPECT_EQ(refusal(BodyKind::kCompletion, R"({"prompt":""})"), "");
}

TEST(RequestCheck, bounds_lists_and_texts) {
    std::string list = "[\"a\"";
    for (size_t i = 0; i < 5000; ++i) list += ",\"a\"";
    list += "]";
    EXPECT_THAT(refusal(BodyKind::kCompletion, R"({"prompt":)" + list + "}"), HasSubstr("prompt has 5001 entries"));
    EXPECT_THAT(refusal(BodyKind::kEmbedding, R"({"input":)" + list + "}"), HasSubstr("input has 5001 entries"));
    for (const char * field : {"stop", "samplers", "dry_sequence_breakers"}) {
        EXPECT_THAT(completion(std::string("\"") + field + "\":" + list), HasSubstr(field));
    }
    const auto long_text = check_request(
        BodyKind::kChat, R"({"messages":[{"role":"user","content":")" + std::string(2000, 'a') + R"("}]})", kBounds);
    EXPECT_EQ(long_text.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(refusal(BodyKind::kCompletion, std::string(kMaxBodyBytes + 1, ' ')), HasSubstr("limit"));
}

TEST(RequestCheck, bounds_the_work_of_the_schema_converter) {
    const auto object = [](int first, int count) {
        std::string properties;
        for (int i = first; i < first + count; ++i) {
            if (!properties.empty()) properties += ",";
            properties.append("\"p").append(std::to_string(i)).append("\":{\"type\":\"string\"}");
        }
        return R"({"type":"object","properties":{)" + properties + "}}";
    };
    EXPECT_EQ(completion(R"("json_schema":)" + object(0, 300)), "");
    EXPECT_THAT(completion(R"("json_schema":)" + object(0, 3000)), HasSubstr("schemas are too large"));
    std::string merged;
    std::string tools;
    for (int i = 0; i < 100; ++i) {
        if (i > 0) {
            merged += ",";
            tools += ",";
        }
        merged += object(10 * i, 10);
        tools += R"({"type":"function","function":{"name":"f","parameters":)" + object(0, 10) + "}}";
    }
    EXPECT_THAT(completion(R"("json_schema":{"allOf":[)" + merged + "]}"), HasSubstr("schemas are too large"));
    const ModelBounds roomy = {4, 1000, 1 << 20};
    EXPECT_TRUE(check_request(BodyKind::kChat, R"({"messages":[],"tools":[)" + tools + "]}", roomy).ok());
    EXPECT_THAT(
        refusal(BodyKind::kChat, R"({"messages":[],"response_format":{"type":"json_schema","json_schema":{"schema":)" +
                                     object(0, 500) + "}}}"),
        HasSubstr("schemas are too large"));
}

TEST(RequestCheck, fetches_no_media) {
    const std::string start = R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":")";
    EXPECT_THAT(refusal(BodyKind::kChat, start + R"(http://169.254.169.254/"}}]}]})"), HasSubstr("not fetched"));
    EXPECT_THAT(refusal(BodyKind::kChat, start + R"(file:///etc/passwd"}}]}]})"), HasSubstr("not fetched"));
    EXPECT_EQ(refusal(BodyKind::kChat, start + R"(data:image/png;base64,AAAA"}}]}]})"), "");
}

TEST(RequestCheck, tells_how_many_slots_a_request_takes) {
    EXPECT_EQ(check_request(BodyKind::kCompletion, R"({"prompt":"x"})", kBounds)->width, 1);
    EXPECT_EQ(check_request(BodyKind::kCompletion, R"({"prompt":["x","y"]})", kBounds)->width, 1);
    EXPECT_EQ(check_request(BodyKind::kChat, R"({"messages":[],"n":3})", kBounds)->width, 3);
    EXPECT_EQ(check_request(BodyKind::kCompletion, R"({"prompt":["x","y"],"n":2})", kBounds)->width, 5);
}

} // namespace
} // namespace strata::engine
