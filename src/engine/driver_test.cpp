// The driver through the C interface, with the real model.
#include "strata/strata.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using testing::HasSubstr;
using Json = nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

std::string model_path() {
    if (const char * path = std::getenv("STRATA_TEST_MODEL")) return path;
    std::filesystem::path cache;
    if (const char * folder = std::getenv("STRATA_CACHE"))
        cache = folder;
    else if (const char * folder = std::getenv("XDG_CACHE_HOME"))
        cache = std::filesystem::path(folder) / "strata";
    else
        cache = std::filesystem::path(std::getenv("HOME")) / ".cache" / "strata";
    return cache / "models" / "smollm2-135m-instruct-q4_1.gguf";
}

Json parse(const std::string & text) {
    return Json::parse(text, nullptr, false);
}

// One request and what came of it.
class Call {
public:
    Call(strata_driver * driver, const std::string & path, const std::string & body,
         const std::string & method = "POST", int64_t deadline_ms = 0) {
        const strata_response_fns fns = {
            [](int32_t status, const char * type, void * user) { static_cast<Call *>(user)->on_head(status, type); },
            [](const void * data, size_t bytes, void * user) {
                static_cast<Call *>(user)->on_data(std::string(static_cast<const char *>(data), bytes));
            },
            [](int32_t prompt, int32_t generated, double queue_ms, void * user) {
                static_cast<Call *>(user)->on_end(prompt, generated, queue_ms);
            }};
        EXPECT_EQ(strata_driver_request(driver, method.c_str(), path.c_str(), body.data(), body.size(), deadline_ms,
                                        &fns, this, &request_),
                  STRATA_OK)
            << strata_last_error();
    }
    ~Call() {
        EXPECT_TRUE(wait()) << "no end";
        strata_request_release(request_);
    }
    Call(const Call &) = delete;
    Call & operator=(const Call &) = delete;

    void cancel() { strata_request_cancel(request_); }
    bool wait(seconds timeout = seconds(120)) {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, timeout, [&] { return ended_; });
    }
    bool wait_data(size_t pieces) {
        std::unique_lock lock(mutex_);
        return changed_.wait_for(lock, seconds(120), [&] { return ended_ || pieces_ >= pieces; }) && pieces_ >= pieces;
    }
    int status() {
        wait();
        return status_;
    }
    std::string body() {
        wait();
        return body_;
    }
    Json json() { return parse(body()); }
    // The text of an OpenAI stream of chat or completion chunks.
    std::string streamed_text() {
        std::string text;
        for (const Json & event : events()) {
            if (!event.contains("choices") || event["choices"].empty()) continue;
            const Json & choice = event["choices"][0];
            if (choice.contains("text")) text += choice["text"].get<std::string>();
            if (choice.contains("delta") && choice["delta"].contains("content") &&
                choice["delta"]["content"].is_string()) {
                text += choice["delta"]["content"].get<std::string>();
            }
        }
        return text;
    }
    std::vector<Json> events() {
        std::vector<Json> events;
        std::istringstream lines(body());
        for (std::string line; std::getline(lines, line);) {
            if (line.starts_with("data: {")) events.push_back(parse(line.substr(6)));
        }
        return events;
    }
    int prompt_tokens() const { return prompt_tokens_; }
    int generated_tokens() const { return generated_tokens_; }
    const std::string & content_type() const { return content_type_; }

private:
    void on_head(int32_t status, const char * type) {
        const std::lock_guard lock(mutex_);
        EXPECT_EQ(status_, 0) << "a second head";
        status_ = status;
        content_type_ = type;
    }
    void on_data(const std::string & data) {
        const std::lock_guard lock(mutex_);
        EXPECT_NE(status_, 0) << "data before the head";
        body_ += data;
        ++pieces_;
        changed_.notify_all();
    }
    void on_end(int32_t prompt, int32_t generated, double) {
        const std::lock_guard lock(mutex_);
        EXPECT_FALSE(ended_) << "a second end";
        prompt_tokens_ = prompt;
        generated_tokens_ = generated;
        ended_ = true;
        changed_.notify_all();
    }

    strata_request * request_ = nullptr;
    std::mutex mutex_;
    std::condition_variable changed_;
    int status_ = 0;
    std::string content_type_;
    std::string body_;
    size_t pieces_ = 0;
    bool ended_ = false;
    int prompt_tokens_ = 0;
    int generated_tokens_ = 0;
};

struct DriverCloser {
    void operator()(strata_driver * driver) const { strata_driver_close(driver); }
};
using DriverHandle = std::unique_ptr<strata_driver, DriverCloser>;

DriverHandle open_driver(const std::function<void(strata_driver_options &)> & change = {}) {
    strata_driver_options options;
    STRATA_INIT(&options);
    options.context_tokens = 1024;
    options.slots = 2;
    options.threads = 1; // two would wait for each other on a busy machine
    options.batch_tokens = 32;
    if (change) change(options);
    strata_driver * driver = nullptr;
    EXPECT_EQ(strata_driver_open(model_path().c_str(), &options, &driver), STRATA_OK) << strata_last_error();
    return DriverHandle(driver);
}

Json status_of(strata_driver * driver) {
    char * text = nullptr;
    EXPECT_EQ(strata_driver_status(driver, &text), STRATA_OK) << strata_last_error();
    const Json json = parse(text == nullptr ? "" : text);
    strata_free(text);
    return json;
}

int busy_slots(const Json & status) {
    int busy = 0;
    for (const Json & slot : status["slots"]) busy += slot["busy"] == true ? 1 : 0;
    return busy;
}

bool eventually(const std::function<bool()> & condition, milliseconds timeout = seconds(60)) {
    const auto end = steady_clock::now() + timeout;
    while (!condition()) {
        if (steady_clock::now() > end) return false;
        std::this_thread::sleep_for(milliseconds(2));
    }
    return true;
}

int threads_of_process() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("Threads:")) return std::stoi(line.substr(8));
    }
    return 0;
}

const std::string kQuestion = R"("messages":[{"role":"user","content":"What is the capital of France?"}])";
const std::string kGreedy = R"("temperature":0,"cache_prompt":false)";

// Most tests share a driver; each must leave it idle.
class DriverTest : public testing::Test {
protected:
    static void SetUpTestSuite() { driver_ = open_driver(); }
    static void TearDownTestSuite() { driver_.reset(); }
    void SetUp() override { ASSERT_NE(driver_, nullptr); }
    void TearDown() override {
        if (driver_ == nullptr) return;
        EXPECT_TRUE(eventually([] {
            const Json status = status_of(driver_.get());
            return busy_slots(status) == 0 && status["active"] == 0 && status["waiting"] == 0;
        })) << status_of(driver_.get());
    }
    // Still answers as it should.
    static void expect_alive() {
        Call call(driver_.get(), "/v1/chat/completions", "{" + kQuestion + "," + kGreedy + R"(,"max_tokens":8})");
        EXPECT_EQ(call.status(), 200) << call.body();
        EXPECT_EQ(call.generated_tokens(), 8);
    }

    static DriverHandle driver_;
};
DriverHandle DriverTest::driver_;

TEST_F(DriverTest, answers_in_the_shapes_of_its_apis) {
    Call chat(driver_.get(), "/v1/chat/completions", "{" + kQuestion + "," + kGreedy + R"(,"max_tokens":12})");
    EXPECT_EQ(chat.status(), 200) << chat.body();
    EXPECT_EQ(chat.content_type(), "application/json; charset=utf-8");
    const std::string text = chat.json()["choices"][0]["message"]["content"];
    EXPECT_FALSE(text.empty());
    EXPECT_EQ(chat.prompt_tokens(), chat.json()["usage"]["prompt_tokens"]);
    EXPECT_EQ(chat.generated_tokens(), chat.json()["usage"]["completion_tokens"]);

    Call messages(driver_.get(), "/v1/messages", "{" + kQuestion + "," + kGreedy + R"(,"max_tokens":12})");
    EXPECT_EQ(messages.status(), 200) << messages.body();
    EXPECT_EQ(messages.json()["content"][0]["text"], text);
    EXPECT_EQ(messages.generated_tokens(), messages.json()["usage"]["output_tokens"]);

    Call responses(driver_.get(), "/v1/responses",
                   R"({"input":"What is the capital of France?","temperature":0,"max_output_tokens":12})");
    EXPECT_EQ(responses.status(), 200) << responses.body();
    EXPECT_EQ(responses.json()["output"][0]["content"][0]["text"], text);

    Call tokens(driver_.get(), "/tokenize", R"({"content":"Hello world"})");
    EXPECT_EQ(tokens.status(), 200);
    Call content(driver_.get(), "/detokenize", tokens.body());
    EXPECT_EQ(content.json()["content"], "Hello world");

    Call count(driver_.get(), "/v1/messages/count_tokens", "{" + kQuestion + "}");
    EXPECT_EQ(count.json()["input_tokens"], chat.json()["usage"]["prompt_tokens"]);

    Call models(driver_.get(), "/v1/models", "", "GET");
    EXPECT_EQ(models.json()["data"][0]["id"], model_path());
    Call props(driver_.get(), "/props?x=1", "", "GET");
    EXPECT_EQ(props.json()["total_slots"], 2);
}

TEST_F(DriverTest, two_streams_run_at_the_same_time_and_equal_one_alone) {
    const auto body = [](const std::string & prompt, int tokens) {
        return R"({"prompt":")" + prompt + R"(","stream":true,"ignore_eos":true,"max_tokens":)" +
               std::to_string(tokens) + "," + kGreedy + "}";
    };
    std::vector<std::string> alone;
    for (const char * prompt : {"The sea is", "Once upon a time"}) {
        Call call(driver_.get(), "/v1/completions", body(prompt, 24));
        EXPECT_EQ(call.status(), 200) << call.body();
        EXPECT_EQ(call.content_type(), "text/event-stream");
        EXPECT_TRUE(call.body().ends_with("data: [DONE]\n\n"));
        EXPECT_EQ(call.generated_tokens(), 24);
        alone.push_back(call.streamed_text());
    }
    Call first(driver_.get(), "/v1/completions", body("The sea is", 900));
    Call second(driver_.get(), "/v1/completions", body("Once upon a time", 900));
    EXPECT_TRUE(first.wait_data(24));
    EXPECT_TRUE(second.wait_data(24));
    const Json status = status_of(driver_.get());
    EXPECT_EQ(busy_slots(status), 2) << status;
    EXPECT_EQ(status["active"], 2) << status;
    EXPECT_EQ(status["idle_ms"], 0) << status;
    first.cancel();
    second.cancel();
    // A batch of two may round differently from a batch of one; the beginning is the same.
    EXPECT_EQ(first.streamed_text().substr(0, 40), alone[0].substr(0, 40));
    EXPECT_EQ(second.streamed_text().substr(0, 40), alone[1].substr(0, 40));
    EXPECT_FALSE(alone[0].empty());
}

TEST_F(DriverTest, counts_what_it_did) {
    const Json before = status_of(driver_.get());
    Call call(driver_.get(), "/v1/completions",
              R"({"prompt":[1,2,3,4,5],"max_tokens":10,"ignore_eos":true,)" + kGreedy + "}");
    EXPECT_EQ(call.status(), 200) << call.body();
    EXPECT_EQ(call.prompt_tokens(), 5);
    EXPECT_EQ(call.generated_tokens(), 10);
    EXPECT_TRUE(eventually([&] {
        const Json after = status_of(driver_.get());
        return after["generated_tokens_total"].get<int>() == before["generated_tokens_total"].get<int>() + 10 &&
               after["prompt_tokens_total"].get<int>() == before["prompt_tokens_total"].get<int>() + 5;
    })) << status_of(driver_.get());
    const Json after = status_of(driver_.get());
    EXPECT_EQ(after["requests_total"], before["requests_total"].get<int>() + 1);
    EXPECT_GT(after["generated_tokens_per_second"], 0.0);
    EXPECT_GT(after["weights_bytes"], 50000000);
    EXPECT_EQ(after["options"]["context_tokens"], 1024);
    EXPECT_EQ(after["options"]["slots"], 2);
    EXPECT_EQ(after["draining"], false);
}

TEST_F(DriverTest, a_cancel_frees_the_slot_before_the_first_token) {
    std::string prompt = "[1";
    for (int i = 0; i < 900; ++i) prompt.append(",").append(std::to_string(100 + i % 500));
    prompt += "]";
    for (const char * stream : {"true", "false"}) {
        Call call(driver_.get(), "/v1/completions",
                  R"({"prompt":)" + prompt + R"(,"stream":)" + stream + R"(,"max_tokens":500,)" + kGreedy + "}");
        ASSERT_TRUE(eventually([] { return busy_slots(status_of(driver_.get())) == 1; }));
        call.cancel();
        EXPECT_TRUE(call.wait());
        EXPECT_TRUE(eventually([] { return busy_slots(status_of(driver_.get())) == 0; }));
        EXPECT_THAT(call.body(), testing::Not(HasSubstr(R"("finish_reason":"length")"))) << "it went on to its end";
    }
    expect_alive();
}

TEST_F(DriverTest, a_cancel_in_the_middle_of_a_stream_ends_it) {
    Call call(driver_.get(), "/v1/completions",
              R"({"prompt":"Count:","stream":true,"max_tokens":1000,"ignore_eos":true,)" + kGreedy + "}");
    ASSERT_TRUE(call.wait_data(5));
    call.cancel();
    call.cancel();
    EXPECT_TRUE(call.wait());
    EXPECT_THAT(call.body(), testing::Not(HasSubstr("[DONE]")));
}

TEST_F(DriverTest, two_hundred_waiting_requests_need_no_threads) {
    const int threads_before = threads_of_process();
    std::vector<std::unique_ptr<Call>> running; // one for each slot, and one that is prepared
    for (int i = 0; i < 3; ++i) {
        running.push_back(
            std::make_unique<Call>(driver_.get(), "/v1/completions",
                                   R"({"prompt":"Count:","max_tokens":1000,"ignore_eos":true,)" + kGreedy + "}"));
    }
    ASSERT_TRUE(eventually([] { return status_of(driver_.get())["active"] == 3; })) << status_of(driver_.get());
    std::vector<std::unique_ptr<Call>> calls;
    for (int i = 0; i < 200; ++i) {
        calls.push_back(std::make_unique<Call>(driver_.get(), "/v1/completions",
                                               R"({"prompt":[1,2,3],"max_tokens":2,)" + kGreedy + "}"));
    }
    EXPECT_LE(threads_of_process(), threads_before);
    const Json status = status_of(driver_.get());
    EXPECT_EQ(status["active"], 3) << status;
    EXPECT_EQ(status["waiting"], 200) << status;
    for (const auto & call : running) call->cancel();
    for (const auto & call : calls) EXPECT_EQ(call->status(), 200) << call->body();
}

TEST_F(DriverTest, several_choices_come_from_several_slots) {
    Call call(driver_.get(), "/v1/chat/completions", "{" + kQuestion + R"(,"n":2,"max_tokens":8,"seed":1})");
    EXPECT_EQ(call.status(), 200) << call.body();
    EXPECT_EQ(call.json()["choices"].size(), 2u);
    Call many(driver_.get(), "/v1/completions", R"({"prompt":["a","b","c"],"n":2,"max_tokens":4})");
    EXPECT_EQ(many.status(), 200) << many.body();
    EXPECT_EQ(many.json()["choices"].size(), 6u);
}

TEST_F(DriverTest, unknown_paths_and_methods) {
    Call path(driver_.get(), "/v1/nothing", "{}");
    EXPECT_EQ(path.status(), 404);
    EXPECT_EQ(path.json()["error"]["type"], "not_found_error");
    Call method(driver_.get(), "/v1/chat/completions", "", "GET");
    EXPECT_EQ(method.status(), 405);
    Call below(driver_.get(), "/v1/messages/../../etc/passwd", "{}");
    EXPECT_EQ(below.status(), 404);
    EXPECT_EQ(below.json()["type"], "error") << "Anthropic's shape";
    Call embeddings(driver_.get(), "/v1/embeddings", R"({"input":"x"})");
    EXPECT_EQ(embeddings.status(), 501) << embeddings.body();
}

TEST_F(DriverTest, a_prompt_beyond_the_context_is_refused) {
    std::string prompt;
    for (int i = 0; i < 3000; ++i) prompt += "word ";
    Call call(driver_.get(), "/v1/completions", R"({"prompt":")" + prompt + R"("})");
    EXPECT_EQ(call.status(), 400);
    EXPECT_EQ(call.json()["error"]["type"], "exceed_context_size_error") << call.body();
    EXPECT_TRUE(call.json()["error"].contains("n_prompt_tokens")) << call.body();
    Call messages(driver_.get(), "/v1/messages",
                  R"({"max_tokens":5,"messages":[{"role":"user","content":")" + prompt + R"("}]})");
    EXPECT_EQ(messages.status(), 400);
    EXPECT_EQ(messages.json()["error"]["type"], "invalid_request_error") << messages.body();
    Call huge(driver_.get(), "/v1/completions", R"({"prompt":")" + std::string(50 << 20, 'a') + R"("})");
    EXPECT_EQ(huge.status(), 400);
    EXPECT_EQ(huge.json()["error"]["type"], "exceed_context_size_error") << huge.body();
    EXPECT_FALSE(huge.json()["error"].contains("n_prompt_tokens")) << "it is not tokenized\n" << huge.body();
}

// Each of these aborted, hung, or exhausted the server as it comes from upstream, or might have.
TEST_F(DriverTest, hostile_bodies_are_answered_and_harm_nobody) {
    const std::string messages = R"("messages":[{"role":"user","content":"hi"}],"max_tokens":4)";
    const std::string prompt = R"("prompt":"hi","max_tokens":4)";
    const auto repeated = [](const std::string & text, int count) {
        std::string all;
        for (int i = 0; i < count; ++i) all += text;
        return all;
    };
    const auto rule = [](int i) { return std::string("r").append(std::to_string(i)); };
    std::string chain; // rules that refer to each other
    for (int i = 0; i < 30000; ++i) chain.append(rule(i)).append(" ::= ").append(rule(i + 1)).append("\\n");
    struct Case {
        std::string path;
        std::string body;
    };
    const std::vector<Case> cases = {
        {"/v1/completions", ""},
        {"/v1/completions", "null"},
        {"/v1/completions", "[]"},
        {"/v1/completions", "{"},
        {"/v1/completions", std::string("{\"prompt\":\"a\0b\"}", 16)},
        {"/v1/completions", "{\"prompt\":\"\xff\xfe\"}"},
        {"/v1/completions", R"({"prompt":)" + std::string(200000, '[')},
        {"/v1/completions", R"({"prompt":{}})"},
        {"/v1/completions", R"({"prompt":null})"},
        {"/v1/completions", R"({"prompt":[]})"},
        {"/v1/completions", R"({"prompt":[-1]})"},
        {"/v1/completions", R"({"prompt":[999999999]})"},
        {"/v1/completions", R"({"prompt":{"prompt_string":"a","multimodal_data":["AAAA"]}})"},
        {"/v1/completions", R"({"prompt":"","n":2})"},
        {"/v1/completions", "{" + prompt + R"(,"n_predict":1000000000000000000})"},
        {"/v1/completions", "{" + prompt + R"(,"n":1000000})"},
        {"/v1/completions", "{" + prompt + R"(,"n_probs":2147483647})"},
        {"/v1/completions", "{" + prompt + R"(,"repeat_last_n":2147483647})"},
        {"/v1/completions", "{" + prompt + R"(,"n_discard":-1})"},
        {"/v1/completions", "{" + prompt + R"(,"logit_bias":"garbage","temperature":"hot"})"},
        {"/v1/completions", "{" + prompt + R"(,"samplers":[)" + repeated("\"top_k\",", 100000) + R"("top_k"]})"},
        {"/v1/completions", "{" + prompt + R"(,"grammar":"%llguidance {}"})"},
        {"/v1/completions", "{" + prompt + R"(,"grammar":"root ::= )" + std::string(100000, '(') + "\"}"},
        {"/v1/completions", "{" + prompt + R"(,"grammar":"root ::= r0\n)" + chain + R"(r30000 ::= \"a\""})"},
        {"/v1/completions", "{" + prompt + R"(,"grammar":"root ::= root"})"},
        {"/v1/completions", "{" + prompt + R"(,"backend_sampling":true,"grammar":"root ::= \"a\""})"},
        {"/v1/completions", "{" + prompt + R"(,"grammar_lazy":true,"grammar_triggers":[{"type":99,"value":"("}]})"},
        {"/v1/completions",
         "{" + prompt + R"(,"json_schema":)" + repeated(R"({"allOf":[)", 1000) + "{}" + repeated("]}", 1000) + "}"},
        {"/v1/chat/completions", "{}"},
        {"/v1/chat/completions", R"({"messages":5})"},
        {"/v1/chat/completions", R"({"messages":[1,2]})"},
        {"/v1/chat/completions", R"({"messages":[{"role":"user"}]})"},
        {"/v1/chat/completions",
         R"({"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"AA"}}]}]})"},
        {"/v1/chat/completions", "{" + messages + R"(,"tools":[{"type":"function","function":{"name":5}}]})"},
        {"/v1/chat/completions", "{" + messages + R"(,"chat_parser":"{"})"},
        {"/v1/chat/completions", "{" + messages +
                                     R"(,"response_format":{"type":"json_schema","json_schema":{"schema":)"
                                     R"({"$ref":"#/$defs/none"}}}})"},
        {"/v1/chat/completions", "{" + messages + R"(,"response_format":{"type":"wrong"}})"},
        {"/v1/messages", "{}"},
        {"/v1/messages", "{" + kQuestion + "}"}, // max_tokens is required there
        {"/v1/messages", "{" + kQuestion + R"(,"max_tokens":-1})"},
        {"/v1/messages", R"({"max_tokens":4,"messages":[{"role":"user","content":5}]})"},
        {"/v1/responses", R"({"input":{}})"},
        {"/infill", R"({"prompt":"a"})"},
        {"/v1/rerank", R"({"query":"a","documents":["b"],"top_n":-1})"},
        {"/detokenize", R"({"tokens":[-1]})"},
        {"/detokenize", R"({"tokens":[99999999999]})"},
        {"/tokenize", R"({"content":[1,[2]]})"},
        {"/apply-template", R"({"messages":{}})"},
        {"/v1/chat/completions/control", R"({"id":5})"},
    };
    for (const Case & one : cases) {
        Call call(driver_.get(), one.path, one.body);
        ASSERT_TRUE(call.wait(seconds(60))) << one.path << " " << one.body.substr(0, 200);
        EXPECT_GE(call.status(), 400) << one.path << " " << one.body.substr(0, 200) << "\n" << call.body();
        EXPECT_LT(call.status(), 502) << one.path << " " << one.body.substr(0, 200) << "\n" << call.body();
        EXPECT_NE(call.status(), 500) << one.body.substr(0, 200) << "\n" << call.body();
        EXPECT_TRUE(call.json().contains("error")) << call.body();
    }
    expect_alive();
}

// Grammars that have exponentially many readings, or no way on. As upstream has it, the first ones keep the loop of the
// server busy for ever, and the others abort the process; the patch to llama-grammar.cpp makes them errors of one
// request.
TEST_F(DriverTest, hostile_grammars_end_only_their_request) {
    std::string doubling = "root ::= r0\\n";
    for (int i = 0; i < 40; ++i) {
        const std::string next = std::string("r").append(std::to_string(i + 1));
        doubling.append("r").append(std::to_string(i)).append(" ::= ");
        doubling.append(next).append("? ").append(next).append("?\\n");
    }
    doubling += R"(r40 ::= \"a\")";
    const std::vector<std::string> grammars = {
        doubling,
        R"(root ::= x\nx ::= \"a\" x \"b\" | \"a\" x \"c\")", // 2^n stacks after n letters
        R"(root ::= \"a\" [^\\x00-\\U0010FFFF])",             // nothing can follow
        R"(root ::= [^\\x00-\\U0010FFFF])",
    };
    for (const std::string & grammar : grammars) {
        Call call(driver_.get(), "/completion",
                  R"({"prompt":"hi","n_predict":24,"temperature":0,"grammar":")" + grammar + "\"}");
        ASSERT_TRUE(call.wait(seconds(100))) << grammar.substr(0, 200);
        EXPECT_EQ(call.status(), 400) << grammar.substr(0, 200) << "\n" << call.body();
        EXPECT_THAT(call.body(), HasSubstr("grammar"));
    }
    expect_alive();
}

// Odd but allowed: answered, whatever the text is.
TEST_F(DriverTest, odd_numbers_do_no_harm) {
    const std::vector<std::string> fields = {
        R"("temperature":1000000)",
        R"("temperature":1e-30)",
        R"("dynatemp_range":1000000,"dynatemp_exponent":1000000,"temperature":1)",
        R"("repeat_penalty":1e-6)",
        R"("repeat_penalty":1000000)",
        R"("frequency_penalty":-1000000,"presence_penalty":1000000)",
        R"("top_p":0)",
        R"("top_p":0,"min_p":1,"typical_p":0)",
        R"("repeat_penalty":0)",
        R"("top_k":-1)",
        R"("top_k":1,"min_keep":1000000)",
        R"("top_n_sigma":0)",
        R"("top_n_sigma":1e-9)",
        R"("xtc_probability":1,"xtc_threshold":0)",
        R"("mirostat":1,"mirostat_tau":0,"mirostat_eta":1)",
        R"("mirostat":2,"mirostat_tau":0,"mirostat_eta":0)",
        R"("mirostat":2,"mirostat_tau":1000000,"mirostat_eta":1)",
        R"("dry_multiplier":1000000,"dry_base":1000000,"dry_allowed_length":0,"dry_penalty_last_n":1048576)",
        R"("adaptive_target":0.5,"adaptive_decay":0.99,"samplers":["adaptive_p"])",
        R"("logit_bias":[[0,1000000],[1,-1000000],[2,false],["x",5]])",
        R"("samplers":[])",
        R"("samplers":"zzz")",
        R"("n_probs":128,"post_sampling_probs":true)",
        R"("logprobs":0)",
        R"("stop":["","a"])",
        R"("stop":"\u0000")",
        R"("max_tokens":0)",
        R"("n_keep":1073741824,"n_discard":1073741824,"n_cache_reuse":1)",
        R"("id_slot":1)",
        R"("lora":[])",
        R"("response_fields":["a/b/c","content"])",
        R"("reasoning_budget_tokens":0,"reasoning_budget_start_tag":"a","reasoning_budget_end_tag":"b")",
        R"("grammar":"root ::= \"a\"? \"b\"*")",
        R"("grammar":"root ::= [^\\x00]{0,100}")",
        R"("json_schema":{"type":"array","items":{"type":"integer","minimum":-9000000000000000000}})",
        R"("json_schema":{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"})",
        R"("json_schema":{"type":"string","minLength":1000,"maxLength":2000})",
        R"("preserved_tokens":["<|im_end|>"],"generation_prompt":"x")",
        R"("timings_per_token":true,"return_progress":true,"return_tokens":true,"verbose":true)",
    };
    for (const std::string & field : fields) {
        for (const char * stream : {"false", "true"}) {
            Call call(driver_.get(), "/completion",
                      R"({"prompt":"The quick brown fox","n_predict":6,"stream":)" + std::string(stream) + "," + field +
                          "}");
            ASSERT_TRUE(call.wait(seconds(60))) << field;
            EXPECT_TRUE(call.status() == 200 || call.status() == 400) << field << "\n" << call.body();
        }
    }
    expect_alive();
}

// What the server would clamp or ignore without a word.
TEST_F(DriverTest, absurd_parameters_are_refused_by_name) {
    struct Case {
        const char * name;
        const char * value;
    };
    const std::vector<Case> cases = {
        {"temperature", "-1"},
        {"top_p", "50"},
        {"min_p", "9"},
        {"typical_p", "-1"},
        {"xtc_probability", "9"},
        {"mirostat_eta", "1e6"},
        {"mirostat_tau", "-1"},
        {"dynatemp_range", "-5"},
        {"logit_bias", R"({"999999":1})"},
        {"logit_bias", "[[-5,1]]"},
        {"logit_bias", R"([[5,"x"]])"},
        {"lora", R"([{"id":99}])"},
        {"stop", "5"},
        {"max_tokens", "0"},
        {"messages", "[]"},
        {"input", "[]"},
    };
    for (const Case & one : cases) {
        const std::string field = std::string("\"") + one.name + "\":" + one.value;
        const std::string name = one.name;
        const std::string rest = name == "messages" || name == "input" ? "" : kQuestion + ",";
        Call call(driver_.get(), name == "input" ? "/v1/responses" : "/v1/chat/completions", "{" + rest + field + "}");
        EXPECT_EQ(call.status(), 400) << field << "\n" << call.body();
        const Json error = call.json()["error"];
        EXPECT_EQ(error["type"], "invalid_request_error") << call.body();
        EXPECT_THAT(error["message"].get<std::string>(), testing::StartsWith(name + " ")) << call.body();
    }
    expect_alive();
}

TEST_F(DriverTest, arguments_of_the_c_interface_are_checked) {
    strata_driver * driver = nullptr;
    EXPECT_EQ(strata_driver_open(nullptr, nullptr, &driver), STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_driver_open("x.gguf", nullptr, nullptr), STRATA_INVALID_ARGUMENT);
    strata_request * request = nullptr;
    const strata_response_fns fns = {};
    EXPECT_EQ(strata_driver_request(nullptr, "POST", "/", nullptr, 0, 0, &fns, nullptr, &request),
              STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_driver_request(driver_.get(), "POST", "/", nullptr, 5, 0, &fns, nullptr, &request),
              STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(strata_driver_request(driver_.get(), "POST", nullptr, nullptr, 0, 0, &fns, nullptr, &request),
              STRATA_INVALID_ARGUMENT);
    EXPECT_EQ(request, nullptr);
    strata_request_cancel(nullptr);
    strata_request_release(nullptr);
    strata_driver_close(nullptr);
    EXPECT_EQ(strata_driver_status(driver_.get(), nullptr), STRATA_INVALID_ARGUMENT);
}

TEST(DriverLoad, failures_say_why) {
    strata_driver * driver = nullptr;
    EXPECT_EQ(strata_driver_open("/nowhere/model.gguf", nullptr, &driver), STRATA_NOT_FOUND);
    EXPECT_THAT(strata_last_error(), HasSubstr("/nowhere/model.gguf"));

    strata_driver_options options;
    STRATA_INIT(&options);
    struct Argument {
        std::vector<const char *> words;
        const char * message;
    };
    const std::vector<Argument> arguments = {
        {{"--host", "0.0.0.0"}, "'--host' can't be set"},
        {{"--port", "80"}, "'--port' can't be set"},
        {{"-m", "/etc/passwd"}, "'-m' can't be set"},
        {{"--api-key", "x"}, "can't be set"},
        {{"--slot_save_path", "/tmp"}, "can't be set"},
        {{"--log-file", "/tmp/x"}, "can't be set"},
        {{"--version"}, "can't be set"},
        {{"-hf", "a/b"}, "can't be set"},
        {{"--no-such-thing"}, "unknown"},
        {{"--cache-type-k"}, "lacks its value"},
        {{"--cache-type-k", "nonsense"}, "bad value"},
        {{"--keep", "many"}, "bad value"},
    };
    for (const Argument & one : arguments) {
        std::vector<const char *> words = one.words;
        words.push_back(nullptr);
        options.llama_args = words.data();
        EXPECT_EQ(strata_driver_open(model_path().c_str(), &options, &driver), STRATA_INVALID_ARGUMENT) << one.words[0];
        EXPECT_THAT(strata_last_error(), HasSubstr(one.message));
        EXPECT_EQ(driver, nullptr);
    }
    options.llama_args = nullptr;
    options.slots = 100000;
    EXPECT_EQ(strata_driver_open(model_path().c_str(), &options, &driver), STRATA_INVALID_ARGUMENT);
    EXPECT_THAT(strata_last_error(), HasSubstr("slots"));
}

TEST(DriverLoad, progress_can_give_up) {
    int calls = 0;
    strata_driver_options options;
    STRATA_INIT(&options);
    options.context_tokens = 256;
    options.slots = 1;
    options.progress = [](const char *, uint64_t, uint64_t, void * user) {
        ++*static_cast<int *>(user);
        return false;
    };
    options.user = &calls;
    strata_driver * driver = nullptr;
    EXPECT_EQ(strata_driver_open(model_path().c_str(), &options, &driver), STRATA_CANCELLED);
    EXPECT_EQ(driver, nullptr);
    EXPECT_EQ(calls, 1) << "not asked again";
}

TEST(DriverQueue, a_full_queue_and_a_passed_deadline) {
    const DriverHandle driver = open_driver([](strata_driver_options & options) {
        options.slots = 1;
        options.max_waiting = 2;
    });
    ASSERT_NE(driver, nullptr);
    const std::string body = R"({"prompt":"Count:","max_tokens":1000,"ignore_eos":true,"stream":true})";
    Call running(driver.get(), "/v1/completions", body);
    ASSERT_TRUE(running.wait_data(2));
    Call prepared(driver.get(), "/v1/completions", body);
    ASSERT_TRUE(eventually([&] { return status_of(driver.get())["active"] == 2; }));
    Call waiting(driver.get(), "/v1/completions", body);
    {
        Call another(driver.get(), "/v1/completions", body);
        Call refused(driver.get(), "/v1/completions", body);
        EXPECT_EQ(refused.status(), 429);
        EXPECT_EQ(refused.json()["error"]["type"], "rate_limit_error") << refused.body();
        another.cancel();
    }
    Call late(driver.get(), "/v1/messages", "{" + kQuestion + R"(,"max_tokens":5})", "POST", 50);
    EXPECT_EQ(late.status(), 503);
    EXPECT_EQ(late.json()["error"]["type"], "overloaded_error") << late.body();
    waiting.cancel();
    EXPECT_TRUE(waiting.wait());
    EXPECT_EQ(waiting.status(), 0) << "cancelled before its answer began";
    prepared.cancel();
    running.cancel();
}

TEST(DriverQueue, draining_lets_running_ones_end) {
    const DriverHandle driver = open_driver([](strata_driver_options & options) { options.slots = 1; });
    ASSERT_NE(driver, nullptr);
    const std::string body = R"({"prompt":"Count:","max_tokens":60,"ignore_eos":true,"stream":true})";
    Call running(driver.get(), "/v1/completions", body);
    Call waiting(driver.get(), "/v1/completions", body);
    ASSERT_TRUE(running.wait_data(2));
    EXPECT_EQ(strata_driver_drain(driver.get(), 1), STRATA_UNAVAILABLE);
    Call late(driver.get(), "/v1/completions", body);
    EXPECT_EQ(late.status(), 503);
    EXPECT_EQ(status_of(driver.get())["draining"], true);
    EXPECT_EQ(strata_driver_drain(driver.get(), 60000), STRATA_OK) << strata_last_error();
    EXPECT_TRUE(running.body().ends_with("data: [DONE]\n\n"));
    EXPECT_TRUE(waiting.body().ends_with("data: [DONE]\n\n"));
}

TEST(DriverQueue, closing_ends_whatever_runs_or_waits) {
    for (int round = 0; round < 3; ++round) {
        std::vector<std::unique_ptr<Call>> calls;
        {
            const DriverHandle driver = open_driver();
            ASSERT_NE(driver, nullptr);
            for (int i = 0; i < 20; ++i) {
                calls.push_back(std::make_unique<Call>(
                    driver.get(), i % 2 == 0 ? "/v1/completions" : "/v1/chat/completions",
                    R"({"prompt":"Count:",)" + kQuestion + R"(,"max_tokens":1000,"ignore_eos":true,"stream":true})"));
            }
            if (round > 0) {
                ASSERT_TRUE(calls[0]->wait_data(static_cast<size_t>(round)));
            }
        }
        for (const auto & call : calls) {
            EXPECT_TRUE(call->wait(seconds(0))) << "closing waits for the end of each";
            call->cancel(); // the driver is gone
        }
    }
}

TEST(DriverQueue, two_drivers_in_one_process) {
    const DriverHandle first = open_driver();
    const DriverHandle second = open_driver([](strata_driver_options & options) { options.alias = "second"; });
    ASSERT_NE(first, nullptr);
    ASSERT_NE(second, nullptr);
    const std::string body = R"({"prompt":"The sea is","max_tokens":12,)" + kGreedy + "}";
    Call a(first.get(), "/v1/completions", body);
    Call b(second.get(), "/v1/completions", body);
    EXPECT_EQ(a.json()["choices"][0]["text"], b.json()["choices"][0]["text"]);
    EXPECT_EQ(b.json()["model"], "second");
}

// llama.cpp's own server as a process, asked over plain HTTP.
class LlamaServer {
public:
    LlamaServer() {
        std::string name = testing::TempDir() + "strata-driver-XXXXXX";
        folder_ = ::mkdtemp(name.data());
        pid_ = ::fork();
        if (pid_ == 0) exec();
    }
    ~LlamaServer() {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        std::filesystem::remove_all(folder_);
    }
    bool wait_ready() const {
        return eventually([&] { return ask("GET", "/health", "").find(" 200 OK") != std::string::npos; }, seconds(60));
    }
    Json post(const std::string & path, const std::string & body) const {
        const std::string answer = ask("POST", path, body);
        return parse(answer.substr(std::min(answer.find("\r\n\r\n"), answer.size())));
    }

private:
    // A socket of its own in place of a port, which another program could take.
    std::string socket() const { return folder_ / "server.sock"; }
    [[noreturn]] void exec() const {
        const int null = ::open("/dev/null", O_WRONLY);
        ::dup2(null, STDOUT_FILENO);
        ::dup2(null, STDERR_FILENO);
        // as open_driver
        ::execl(STRATA_LLAMA_SERVER, STRATA_LLAMA_SERVER, "-m", model_path().c_str(), "--host", socket().c_str(), "-c",
                "2048", "-np", "2", "-t", "1", "-b", "32", "-ub", "32", "--fit", "off", nullptr);
        ::_exit(127);
    }
    std::string ask(const std::string & method, const std::string & path, const std::string & body) const {
        const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_un to{};
        to.sun_family = AF_UNIX;
        EXPECT_LT(socket().size(), sizeof(to.sun_path));
        socket().copy(to.sun_path, sizeof(to.sun_path) - 1);
        std::string answer;
        if (::connect(fd, reinterpret_cast<const sockaddr *>(&to), sizeof(to)) == 0) {
            const std::string request = method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" +
                                        "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
            (void)!::write(fd, request.data(), request.size());
            char piece[4096];
            for (ssize_t bytes = 0; (bytes = ::read(fd, piece, sizeof(piece))) > 0;) {
                answer.append(piece, static_cast<size_t>(bytes));
            }
        }
        ::close(fd);
        return answer;
    }

    std::filesystem::path folder_;
    pid_t pid_ = -1;
};

TEST_F(DriverTest, greedy_text_equals_that_of_llama_server) {
    const LlamaServer server;
    ASSERT_TRUE(server.wait_ready());
    for (const char * prompt : {"The sea is", "Once upon a time", "def main():", "1, 2, 3,"}) {
        const std::string body = R"({"prompt":")" + std::string(prompt) + R"(","max_tokens":40,)" + kGreedy + "}";
        Call call(driver_.get(), "/v1/completions", body);
        EXPECT_EQ(call.json()["choices"], server.post("/v1/completions", body)["choices"]);
        EXPECT_FALSE(call.json()["choices"][0]["text"].get<std::string>().empty());
    }
    const std::string chat = "{" + kQuestion + "," + kGreedy + R"(,"max_tokens":30})";
    Call call(driver_.get(), "/v1/chat/completions", chat);
    EXPECT_EQ(call.json()["choices"], server.post("/v1/chat/completions", chat)["choices"]);
}

// The encoder that scripts/minilm_to_gguf.py makes, in the same folder.
std::string encoder_path() {
    return std::filesystem::path(model_path()).parent_path() / "minilm-f16.gguf";
}

TEST(DriverEmbeddings, are_answered_and_can_be_cancelled_between_results) {
    if (!std::filesystem::exists(encoder_path())) GTEST_SKIP() << encoder_path() << " is not there";
    strata_driver_options options;
    STRATA_INIT(&options);
    options.embeddings = true;
    options.context_tokens = 512;
    options.batch_tokens = 512;
    options.slots = 2;
    options.threads = 1;
    strata_driver * opened = nullptr;
    ASSERT_EQ(strata_driver_open(encoder_path().c_str(), &options, &opened), STRATA_OK) << strata_last_error();
    const DriverHandle driver(opened);

    Call two(driver.get(), "/v1/embeddings", R"({"input":["a cat","a dog"]})");
    EXPECT_EQ(two.status(), 200) << two.body();
    EXPECT_EQ(two.json()["data"].size(), 2u);
    EXPECT_EQ(two.json()["data"][0]["embedding"].size(), 384u);
    EXPECT_EQ(two.prompt_tokens(), 8);
    Call base64(driver.get(), "/v1/embeddings", R"({"input":"a cat","encoding_format":"base64"})");
    EXPECT_EQ(base64.json()["data"][0]["embedding"].get<std::string>().size(), 2048u);
    Call same(driver.get(), "/v1/embeddings", R"({"input":"a cat","dimensions":384})");
    EXPECT_EQ(same.status(), 200) << same.body();
    Call shorter(driver.get(), "/v1/embeddings", R"({"input":"a cat","dimensions":128})");
    EXPECT_EQ(shorter.status(), 400) << shorter.body();
    EXPECT_EQ(shorter.json()["error"]["param"], "dimensions");

    std::string long_text;
    for (int i = 0; i < 600; ++i) long_text += "cat ";
    Call too_long(driver.get(), "/v1/embeddings", R"({"input":")" + long_text + R"("})");
    EXPECT_EQ(too_long.status(), 400) << too_long.body();
    Call chat(driver.get(), "/v1/chat/completions", "{" + kQuestion + "}");
    EXPECT_GE(chat.status(), 400) << chat.body();
    Call rerank(driver.get(), "/v1/rerank", R"({"query":"a","documents":["b"]})");
    EXPECT_EQ(rerank.status(), 501) << rerank.body();

    std::string inputs = "\"a cat\"";
    for (int i = 1; i < 2048; ++i) inputs += ",\"a cat\"";
    Call many(driver.get(), "/v1/embeddings", R"({"input":[)" + inputs + "]}");
    EXPECT_TRUE(eventually([&] { return busy_slots(status_of(driver.get())) > 0; }));
    many.cancel();
    EXPECT_TRUE(many.wait());
    EXPECT_EQ(many.status(), 0) << "it had not ended before";
    EXPECT_TRUE(eventually([&] { return busy_slots(status_of(driver.get())) == 0; }));
}

} // namespace
