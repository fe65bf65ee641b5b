// What badly behaved clients see, and that others don't notice.

#include "gateway/test_support.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/socket.h>

#include <fstream>

namespace strata::gateway::testing {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

size_t resident_bytes() {
    std::ifstream file("/proc/self/statm");
    size_t total = 0;
    size_t resident = 0;
    file >> total >> resident;
    return resident * 4096;
}

class Hostile : public ::testing::Test, public Fixture {
protected:
    // Short times, so that the tests are.
    static ServerOptions impatient() {
        ServerOptions options;
        options.limits.header_time = 200ms;
        options.limits.body_time = 200ms;
        options.limits.idle_time = 300ms;
        options.limits.write_time = 300ms;
        options.limits.linger_time = 500ms;
        options.limits.sweep_time = 20ms;
        return options;
    }
};

TEST_F(Hostile, MalformedRequestsGetTheirStatusAndTheConnectionEnds) {
    backend.script = FakeBackend::answer(200, "{}");
    start();
    const std::string head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\n";
    const std::string nul("\0", 1);
    const std::vector<std::pair<std::string, int>> cases = {
        {"\x16\x03\x01\x02\x01\x01\xfc\x03\x03 hello over TLS\r\n\r\n", 400},
        {"garbage\r\n\r\n", 400},
        {"GET\r\n\r\n", 400},
        {"GET /\r\n\r\n", 400},
        {"GET / HTTP/1.1 x\r\nHost: localhost\r\n\r\n", 505},
        {"GET / HTTP/3.7\r\nHost: localhost\r\n\r\n", 505},
        {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
        {"GET /a" + nul + "b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: localhost\r\nX: a" + nul + "b\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\n\r\n", 400},
        {"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400},
        {"GET / HTTP/1.1\nHost: localhost\n\n\r\n\r\n", 505},
        {head + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", 400},
        {head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
        {head + "Content-Length: 2, 2\r\n\r\n{}", 400},
        {head + "Content-Length: -1\r\n\r\n{}", 400},
        {head + "Content-Length: +2\r\n\r\n{}", 400},
        {head + "Content-Length: 0x2\r\n\r\n{}", 400},
        {head + "Content-Length: 99999999999999999999999\r\n\r\n{}", 400},
        {head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        {head + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400},
        {head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        {head + "Transfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", 400},
        {head + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
        {head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
        {"POST /tokenize HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
        {head + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n{}\r\n0\r\n\r\n", 400},
        {head + "Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n", 400},
        {head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n", 400},
        {head + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n", 400},
        {head + "Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n{}\r\n0\r\n\r\n", 413},
        {head + "Transfer-Encoding: chunked\r\n\r\n2;" + std::string(20'000, 'x') + "\r\n{}\r\n0\r\n\r\n", 400},
    };
    for (const auto & [request, status] : cases) {
        Client connection = client();
        connection.send(request + get("/healthz")); // must not be taken for a second request
        HttpAnswer answer = connection.read_answer();
        EXPECT_EQ(answer.status, status) << request.substr(0, 200);
        EXPECT_EQ(answer.headers["connection"], "close") << request.substr(0, 200);
        EXPECT_FALSE(nlohmann::json::parse(answer.body, nullptr, false).is_discarded()) << answer.body;
        connection.half_close();
        EXPECT_TRUE(connection.closed_by_server()) << request.substr(0, 200);
        EXPECT_EQ(connection.received(), "") << request.substr(0, 200);
    }
    EXPECT_EQ(backend.count(), 0u);
    EXPECT_EQ(ask(get("/healthz")).status, 200);
}

TEST_F(Hostile, SplitAtEveryByteARequestIsStillOne) {
    backend.script = [](Served & served) { FakeBackend::answer(200, served.request.body)(served); };
    start();
    const std::string request = "\r\nPOST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
                                "2\r\n{}\r\n0\r\n\r\n";
    Client connection = client();
    for (int round = 0; round < 2; ++round) {
        for (const char c : request) connection.send(std::string_view(&c, 1));
        EXPECT_EQ(connection.read_answer().body, "{}");
    }
}

TEST_F(Hostile, LongHeadersAre431) {
    start();
    Client one_line = client();
    one_line.send("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + std::string(20'000, 'x'));
    EXPECT_EQ(one_line.read_answer().status, 431);
    Client many = client();
    std::string headers = "GET / HTTP/1.1\r\nHost: localhost\r\n";
    for (int i = 0; i < 5000; ++i) headers += fmt::format("X-{}: y\r\n", i);
    many.send(headers + "\r\n");
    EXPECT_EQ(many.read_answer().status, 431);
    Client target = client();
    target.send("GET /" + std::string(40'000, 'x'));
    EXPECT_EQ(target.read_answer().status, 431);
    EXPECT_EQ(metric(R"(strata_http_refused_total{reason="headers_too_large"})"), 3);
}

TEST_F(Hostile, AGigabyteIsRefusedBeforeItIsRead) {
    start();
    const size_t before = resident_bytes();
    Client connection = client();
    connection.send("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n");
    const std::string piece(1 << 20, 'x');
    for (int i = 0; i < 64; ++i) {
        if (!connection.send(piece)) break;
    }
    EXPECT_EQ(connection.read_answer().status, 413);
    EXPECT_LT(resident_bytes(), before + (16u << 20));
}

TEST_F(Hostile, ChunkedBodiesAreBoundedToo) {
    ServerOptions options;
    options.limits.body_bytes = 1 << 20;
    start(options);
    Client connection = client();
    connection.send("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    const std::string chunk = fmt::format("{:x}\r\n{}\r\n", 64 * 1024, std::string(64 * 1024, ' '));
    for (int i = 0; i < 32; ++i) {
        if (!connection.send(chunk)) break;
    }
    EXPECT_EQ(connection.read_answer().status, 413);
}

TEST_F(Hostile, AllBodiesTogetherAreBounded) {
    ServerOptions options;
    options.limits.body_bytes_total = 1 << 20;
    start(options);
    const std::string body = "{\"x\":\"" + std::string(700'000, 'x') + "\"}";
    Client first = client();
    first.send(post("/v1/completions", body));
    auto served = backend.next();
    ASSERT_TRUE(served);
    EXPECT_EQ(served->request.body.size(), body.size());
    const HttpAnswer refused = ask(post("/v1/completions", body));
    EXPECT_EQ(refused.status, 503);
    EXPECT_EQ(refused.headers.at("retry-after"), "1");
    // Claiming much takes nothing; having been answered gives it back.
    Client claims = client();
    claims.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000000\r\n\r\n{");
    FakeBackend::answer(200, "{}")(*served);
    EXPECT_EQ(first.read_answer().status, 200);
    Client again = client();
    again.send(post("/v1/completions", body));
    EXPECT_TRUE(backend.next());
}

TEST_F(Hostile, SlowHeadersAndBodiesAreCutOff) {
    start(impatient());
    Client silent = client();
    EXPECT_TRUE(silent.closed_by_server());
    // Sends the begin of a request, then `drop` now and then, to the end of the connection. A client that is held up
    // before it has sent anything is a silent one, which is told nothing; then it tries again.
    const auto is_cut_off = [&](std::string_view begin, std::string_view drop) {
        return eventually([&] {
            Client slow = client();
            slow.send(begin);
            std::atomic<bool> ended = false;
            std::thread drip([&] {
                while (!drop.empty() && !ended && slow.send(drop)) std::this_thread::sleep_for(10ms);
            });
            const int status = slow.read_answer().status;
            EXPECT_TRUE(slow.closed_by_server());
            ended = true;
            drip.join();
            return status == 408;
        });
    };
    const std::string body = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n{";
    EXPECT_TRUE(is_cut_off("GET / HTTP/1.1\r\nHo", ""));
    EXPECT_TRUE(is_cut_off(body, ""));
    // A byte now and then does not help.
    EXPECT_TRUE(is_cut_off("X", "X"));
    EXPECT_TRUE(is_cut_off(body, " "));
    EXPECT_EQ(metric(R"(strata_http_refused_total{reason="slow"})"), 4);
}

TEST_F(Hostile, IdleConnectionsAreClosedAndWaitingOnesAreNot) {
    ServerOptions options = impatient();
    options.limits.header_time = 60s; // this client may be held up before it sends its request
    start(options);
    Client idle = client();
    idle.send(get("/healthz"));
    EXPECT_EQ(idle.read_answer().status, 200);
    Client waiting = client();
    waiting.send(post("/v1/completions", "{}"));
    auto served = backend.next();
    ASSERT_TRUE(served);
    EXPECT_TRUE(idle.closed_by_server());
    std::this_thread::sleep_for(700ms); // longer than any of the deadlines
    EXPECT_FALSE(served->call->cancelled);
    FakeBackend::answer(200, "{}")(*served);
    EXPECT_EQ(waiting.read_answer().status, 200);
}

TEST_F(Hostile, HalfARequestThenGone) {
    start();
    for (int i = 0; i < 20; ++i) {
        Client connection = client();
        connection.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{");
        if (i % 2) connection.reset();
    }
    Client polite = client();
    polite.send("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{");
    polite.half_close();
    EXPECT_EQ(polite.read_answer().status, 400);
    polite.close();
    EXPECT_TRUE(eventually([&] { return metric("strata_http_open_connections") == 0; }));
}

TEST_F(Hostile, OneConnectionTooManyIsTold) {
    ServerOptions options;
    options.limits.connections = 5;
    start(options);
    std::vector<Client> clients;
    for (int i = 0; i < 5; ++i) {
        clients.push_back(client());
        clients.back().send(get("/healthz"));
        EXPECT_EQ(clients.back().read_answer().status, 200);
    }
    Client sixth = client();
    const HttpAnswer answer = sixth.read_answer();
    EXPECT_EQ(answer.status, 503);
    EXPECT_TRUE(answer.complete);
    clients.pop_back();
    EXPECT_TRUE(eventually([&] { return ask(get("/healthz")).status == 200; }));
}

class Leaving : public Hostile {
protected:
    Served begin(Client & connection) {
        connection.send(post("/v1/completions", R"({"stream":true})"));
        return *backend.next();
    }
};

TEST_F(Leaving, BeforeTheFirstTokenCancels) {
    start();
    for (const bool hard : {false, true}) {
        Client connection = client();
        Served served = begin(connection);
        if (hard) {
            connection.reset();
        } else {
            connection.close();
        }
        EXPECT_TRUE(eventually([&] { return served.call->cancelled.load(); }));
        served.sink->on_end(0, 0);
    }
    EXPECT_TRUE(eventually([&] { return metric("strata_http_client_disconnects_total") == 2; }));
    EXPECT_TRUE(server->wait_idle(60s));
}

TEST_F(Leaving, InTheMiddleOfAStreamCancels) {
    start();
    for (const bool hard : {false, true}) {
        Client connection = client();
        Served served = begin(connection);
        served.sink->on_head(200, "text/event-stream");
        served.sink->on_data("data: 1\n\n");
        ASSERT_TRUE(connection.read_until("data: 1"));
        if (hard) {
            connection.reset();
        } else {
            connection.close(); // and the backend says nothing more
        }
        EXPECT_TRUE(eventually([&] { return served.call->cancelled.load(); }));
        served.sink->on_end(0, 0);
    }
    EXPECT_TRUE(eventually([&] { return metric("strata_http_open_connections") == 0; }));
}

TEST_F(Leaving, BehindPipelinedRequestsCancels) {
    ServerOptions options;
    options.limits.sweep_time = 20ms;
    start(options);
    Client few = client();
    Served first = begin(few);
    few.send(get("/healthz"));
    few.close();
    EXPECT_TRUE(eventually([&] { return first.call->cancelled.load(); }));
    // More than is read ahead.
    Client many = client();
    Served second = begin(many);
    many.send(std::string(100'000, 'x'));
    std::this_thread::sleep_for(50ms);
    EXPECT_FALSE(second.call->cancelled);
    many.close();
    EXPECT_TRUE(eventually([&] { return second.call->cancelled.load(); }));
    first.sink->on_end(0, 0);
    second.sink->on_end(0, 0);
}

TEST_F(Leaving, AHalfCloseIsNotLeaving) {
    start();
    Client plain = client();
    plain.send(post("/v1/completions", "{}"));
    auto served = backend.next();
    ASSERT_TRUE(served);
    plain.half_close();
    std::this_thread::sleep_for(100ms);
    EXPECT_FALSE(served->call->cancelled);
    FakeBackend::answer(200, R"({"ok":1})")(*served);
    HttpAnswer answer = plain.read_answer();
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, R"({"ok":1})");
    EXPECT_TRUE(plain.closed_by_server());

    Client streaming = client();
    Served stream = begin(streaming);
    stream.sink->on_head(200, "text/event-stream");
    stream.sink->on_data("data: 1\n\n");
    ASSERT_TRUE(streaming.read_until("data: 1"));
    streaming.half_close();
    std::this_thread::sleep_for(100ms);
    EXPECT_FALSE(stream.call->cancelled);
    stream.sink->on_data("data: 2\n\n");
    stream.sink->on_end(1, 2);
    answer = streaming.read_answer();
    EXPECT_TRUE(answer.complete);
    EXPECT_THAT(answer.body, HasSubstr("data: 2"));
    EXPECT_EQ(metric("strata_http_client_disconnects_total"), 0);
}

// All of it comes before the connection has looked at its queue for the first time.
TEST_F(Leaving, AStreamThatPilesUpAtOnceIsCancelledAndCounted) {
    ServerOptions options;
    options.limits.stream_queued_bytes = 256 * 1024;
    std::shared_ptr<FakeCall> call;
    backend.script = [&call](Served & served) {
        served.sink->on_head(200, "text/event-stream");
        served.sink->on_data(std::string(300 * 1024, 'x'));
        served.sink->on_end(0, 0);
        call = served.call;
    };
    start(options);
    Client reader = client();
    reader.send(post("/v1/completions", "{}"));
    const HttpAnswer answer = reader.read_answer();
    EXPECT_EQ(answer.status, 200);
    EXPECT_FALSE(answer.complete);
    EXPECT_TRUE(reader.closed_by_server());
    EXPECT_TRUE(call->cancelled);
    EXPECT_EQ(metric("strata_http_slow_clients_total"), 1);
    EXPECT_EQ(metric("strata_http_client_disconnects_total"), 0);
}

TEST_F(Leaving, ASlowReaderIsCancelledAndCounted) {
    ServerOptions options;
    options.limits.stream_queued_bytes = 256 * 1024;
    start(options);
    Client slow = client();
    Served served = begin(slow);
    served.sink->on_head(200, "text/event-stream");
    const std::string event = "data: " + std::string(10'000, 'x') + "\n\n";
    Client other = client();
    Served others = begin(other);
    others.sink->on_head(200, "text/event-stream");
    EXPECT_TRUE(eventually([&] {
        for (int i = 0; i < 20; ++i) served.sink->on_data(event);
        return served.call->cancelled.load();
    }));
    EXPECT_TRUE(eventually([&] { return metric("strata_http_slow_clients_total") == 1; }));
    others.sink->on_data("data: fine\n\n");
    others.sink->on_end(1, 1);
    EXPECT_EQ(other.read_answer().body, "data: fine\n\n");
    EXPECT_FALSE(slow.read_answer().complete);
    served.sink->on_end(0, 0);
}

TEST_F(Leaving, AReaderThatStopsIsGivenUp) {
    ServerOptions options = impatient();
    options.limits.header_time = 60s;
    start(options);
    Client stuck = client();
    Served served = begin(stuck);
    served.sink->on_head(200, "text/event-stream");
    served.sink->on_data(std::string(7 << 20, 'x')); // more than the sockets hold, less than may wait
    EXPECT_TRUE(eventually([&] { return served.call->cancelled.load(); }));
    served.sink->on_end(0, 0);
    EXPECT_TRUE(eventually([&] { return metric("strata_http_slow_clients_total") == 1; }));
}

TEST_F(Leaving, AnAnswerBeyondTheLimitIsAnError) {
    ServerOptions options;
    options.limits.answer_bytes = 1000;
    start(options);
    Client connection = client();
    connection.send(post("/v1/embeddings", "{}"));
    auto served = backend.next();
    ASSERT_TRUE(served);
    served->sink->on_head(200, "application/json");
    served->sink->on_data(std::string(1001, 'x'));
    EXPECT_EQ(connection.read_answer().status, 500);
    EXPECT_TRUE(served->call->cancelled);
    served->sink->on_end(0, 0);
}

TEST_F(Hostile, HeaderInjectionByTheBackendIsStopped) {
    backend.script = [](Served & served) {
        served.sink->on_head(200, "text/plain\r\nx-evil: 1");
        served.sink->on_end(0, 0);
    };
    start();
    EXPECT_FALSE(ask(post("/tokenize", "{}")).headers.count("x-evil"));
}

TEST_F(Hostile, RandomBytesNeverHurtOthers) {
    backend.script = FakeBackend::answer(200, "{}");
    start();
    std::atomic<bool> stop = false;
    std::atomic<int> answered = 0;
    std::thread good([&] {
        Client connection = client();
        while (!stop) {
            if (!connection.send(post("/tokenize", "{}")) || connection.read_answer().status != 200) return;
            ++answered;
        }
    });
    uint32_t seed = 12345;
    const auto random = [&] { return seed = seed * 1664525 + 1013904223, seed >> 8; };
    const std::string valid = post("/tokenize", R"({"content":"x"})", "Transfer-Encoding: chunked\r\n");
    for (int i = 0; i < 300; ++i) {
        std::string bytes = valid;
        for (int k = 0; k < 3; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
        Client connection = client();
        connection.send(bytes);
        connection.half_close();
        if (i % 3 == 0) connection.reset();
        if (i % 3 == 1) connection.read_answer();
    }
    const int so_far = answered;
    EXPECT_TRUE(eventually([&] { return answered > so_far + 10; }));
    stop = true;
    good.join();
    EXPECT_TRUE(eventually([&] { return metric("strata_http_open_connections") <= 1; }));
}

} // namespace
} // namespace strata::gateway::testing
