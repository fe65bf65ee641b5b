// What well-behaved clients see.

#include "gateway/test_support.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace strata::gateway::testing {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

class Http : public ::testing::Test, public Fixture {};

TEST_F(Http, PassesARequestOnAndAnswersWithLength) {
    start();
    Client connection = client();
    connection.send(post("/v1/chat/completions", R"({"messages":[],"model":"m:q4"})"));
    auto served = backend.next();
    ASSERT_TRUE(served);
    EXPECT_EQ(served->request.method, "POST");
    EXPECT_EQ(served->request.path, "/v1/chat/completions");
    EXPECT_EQ(served->request.model, "m:q4");
    EXPECT_EQ(served->request.body, R"({"messages":[],"model":"m:q4"})");
    served->sink->on_head(200, "application/json; charset=utf-8");
    served->sink->on_data("{\"a\":");
    served->sink->on_data("1}");
    served->sink->on_end(3, 4);
    const HttpAnswer answer = connection.read_answer();
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "{\"a\":1}");
    EXPECT_EQ(answer.headers.at("content-length"), "7");
    EXPECT_EQ(answer.headers.at("content-type"), "application/json; charset=utf-8");
    EXPECT_EQ(answer.headers.at("x-request-id"), served->request.id);
    EXPECT_TRUE(answer.headers.count("date"));
    EXPECT_FALSE(served->call->cancelled);
    EXPECT_TRUE(eventually(
        [&] { return metric(R"(strata_http_requests_total{path="/v1/chat/completions",status="200"})") == 1; }));
}

TEST_F(Http, StreamsEventsAsTheyCome) {
    start();
    Client connection = client();
    connection.send(post("/v1/completions", R"({"model":"m","stream":true})"));
    auto served = backend.next();
    ASSERT_TRUE(served);
    served->sink->on_head(200, "text/event-stream");
    ASSERT_TRUE(connection.read_until("\r\n\r\n")); // the head comes before the first token
    EXPECT_TRUE(eventually([&] { return metric("strata_http_open_streams") == 1; }));
    for (int i = 0; i < 3; ++i) {
        const std::string event = fmt::format("data: {}\n\n", i);
        served->sink->on_data(event);
        ASSERT_TRUE(connection.read_until(event));
    }
    served->sink->on_end(1, 3);
    const HttpAnswer answer = connection.read_answer();
    EXPECT_TRUE(answer.complete);
    EXPECT_EQ(answer.body, "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    EXPECT_EQ(answer.headers.at("cache-control"), "no-cache");
    EXPECT_EQ(answer.headers.at("transfer-encoding"), "chunked");
    EXPECT_TRUE(answer.headers.count("x-request-id"));
    EXPECT_TRUE(eventually([&] { return metric("strata_http_open_streams") == 0; }));
    // The connection is good for another one.
    backend.script = FakeBackend::answer(200, "{}");
    connection.send(post("/tokenize", "{}"));
    EXPECT_EQ(connection.read_answer().status, 200);
    EXPECT_GE(metric("strata_http_first_byte_seconds_count"), 2);
}

TEST_F(Http, PutsWaitingEventsIntoOneChunk) {
    backend.script = [](Served & served) {
        served.sink->on_head(200, "text/event-stream");
        for (int i = 0; i < 100; ++i) served.sink->on_data("data: x\n\n");
        served.sink->on_end(1, 1);
    };
    start();
    Client connection = client();
    connection.send(post("/v1/completions", R"({"stream":true})"));
    ASSERT_TRUE(connection.read_until("\r\n0\r\n\r\n"));
    EXPECT_THAT(connection.received(), HasSubstr(fmt::format("\r\n\r\n{:x}\r\ndata", 9 * 100)));
}

TEST_F(Http, ServesAllApiPaths) {
    backend.script = FakeBackend::answer(200, "{}");
    start();
    Client connection = client(); // one connection, kept alive
    for (const char * path : {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
                              "/v1/messages", "/v1/messages/count_tokens", "/v1/rerank", "/tokenize", "/detokenize",
                              "/apply-template", "/completion", "/infill", "/v1/completions?beta=true"}) {
        connection.send(post(path, R"({"model":"m"})", "Content-Type: text/plain\r\n"));
        const HttpAnswer answer = connection.read_answer();
        EXPECT_EQ(answer.status, 200) << path;
        EXPECT_EQ(answer.headers.count("request-id"), std::string(path).starts_with("/v1/messages") ? 1 : 0);
    }
}

TEST_F(Http, ListsModelsForOpenAiAndAnthropic) {
    backend.model_list = {{.name = "org/m:latest",
                           .created_unix = 1'700'000'000,
                           .architecture = "llama",
                           .parameters = 135,
                           .size_bytes = 10,
                           .context_tokens = 2048,
                           .ready = true},
                          {.name = "b:q4", .created_unix = 1, .architecture = "bert"}};
    start();
    const HttpAnswer answer = ask(get("/v1/models"));
    const auto list = nlohmann::json::parse(answer.body);
    EXPECT_EQ(list["object"], "list");
    EXPECT_EQ(list["data"].size(), 2u);
    EXPECT_EQ(list["data"][0]["id"], "org/m:latest");
    EXPECT_EQ(list["data"][0]["created"], 1'700'000'000);
    EXPECT_EQ(list["data"][0]["owned_by"], "strata");
    EXPECT_EQ(list["data"][0]["created_at"], "2023-11-14T22:13:20Z");
    EXPECT_EQ(list["has_more"], false);
    EXPECT_EQ(list["last_id"], "b:q4");
    EXPECT_EQ(nlohmann::json::parse(ask(get("/v1/models/org%2Fm%3Alatest")).body)["id"], "org/m:latest");
    EXPECT_EQ(nlohmann::json::parse(ask(get("/v1/models/org/m")).body)["id"], "org/m:latest");
    EXPECT_EQ(nlohmann::json::parse(ask(get("/v1/models/b")).body)["id"], "b:q4"); // the only one of that name
    EXPECT_EQ(ask(get("/v1/models/b:latest")).status, 404);
    EXPECT_EQ(ask(get("/v1/models/c")).status, 404);
    EXPECT_EQ(backend.count(), 0u);
}

TEST_F(Http, HealthIndexAndMetrics) {
    start();
    EXPECT_EQ(ask(get("/healthz")).status, 200);
    EXPECT_THAT(ask(get("/")).body, HasSubstr("/v1/chat/completions"));
    const HttpAnswer metrics = ask(get("/metrics"));
    EXPECT_THAT(metrics.headers.at("content-type"), HasSubstr("version=0.0.4"));
    EXPECT_THAT(metrics.body, HasSubstr("strata_http_requests_total"));
    backend.accepts = false;
    EXPECT_EQ(ask(get("/healthz")).status, 503);
    const HttpAnswer refused = ask(post("/v1/completions", "{}"));
    EXPECT_EQ(refused.status, 503);
    EXPECT_EQ(refused.headers.at("retry-after"), "1");
    EXPECT_EQ(backend.count(), 0u);
}

TEST_F(Http, ErrorsHaveTheShapeOfTheApi) {
    start();
    HttpAnswer answer = ask(get("/nowhere"));
    EXPECT_EQ(answer.status, 404);
    EXPECT_EQ(nlohmann::json::parse(answer.body)["error"]["code"], 404);
    answer = ask(get("/v1/messages"));
    EXPECT_EQ(answer.status, 405);
    EXPECT_EQ(answer.headers.at("allow"), "POST, OPTIONS");
    EXPECT_EQ(nlohmann::json::parse(answer.body)["type"], "error");
    answer = ask(post("/v1/models", "{}"));
    EXPECT_EQ(answer.status, 405);
    EXPECT_EQ(answer.headers.at("allow"), "GET, HEAD, OPTIONS");
    EXPECT_EQ(ask("BREW /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 405);
    for (const char * body : {"", "{", "not json", "[]", R"({"model":7})"}) {
        answer = ask(post("/v1/chat/completions", body));
        EXPECT_EQ(answer.status, 400) << body;
        EXPECT_TRUE(nlohmann::json::parse(answer.body)["error"]["message"].is_string());
        EXPECT_EQ(nlohmann::json::parse(answer.body)["error"]["param"] == "model",
                  body == std::string(R"({"model":7})"));
    }
    EXPECT_EQ(ask(post("/v1/completions", "{}", "Content-Encoding: gzip\r\n")).status, 415);
    EXPECT_EQ(backend.count(), 0u);
}

TEST_F(Http, HeadAndOptionsHaveNoBody) {
    start();
    HttpAnswer answer = ask("HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.headers.at("content-length"), "15");
    answer = ask("OPTIONS /v1/messages HTTP/1.1\r\nHost: localhost\r\n\r\n");
    EXPECT_EQ(answer.status, 204);
    EXPECT_EQ(answer.headers.at("allow"), "POST, OPTIONS");
    EXPECT_EQ(ask("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 204);
    EXPECT_FALSE(answer.headers.count("access-control-allow-origin"));
    // Nothing is left over that would be taken for the next answer.
    Client connection = client();
    connection.send("HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" + get("/healthz"));
    EXPECT_EQ(connection.read_answer(true).status, 200);
    EXPECT_EQ(connection.read_answer().body, R"({"status":"ok"})");
}

TEST_F(Http, TakesChunkedBodiesAndExpect) {
    backend.script = [](Served & served) { FakeBackend::answer(200, served.request.body)(served); };
    start();
    Client connection = client();
    connection.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                    "5;ext=\"1\"\r\n{\"con\r\n");
    std::this_thread::sleep_for(20ms);
    connection.send("A\r\ntent\":\"x\"}\r\n0\r\nTrailer: 1\r\n\r\n");
    EXPECT_EQ(connection.read_answer().body, R"({"content":"x"})");

    connection.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    ASSERT_TRUE(connection.read_until("100 Continue\r\n\r\n"));
    connection.send("{}");
    const HttpAnswer answer = connection.read_answer();
    EXPECT_EQ(answer.interim, 1);
    EXPECT_EQ(answer.body, "{}");
    // No "100" before a refusal.
    connection.send("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    EXPECT_EQ(connection.read_answer().interim, 0);
}

TEST_F(Http, AnswersPipelinedRequestsInOrder) {
    backend.script = [](Served & served) { FakeBackend::answer(200, served.request.body)(served); };
    start();
    Client connection = client();
    std::string requests;
    for (int i = 0; i < 50; ++i) requests += post("/tokenize", fmt::format("{{\"n\":{}}}", i)) + get("/healthz");
    connection.send(requests);
    for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(connection.read_answer().body, fmt::format("{{\"n\":{}}}", i));
        EXPECT_EQ(connection.read_answer().status, 200);
    }
}

TEST_F(Http, TakesWhatIsPipelinedBehindAWaitingRequest) {
    start();
    Client connection = client();
    connection.send(post("/tokenize", R"({"n":1})"));
    auto first = backend.next();
    ASSERT_TRUE(first);
    connection.send(post("/tokenize", R"({"n":2})"));
    std::this_thread::sleep_for(50ms);
    EXPECT_EQ(backend.count(), 1u);
    EXPECT_FALSE(first->call->cancelled);
    FakeBackend::answer(200, "1")(*first);
    auto second = backend.next();
    ASSERT_TRUE(second);
    EXPECT_EQ(second->request.body, R"({"n":2})");
    FakeBackend::answer(200, "2")(*second);
    EXPECT_EQ(connection.read_answer().body, "1");
    EXPECT_EQ(connection.read_answer().body, "2");
}

TEST_F(Http, SpeaksHttp10) {
    backend.script = [](Served & served) {
        served.sink->on_head(200, "text/event-stream");
        served.sink->on_data("data: 1\n\n");
        served.sink->on_end(1, 1);
    };
    start();
    Client connection = client();
    connection.send("GET /healthz HTTP/1.0\r\n\r\n");
    HttpAnswer answer = connection.read_answer();
    EXPECT_EQ(answer.headers.at("connection"), "close");
    EXPECT_TRUE(connection.closed_by_server());

    Client alive = client();
    alive.send("GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    EXPECT_EQ(alive.read_answer().headers.at("connection"), "keep-alive");
    alive.send("POST /v1/completions HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}");
    answer = alive.read_answer();
    EXPECT_FALSE(answer.headers.count("transfer-encoding"));
    EXPECT_EQ(answer.body, "data: 1\n\n"); // until the end of the connection
}

TEST_F(Http, ClosesWhenAsked) {
    start();
    Client connection = client();
    connection.send(get("/healthz", "Connection: close\r\n"));
    EXPECT_EQ(connection.read_answer().headers.at("connection"), "close");
    EXPECT_TRUE(connection.closed_by_server());
}

TEST_F(Http, SaysWhenToTryAgain) {
    backend.script = [](Served & served) {
        if (served.request.model == "said") served.sink->on_retry_after(17);
        FakeBackend::answer(served.request.model == "said" ? 503 : 429, "{}")(served);
    };
    start();
    EXPECT_EQ(ask(post("/v1/completions", R"({"model":"said"})")).headers.at("retry-after"), "17");
    EXPECT_EQ(ask(post("/v1/completions", R"({"model":"x"})")).headers.at("retry-after"), "1");
}

TEST_F(Http, AnswersWhenTheBackendEndsWithoutAWord) {
    backend.script = [](Served & served) { served.sink->on_end(0, 0); };
    start();
    const HttpAnswer answer = ask(post("/v1/messages", "{}"));
    EXPECT_EQ(answer.status, 500);
    EXPECT_EQ(nlohmann::json::parse(answer.body)["error"]["type"], "api_error");
}

TEST_F(Http, RefusesForeignHostsAndOrigins) {
    backend.script = FakeBackend::answer(200, "{}");
    ServerOptions options;
    options.allow_hosts = {"box.example"};
    start(options);
    const auto host = [&](std::string_view name) {
        return ask(fmt::format("GET /v1/models HTTP/1.1\r\nHost: {}\r\n\r\n", name)).status;
    };
    EXPECT_EQ(host("127.0.0.1:7420"), 200);
    EXPECT_EQ(host("box.example"), 200);
    EXPECT_EQ(host("evil.example"), 403);
    EXPECT_EQ(ask("GET http://evil.example/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 403);
    EXPECT_EQ(ask("GET http://localhost:1/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
    const auto origin = [&](std::string_view name) {
        return ask(post("/tokenize", "{}", fmt::format("Origin: {}\r\n", name))).status;
    };
    EXPECT_EQ(origin("http://localhost:3000"), 200);
    EXPECT_EQ(origin("https://box.example"), 200);
    EXPECT_EQ(origin("https://evil.example"), 403);
    EXPECT_EQ(origin("null"), 403);
    EXPECT_EQ(ask(get("/v1/models", "Origin: https://evil.example\r\n")).status, 200); // which it can't read
    EXPECT_EQ(metric(R"(strata_http_refused_total{reason="foreign_origin"})"), 2);
}

TEST(ServerStart, ListensOnLoopbackOnly) {
    FakeBackend backend;
    prometheus::Registry registry;
    for (const char * address : {"0.0.0.0", "::", "10.1.2.3", "example.org", ""}) {
        ServerOptions options;
        options.address = address;
        options.port = 0;
        const auto started = Server::start(options, backend, registry, nullptr);
        EXPECT_EQ(started.status().code(), absl::StatusCode::kInvalidArgument) << address;
    }
    ServerOptions options;
    options.address = "0.0.0.0";
    EXPECT_THAT(std::string(Server::start(options, backend, registry, nullptr).status().message()),
                HasSubstr("until certificates and API keys exist"));
    options.address = "localhost";
    options.port = 0;
    const auto first = Server::start(options, backend, registry, nullptr);
    ASSERT_TRUE(first.ok()) << first.status();
    EXPECT_EQ((*first)->url(), fmt::format("http://127.0.0.1:{}", (*first)->port()));
    options.port = (*first)->port();
    const auto second = Server::start(options, backend, registry, nullptr);
    EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
    EXPECT_THAT(std::string(second.status().message()), HasSubstr("--listen"));
}

class Ending : public Http {};

TEST_F(Ending, DrainLetsRunningRequestsFinish) {
    start();
    Client streaming = client();
    streaming.send(post("/v1/completions", R"({"stream":true})"));
    auto stream = backend.next();
    ASSERT_TRUE(stream);
    stream->sink->on_head(200, "text/event-stream");
    Client waiting = client();
    waiting.send(post("/v1/completions", "{}"));
    auto plain = backend.next();
    ASSERT_TRUE(plain);
    Client idle = client();
    idle.send(get("/healthz"));
    EXPECT_EQ(idle.read_answer().status, 200);
    Client half = client(); // a request under way: the server has read its begin with the one before
    half.send(get("/healthz") + "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Le");
    EXPECT_EQ(half.read_answer().status, 200);

    const uint16_t port = server->port();
    server->drain();
    EXPECT_LT(Client(port).fd(), 0); // refused
    EXPECT_TRUE(idle.closed_by_server());
    half.send("ngth: 2\r\n\r\n{}");
    EXPECT_EQ(half.read_answer().status, 503);
    EXPECT_FALSE(server->wait_idle(50ms));
    FakeBackend::answer(200, "{}")(*plain);
    const HttpAnswer answer = waiting.read_answer();
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.headers.at("connection"), "close");
    stream->sink->on_data("data: last\n\n");
    EXPECT_FALSE(server->wait_idle(20ms));
    stream->sink->on_end(1, 1);
    EXPECT_EQ(streaming.read_answer().body, "data: last\n\n");
    EXPECT_TRUE(server->wait_idle(60s));
}

TEST_F(Ending, StopCancelsWhatRuns) {
    start();
    std::vector<Served> served;
    std::vector<Client> clients;
    for (int i = 0; i < 20; ++i) {
        clients.push_back(client());
        clients.back().send(post("/v1/completions", "{}"));
        served.push_back(*backend.next());
        if (i % 2) served.back().sink->on_head(200, "text/event-stream");
    }
    clients.push_back(client()); // idle
    clients.push_back(client()); // in the middle of a body
    clients.back().send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{");
    server->stop();
    for (auto & one : served) {
        EXPECT_TRUE(one.call->cancelled);
        // A backend that is late must not hurt.
        one.sink->on_data("data: late\n\n");
    }
    for (auto & connection : clients) EXPECT_TRUE(connection.closed_by_server());
    server.reset();
    for (auto & one : served) one.sink->on_end(0, 0);
}

} // namespace
} // namespace strata::gateway::testing
