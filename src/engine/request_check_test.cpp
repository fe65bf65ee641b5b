#include "base/api_error.h"
#include "engine/driver_limits.h"
#include "engine/request_check.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace strata::engine {
namespace {

using testing::HasSubstr;

constexpr ModelBounds kBounds = {/*slots*/ 4, /*vocab_tokens*/ 1000, /*max_prompt_bytes*/ 1000, /*embedding_size*/ 384};

std::string refusal(BodyKind kind, const std::string & body) {
    const auto checked = check_request(kind, body, kBounds);
    return checked.ok() ? std::string() : std::string(checked.status().message());
}

std::string completion(const std::string & fields) {
    return refusal(BodyKind::kCompletion, R"({"prompt":"x",)" + fields + "}");
}

const std::string kHi = R"("messages":[{"role":"user","content":"hi"}])";

std::string chat(const std::string & fields) {
    return refusal(BodyKind::kChat, "{" + kHi + "," + fields + "}");
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

TEST(RequestCheck, vectors_have_the_size_of_the_model) {
    for (const char * taken : {"384", "384.0", "null"}) {
        EXPECT_EQ(refusal(BodyKind::kEmbedding, fmt::format(R"({{"input":"a","dimensions":{}}})", taken)), "") << taken;
    }
    for (const char * wrong : {"128", "385", "0", "-1", "384.5", "\"384\"", "[384]"}) {
        EXPECT_THAT(refusal(BodyKind::kEmbedding, fmt::format(R"({{"input":"a","dimensions":{}}})", wrong)),
                    HasSubstr("dimensions must be 384"))
            << wrong;
    }
}

TEST(RequestCheck, says_which_field_is_wrong) {
    const auto field = [](BodyKind kind, const std::string & body) {
        return field_of(check_request(kind, body, kBounds).status());
    };
    EXPECT_EQ(field(BodyKind::kCompletion, R"({"prompt":"x","top_p":2})"), "top_p");
    EXPECT_EQ(field(BodyKind::kCompletion, R"({"prompt":"x","logit_bias":5})"), "logit_bias");
    EXPECT_EQ(field(BodyKind::kCompletion, R"({"prompt":"x","grammar":"%llguidance {}"})"), "grammar");
    EXPECT_EQ(field(BodyKind::kCompletion, "{}"), "prompt");
    EXPECT_EQ(field(BodyKind::kCompletion, R"({"prompt":")" + std::string(2000, 'a') + R"("})"), "prompt");
    EXPECT_EQ(field(BodyKind::kChat, R"({"messages":[{"content":[{"image_url":{"url":"http://x"}}]}]})"), "messages");
    EXPECT_EQ(field(BodyKind::kEmbedding, R"({"input":[]})"), "input");
    EXPECT_EQ(field(BodyKind::kCompletion, "{"), "");
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

TEST(RequestCheck, bounds_the_numbers_of_samplers) {
    struct Range {
        std::string name;
        std::vector<std::string> taken;
        std::vector<std::string> refused;
    };
    const std::vector<Range> ranges = {
        {"temperature",
         {"0", "-0.0", "1e-30", "2", "1000000", "null"},
         {"-1", "-1e-30", "1000001", "\"warm\"", "true"}},
        {"top_p", {"0", "0.95", "1", "1.0"}, {"-3", "50", "1.0001", "[]"}},
        {"min_p", {"0", "0.05", "1"}, {"9", "-3"}},
        {"typical_p", {"0", "1"}, {"-1", "1.5"}},
        {"top_n_sigma", {"-1", "0", "1.5"}, {"-1e39", "1e39"}},
        {"xtc_probability", {"0", "0.5", "1"}, {"9", "-0.1"}},
        {"xtc_threshold", {"0", "0.6", "1"}, {"1.1", "-1"}},
        {"dynatemp_range", {"0", "0.5"}, {"-5"}},
        {"dynatemp_exponent", {"0", "1"}, {"-1"}},
        {"repeat_penalty", {"0", "1.1"}, {"-1"}},
        {"frequency_penalty", {"-2", "2"}, {"1e39"}},
        {"presence_penalty", {"-2", "2"}, {"-1e39"}},
        {"dry_multiplier", {"0", "0.8"}, {"1e39"}},
        {"dry_base", {"0", "1.75"}, {"1e39"}},
        {"mirostat", {"0", "1", "2"}, {"-1", "3"}},
        {"mirostat_tau", {"0", "5"}, {"-1"}},
        {"mirostat_eta", {"0", "0.1", "1"}, {"1e6", "-0.1"}},
        {"adaptive_target", {"-1", "0", "1"}, {"1.5"}},
        {"adaptive_decay", {"0", "0.99"}, {"1", "-1"}},
        {"seed", {"-1", "0", "4294967295"}, {"4294967296"}},
        {"top_k", {"-1", "0", "40"}, {"4294967296"}},
        {"repeat_last_n", {"-1", "0", "64"}, {"-2"}},
        {"n_predict", {"-1", "0", "5"}, {"-2"}},
    };
    for (const Range & range : ranges) {
        const std::string field = "\"" + range.name + "\":";
        for (const std::string & value : range.taken) EXPECT_EQ(chat(field + value), "") << range.name << " " << value;
        for (const std::string & value : range.refused) {
            EXPECT_THAT(chat(field + value), testing::StartsWith(range.name + " must be ")) << value;
            EXPECT_THAT(completion(field + value), testing::StartsWith(range.name + " must be ")) << value;
        }
    }
}

TEST(RequestCheck, names_biases_that_the_server_would_ignore) {
    for (const char * value : {"null", "{}", "[]", R"({"0":1,"999":-100})", R"({"5":false,"Hello":-1.5})",
                               R"({"a 5":1})", R"([[0,1],[999,false],["Hello, World!",-0.5]])"}) {
        EXPECT_EQ(completion(std::string(R"("logit_bias":)") + value), "") << value;
    }
    for (const char * value :
         {R"({"1000":1})", R"({"-5":1})", R"({"4294967301":1})", R"({"":1})", R"({" 1000":1})", R"([["",1]])",
          "[[-5,1]]", "[[1000,1]]", "[[4294967301,1]]", "[[18446744073709551615,1]]"}) {
        EXPECT_THAT(completion(std::string(R"("logit_bias":)") + value), HasSubstr("logit_bias names ")) << value;
    }
    for (const char * value :
         {R"([[5,"x"]])", R"({"5":"x"})", R"({"5":true})", R"({"5":null})", R"([[5,[]]])", R"([["x","y"]])", "[5]",
          "[[5]]", "[[5,1,1]]", "[[5.5,1]]", "[[null,1]]", R"([{"5":1}])", R"("garbage")", "5", "true"}) {
        EXPECT_THAT(completion(std::string(R"("logit_bias":)") + value), HasSubstr("logit_bias must be ")) << value;
    }
}

TEST(RequestCheck, names_stops_that_the_server_would_ignore) {
    for (const char * name : {"stop", "stop_sequences"}) {
        const std::string field = std::string("\"") + name + "\":";
        for (const char * value : {"null", R"("")", R"("\n")", "[]", R"(["a",""])"}) {
            EXPECT_EQ(chat(field + value), "") << value;
        }
        for (const char * value : {"5", "false", "{}", R"({"a":"b"})", "[5]", R"(["a",null])", R"([["a"]])"}) {
            EXPECT_EQ(chat(field + value), std::string(name) + " must be a string or a list of strings") << value;
        }
    }
}

TEST(RequestCheck, knows_of_no_adapters) {
    EXPECT_EQ(completion(R"("lora":[])"), "");
    EXPECT_EQ(completion(R"("lora":null)"), "");
    EXPECT_THAT(completion(R"("lora":[{"id":99}])"), HasSubstr("lora names the adapter 99"));
    EXPECT_THAT(completion(R"("lora":[{"id":0,"scale":0.5}])"), HasSubstr("lora names the adapter 0"));
    for (const char * value : {"[5]", "[{}]", "{}", R"({"id":0})", "5"}) {
        EXPECT_THAT(completion(std::string(R"("lora":)") + value), testing::StartsWith("lora ")) << value;
    }
}

TEST(RequestCheck, demands_a_conversation) {
    for (const BodyKind kind : {BodyKind::kChat, BodyKind::kMessages}) {
        EXPECT_EQ(refusal(kind, R"({"messages":[],"max_tokens":1})"), "messages is empty");
    }
    EXPECT_EQ(refusal(BodyKind::kChat, R"({"input":[]})"), "input is empty");
    EXPECT_EQ(refusal(BodyKind::kChat, R"({"input":"","instructions":"Be brief."})"), "input is empty");
    EXPECT_EQ(refusal(BodyKind::kChat, R"({"input":"hi"})"), "");
    EXPECT_EQ(refusal(BodyKind::kChat, R"({"messages":[{"role":"user","content":""}]})"), "");
    EXPECT_EQ(refusal(BodyKind::kChat, R"({"messages":[{"role":"bogus","content":"hi"}]})"), "")
        << "which roles there are is the template's to say";
}

TEST(RequestCheck, a_chat_makes_at_least_one_token) {
    for (const char * name : {"max_tokens", "max_completion_tokens", "max_output_tokens"}) {
        const std::string field = std::string("\"") + name + "\":";
        for (const char * value : {"1", "-1", "null", "16.0"}) EXPECT_EQ(chat(field + value), "") << name << value;
        for (const char * value : {"0", "0.0", "-2"}) EXPECT_THAT(chat(field + value), HasSubstr(name)) << value;
    }
    EXPECT_EQ(chat(R"("n_predict":0)"), "") << "llama.cpp's own: the prompt is computed and kept";
    EXPECT_EQ(completion(R"("max_tokens":0)"), "");
    EXPECT_EQ(completion(R"("max_tokens":-1)"), "");
}

TEST(RequestCheck, messages_follow_anthropic) {
    const auto messages = [](const std::string & fields) {
        return refusal(BodyKind::kMessages, "{" + kHi + fields + "}");
    };
    EXPECT_EQ(messages(R"(,"max_tokens":1,"stop_sequences":["a"])"), "");
    EXPECT_EQ(messages(""), "max_tokens is required");
    EXPECT_EQ(messages(R"(,"max_tokens":null)"), "max_tokens is required");
    for (const char * value : {"0", "-1", "1.5", R"("many")"}) {
        EXPECT_THAT(messages(std::string(R"(,"max_tokens":)") + value), HasSubstr("max_tokens must be an integer"));
    }
    EXPECT_THAT(messages(R"(,"max_tokens":1,"temperature":-1)"), HasSubstr("temperature"));
    const auto long_text = check_request(
        BodyKind::kMessages, R"({"max_tokens":1,"messages":[],"system":")" + std::string(2000, 'a') + R"("})", kBounds);
    EXPECT_EQ(long_text.status().code(), absl::StatusCode::kOutOfRange);
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
    const ModelBounds roomy = {4, 1000, 1 << 20, 384};
    EXPECT_TRUE(check_request(BodyKind::kChat, "{" + kHi + R"(,"tools":[)" + tools + "]}", roomy).ok());
    EXPECT_THAT(refusal(BodyKind::kChat, "{" + kHi +
                                             R"(,"response_format":{"type":"json_schema","json_schema":{"schema":)" +
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
    EXPECT_EQ(check_request(BodyKind::kChat, "{" + kHi + R"(,"n":3})", kBounds)->width, 3);
    EXPECT_EQ(check_request(BodyKind::kCompletion, R"({"prompt":["x","y"],"n":2})", kBounds)->width, 5);
}

} // namespace
} // namespace strata::engine
