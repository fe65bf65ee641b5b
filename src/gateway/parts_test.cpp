// The gateway's parts that need no socket.

#include "gateway/access.h"
#include "gateway/api_error.h"
#include "gateway/json_scanner.h"
#include "gateway/memory_budget.h"
#include "gateway/response_queue.h"
#include "gateway/routes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace strata::gateway {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<std::string> scan(std::string_view body, size_t piece, size_t depth = 8) {
    JsonScanner scanner(depth);
    for (size_t i = 0; i < body.size(); i += piece) scanner.feed(body.substr(i, piece));
    return scanner.finish();
}

TEST(JsonScanner, FindsTheModelWhereverTheBodyIsCut) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {R"({"model":"a"})", "a"},
        {R"({})", ""},
        {" { \"x\" : [ 1, -2.5e+3, {\"model\":\"inner\"} ] , \"model\" : \"m:q4\" }\r\n", "m:q4"},
        {R"({"messages":[{"model":"no"}]})", ""},
        {R"({"a":"\"model\":\"no\"","model":"yes"})", "yes"},
        {R"({"model":"first","model":"last"})", "last"},
        {R"({"mod\u0065l":"caf\u00e9 \"x\" \\"})", "café \"x\" \\"},
        {R"({"model":null,"t":true,"f":false})", ""},
        {"{\"model\":\"ü\",\"e\":\"\",\"a\":[],\"o\":{}}", "ü"},
        {R"({"x":0,"y":10,"z":-0.5,"model":"n"})", "n"},
    };
    for (const auto & [body, model] : cases) {
        for (const size_t piece : {size_t{1}, size_t{2}, size_t{3}, size_t{7}, body.size()}) {
            const auto found = scan(body, piece);
            ASSERT_TRUE(found.ok()) << body << ": " << found.status();
            EXPECT_EQ(*found, model) << body << " in pieces of " << piece;
        }
    }
}

TEST(JsonScanner, RefusesWhatIsNoJsonObject) {
    const std::vector<std::string> bodies = {
        "",
        " ",
        "[]",
        "\"x\"",
        "1",
        "nul",
        "{",
        "}",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "{\"a\":1,}",
        "{\"a\":[1,]}",
        "{\"a\":[1}",
        "{\"a\":1]",
        "{\"a\" 1}",
        "{\"a\":1}x",
        "{}{}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":1.}",
        "{\"a\":-}",
        "{\"a\":1e}",
        "{\"a\":tru}",
        "{\"a\":1 2}",
        "{,}",
        "{\"a\":'x'}",
        "{\"a\":\"\n\"}",
        "{\"model\":1}",
        "{\"model\":[\"x\"]}",
        "{\"model\":{}}",
        "{\"model\":true}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12g4\"}",
        std::string("{\"a\":\"\0\"}", 9),
        std::string("{\0}", 3),
        "{\"a\":\"x",
        "{\"a\":NaN}",
        "{\"a\"::1}",
        "// c\n{}",
    };
    for (const std::string & body : bodies) {
        for (const size_t piece : {size_t{1}, size_t{1000}}) {
            EXPECT_EQ(scan(body, piece).status().code(), absl::StatusCode::kInvalidArgument) << body;
        }
    }
}

TEST(JsonScanner, AgreesWithAParserOnMutations) {
    const std::string body = R"({"model":"m","n":[1,2.5,{"k":null}],"s":"a\"b\\c","t":true})";
    for (size_t i = 0; i < body.size(); ++i) {
        for (const char c : std::string("\"{}[]:,\\0e-. ")) {
            std::string mutated = body;
            mutated[i] = c;
            const auto json = nlohmann::json::parse(mutated, nullptr, false);
            const bool model_ok = json.is_object() && (!json.contains("model") || json["model"].is_string());
            EXPECT_EQ(scan(mutated, 5).ok(), model_ok) << mutated;
        }
    }
}

TEST(JsonScanner, BoundsNestingAndNames) {
    const auto nested = [](size_t depth) {
        return "{\"a\":" + std::string(depth - 1, '[') + std::string(depth - 1, ']') + "}";
    };
    EXPECT_TRUE(scan(nested(8), 3).ok());
    EXPECT_THAT(std::string(scan(nested(9), 3).status().message()), HasSubstr("deeper than 8"));
    EXPECT_THAT(std::string(scan(std::string(1 << 20, '{'), 4096).status().message()), HasSubstr("byte 1"));
    EXPECT_FALSE(scan("{\"model\":\"" + std::string(5000, 'x') + "\"}", 100).ok());
    EXPECT_TRUE(scan("{\"" + std::string(5000, 'x') + "\":\"" + std::string(100'000, 'y') + "\"}", 100).ok());
    EXPECT_FALSE(scan("{\"a\":" + std::string(5000, '1') + "}", 100).ok());
}

TEST(AccessPolicy, TakesLoopbackAndAllowedNamesOnly) {
    const AccessPolicy policy({"Box.example", "other.example:80"});
    for (const char * host : {"localhost", "LOCALHOST:7420", "localhost.", "app.localhost", "127.0.0.1:1", "127.9.9.9",
                              "[::1]", "[::1]:7420", "box.example", "BOX.EXAMPLE:99", "other.example"}) {
        EXPECT_TRUE(policy.host_allowed(host)) << host;
    }
    for (const char * host : {"", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1",
                              "localhost:80@evil", "localhost@evil", "[::1]evil", "[::1", "localhost:x", "::2",
                              "2130706433", "evil.example:7420", "xlocalhost"}) {
        EXPECT_FALSE(policy.host_allowed(host)) << host;
    }
    EXPECT_TRUE(policy.origin_allowed("http://localhost:3000"));
    EXPECT_TRUE(policy.origin_allowed("HTTPS://box.example"));
    for (const char * origin : {"null", "", "http://evil.example", "localhost", "file://", "http://evil/localhost"}) {
        EXPECT_FALSE(policy.origin_allowed(origin)) << origin;
    }
}

TEST(ApiError, AnEventHasTheShapeOfTheApi) {
    EXPECT_TRUE(error_event("/v1/messages", 503, "x").starts_with("event: error\ndata: {\"type\":\"error\""));
    EXPECT_TRUE(error_event("/v1/responses", 503, "x").starts_with("event: error\ndata: {"));
    EXPECT_TRUE(error_event("/v1/completions", 503, "x").starts_with("data: {\"error\""));
    // Bytes that are not UTF-8 must not end up in JSON.
}

TEST(Routes, MatchWholePathsAndDecodeNames) {
    EXPECT_EQ(find_route("/v1/chat/completions")->handler, Handler::kApi);
    EXPECT_EQ(find_route("/v1/models/a/b:c")->handler, Handler::kModel);
    EXPECT_EQ(find_route("/v1/models/"), nullptr);
    EXPECT_EQ(find_route("/v1/chat/completions/"), nullptr);
    EXPECT_EQ(find_route("/V1/models"), nullptr);
    EXPECT_EQ(percent_decoded("a%2Fb%3aq4%"), "a/b:q4%");
    EXPECT_EQ(percent_decoded("%4"), "%4");
    EXPECT_EQ(percent_decoded("%zz%41"), "%zzA");
}

TEST(MemoryBudget, SharesGiveBackWhatTheyTook) {
    const auto budget = std::make_shared<MemoryBudget>(100);
    MemoryShare a(budget);
    EXPECT_TRUE(a.grow_to(60));
    {
        MemoryShare b(budget);
        EXPECT_FALSE(b.grow_to(41));
        EXPECT_TRUE(b.grow_to(40));
        MemoryShare c = std::move(b);
        EXPECT_EQ(budget->used(), 100u);
        EXPECT_FALSE(a.grow_to(61));
    }
    EXPECT_EQ(budget->used(), 60u);
    a.reset();
    EXPECT_EQ(budget->used(), 0u);
}

class ResponseQueueTest : public ::testing::Test {
protected:
    std::shared_ptr<MemoryBudget> budget = std::make_shared<MemoryBudget>(1000);
    std::shared_ptr<InFlight> in_flight = std::make_shared<InFlight>();
    int woken = 0;
    std::shared_ptr<ResponseQueue> queue = std::make_shared<ResponseQueue>(ResponseQueue::Options{
        .stream_bytes = 10,
        .answer_bytes = 20,
        .budget = budget,
        .token = InFlightToken(in_flight),
        .wake = [this](bool) { ++woken; },
    });
};

TEST_F(ResponseQueueTest, PutsTogetherWhatComesBetweenTwoTakes) {
    queue->on_head(200, "text/event-stream; charset=utf-8");
    queue->on_data("ab");
    queue->on_data("cd");
    EXPECT_EQ(woken, 1);
    auto batch = queue->take();
    EXPECT_TRUE(batch.has_head && batch.streamed && !batch.ended);
    EXPECT_EQ(batch.data, "abcd");
    queue->on_data("ef");
    queue->on_end(1, 1);
    EXPECT_EQ(woken, 2);
    batch = queue->take();
    EXPECT_TRUE(batch.ended);
    EXPECT_EQ(batch.data, "ef");
    EXPECT_TRUE(in_flight->wait_idle(std::chrono::milliseconds(0)));
}

TEST_F(ResponseQueueTest, CountsWhatIsBeingWrittenAsWaiting) {
    queue->on_head(200, "text/event-stream");
    queue->on_data("12345678");
    auto batch = queue->take();
    queue->on_data("12");
    EXPECT_EQ(budget->used(), 10u);
    EXPECT_FALSE(queue->take().overflow);
    queue->on_data("123456789");
    EXPECT_TRUE(queue->take().overflow);
}

TEST_F(ResponseQueueTest, HandsOverAnAnswerWhenItIsComplete) {
    queue->on_head(404, "application/json");
    queue->on_data("0123456789");
    queue->on_data("0123456789");
    EXPECT_EQ(woken, 0);
    EXPECT_FALSE(queue->take().has_head);
    queue->on_end(0, 0);
    EXPECT_EQ(woken, 1);
    const auto batch = queue->take();
    EXPECT_EQ(batch.status, 404);
    EXPECT_EQ(batch.content_type, "application/json");
    EXPECT_EQ(batch.data.size(), 20u);
}

TEST_F(ResponseQueueTest, DropsEverythingOnceDetached) {
    queue->on_head(200, "text/event-stream");
    queue->on_data("1234");
    queue->detach();
    EXPECT_EQ(budget->used(), 0u);
    queue->on_data("1234");
    EXPECT_EQ(budget->used(), 0u);
    EXPECT_FALSE(in_flight->wait_idle(std::chrono::milliseconds(0)));
    queue->on_end(0, 0);
    EXPECT_TRUE(in_flight->wait_idle(std::chrono::milliseconds(0)));
    EXPECT_EQ(woken, 1);
}

} // namespace
} // namespace strata::gateway
