// The client of the benchmarks: few threads, many connections, exact times. Prints one JSON object.
//
//   strata-bench-client first-token --port P --engine SOCKET --model M --count N   the same request through the gateway
//   and
//                                                                                  straight to the engine, in turn
//   strata-bench-client streams     --port P --model M --count N                   N streams at once from the stub
//   engine strata-bench-client waiting     --port P --model M --count N                   N short completions at once
#include "strata/v1/engine.grpc.pb.h"

#include <CLI/CLI.hpp>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <iostream>

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::use_awaitable;
using asio::ip::tcp;
using Clock = std::chrono::steady_clock;

namespace {

struct Arguments {
    uint16_t port = 7420;
    std::string engine_socket;
    std::string model = "m";
    int count = 1000;
};

double milliseconds_since(Clock::time_point start) {
    return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

http::request<http::string_body> make_request(std::string_view target, const nlohmann::json & body) {
    http::request<http::string_body> request(http::verb::post, std::string(target), 11);
    request.set(http::field::host, "localhost");
    request.set(http::field::content_type, "application/json");
    request.body() = body.dump();
    request.prepare_payload();
    return request;
}

// Bytes of the body as they come, given to `on_data`; the HTTP status.
template <typename OnData>
asio::awaitable<int> exchange(beast::tcp_stream & stream, http::request<http::string_body> request, OnData on_data) {
    co_await http::async_write(stream, request, use_awaitable);
    beast::flat_buffer buffer;
    http::response_parser<http::buffer_body> parser;
    parser.body_limit(boost::none);
    co_await http::async_read_header(stream, buffer, parser, use_awaitable);
    std::array<char, 16384> chunk{};
    while (!parser.is_done()) {
        parser.get().body() = {chunk.data(), chunk.size(), true};
        const auto [error, bytes] =
            co_await http::async_read_some(stream, buffer, parser, asio::as_tuple(use_awaitable));
        if (error && error != http::error::need_buffer) throw boost::system::system_error(error);
        on_data(std::string_view(chunk.data(), chunk.size() - parser.get().body().size));
    }
    co_return parser.get().result_int();
}

asio::awaitable<beast::tcp_stream> connect(uint16_t port) {
    beast::tcp_stream stream(co_await asio::this_coro::executor);
    co_await stream.async_connect(tcp::endpoint(asio::ip::address_v4::loopback(), port), use_awaitable);
    stream.socket().set_option(tcp::no_delay(true));
    co_return stream;
}

double percentile(std::vector<double> & values, double p) {
    if (values.empty()) return 0;
    const size_t n = std::min(values.size() - 1, static_cast<size_t>(p * static_cast<double>(values.size())));
    std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(n), values.end());
    return values[n];
}

// ------------------------------------------------------------------------------------------------ first token

nlohmann::json first_token_body(const std::string & model) {
    return {{"model", model},  {"prompt", "The capital of France is"},
            {"max_tokens", 2}, {"temperature", 0},
            {"stream", true},  {"cache_prompt", true}};
}

double engine_first_token_ms(strata::v1::Engine::Stub & stub, const std::string & body) {
    grpc::ClientContext context;
    strata::v1::ServeRequest request;
    request.mutable_head()->set_method("POST");
    request.mutable_head()->set_path("/v1/completions");
    request.mutable_head()->set_body(body);
    const auto start = Clock::now();
    auto stream = stub.Serve(&context);
    stream->Write(request);
    stream->WritesDone();
    strata::v1::ServeResponse response;
    double first = -1;
    while (stream->Read(&response)) {
        if (first < 0 && response.has_data() && !response.data().empty()) first = milliseconds_since(start);
    }
    if (const grpc::Status status = stream->Finish(); !status.ok() || first < 0) {
        throw std::runtime_error("the engine answered: " + status.error_message());
    }
    return first;
}

asio::awaitable<nlohmann::json> first_token(Arguments arguments) {
    const auto channel = grpc::CreateChannel("unix:" + arguments.engine_socket, grpc::InsecureChannelCredentials());
    const auto stub = strata::v1::Engine::NewStub(channel);
    const nlohmann::json body = first_token_body(arguments.model);
    std::vector<double> gateway;
    std::vector<double> engine;
    beast::tcp_stream stream = co_await connect(arguments.port);
    constexpr int kWarmUp = 20;
    for (int i = 0; i < arguments.count + kWarmUp; ++i) {
        double first = -1;
        const auto start = Clock::now();
        const int status = co_await exchange(stream, make_request("/v1/completions", body), [&](std::string_view data) {
            if (first < 0 && !data.empty()) first = milliseconds_since(start);
        });
        if (status != 200) throw std::runtime_error(fmt::format("the gateway answered {}", status));
        const double direct = engine_first_token_ms(*stub, body.dump());
        if (i < kWarmUp) continue;
        gateway.push_back(first);
        engine.push_back(direct);
    }
    co_return nlohmann::json{{"gateway_ms", gateway}, {"engine_ms", engine}};
}

// ---------------------------------------------------------------------------------------------- many at once

struct Totals {
    int complete = 0;
    int answered = 0;
    int refused = 0;
    int failed = 0;
    std::vector<double> late_ms;
};

// Finds "sent_ns":NUMBER (CLOCK_MONOTONIC of the stub engine on the same machine) in each event.
class LatenessParser {
public:
    explicit LatenessParser(std::vector<double> & late_ms)
        : late_ms_(late_ms) {}

    void feed(std::string_view data) {
        const int64_t now =
            std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
        pending_ += data;
        size_t end = 0;
        while ((end = pending_.find("\n\n")) != std::string::npos) {
            constexpr std::string_view kKey = "\"sent_ns\":";
            const size_t at = pending_.find(kKey);
            if (at < end) {
                int64_t sent = 0;
                std::from_chars(pending_.data() + at + kKey.size(), pending_.data() + end, sent);
                late_ms_.push_back(static_cast<double>(now - sent) / 1e6);
            }
            if (pending_.compare(0, end, "data: [DONE]") == 0) done_ = true;
            pending_.erase(0, end + 2);
        }
    }
    bool done() const { return done_; }

private:
    std::vector<double> & late_ms_;
    std::string pending_;
    bool done_ = false;
};

asio::awaitable<void> one_stream(const Arguments & arguments, Totals & totals) {
    LatenessParser parser(totals.late_ms);
    try {
        beast::tcp_stream stream = co_await connect(arguments.port);
        stream.expires_never();
        const nlohmann::json body = {
            {"model", arguments.model}, {"stream", true}, {"messages", {{{"role", "user"}, {"content", "Hi"}}}}};
        const int status = co_await exchange(stream, make_request("/v1/chat/completions", body),
                                             [&](std::string_view data) { parser.feed(data); });
        if (status == 200 && parser.done()) ++totals.complete;
    } catch (const std::exception &) {
        ++totals.failed;
    }
}

asio::awaitable<void> one_waiting(const Arguments & arguments, Totals & totals, int number) {
    try {
        beast::tcp_stream stream = co_await connect(arguments.port);
        stream.expires_never();
        const nlohmann::json body = {{"model", arguments.model},
                                     {"prompt", fmt::format("{} and", number)},
                                     {"max_tokens", 2},
                                     {"temperature", 0}};
        std::string text;
        const int status = co_await exchange(stream, make_request("/v1/completions", body),
                                             [&](std::string_view data) { text += data; });
        const auto answer = nlohmann::json::parse(text, nullptr, false);
        if (status == 200 && answer.is_object() && answer.contains("choices")) ++totals.answered;
        if (status != 200 && answer.is_object() && answer.contains("error")) ++totals.refused;
    } catch (const std::exception &) {
        ++totals.failed;
    }
}

template <typename Start>
Totals all_at_once(asio::io_context & io, int count, Start start) {
    Totals totals;
    for (int i = 0; i < count; ++i) asio::co_spawn(io, start(totals, i), asio::detached);
    io.run();
    return totals;
}

int run(int argc, char ** argv) {
    CLI::App app("the client of strata's benchmarks");
    Arguments arguments;
    app.require_subcommand(1);
    for (const char * name : {"first-token", "streams", "waiting"}) {
        CLI::App * command = app.add_subcommand(name);
        command->add_option("--port", arguments.port)->required();
        command->add_option("--model", arguments.model);
        command->add_option("--count", arguments.count);
        command->add_option("--engine", arguments.engine_socket);
    }
    CLI11_PARSE(app, argc, argv);
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);

    asio::io_context io(1);
    nlohmann::json result;
    if (app.got_subcommand("first-token")) {
        asio::co_spawn(io, first_token(arguments), [&](const std::exception_ptr & error, nlohmann::json value) {
            if (error) std::rethrow_exception(error);
            result = std::move(value);
        });
        io.run();
    } else if (app.got_subcommand("streams")) {
        const auto start = Clock::now();
        Totals totals = all_at_once(io, arguments.count, [&](Totals & t, int) { return one_stream(arguments, t); });
        const double seconds = milliseconds_since(start) / 1e3;
        result = {{"complete", totals.complete},
                  {"failed", totals.failed},
                  {"events", totals.late_ms.size()},
                  {"events_per_second", static_cast<double>(totals.late_ms.size()) / seconds},
                  {"late_p50_ms", percentile(totals.late_ms, 0.5)},
                  {"late_p99_ms", percentile(totals.late_ms, 0.99)},
                  {"late_max_ms", percentile(totals.late_ms, 1)}};
    } else {
        Totals totals =
            all_at_once(io, arguments.count, [&](Totals & t, int i) { return one_waiting(arguments, t, i); });
        result = {{"answered", totals.answered}, {"refused", totals.refused}, {"failed", totals.failed}};
    }
    std::cout << result.dump() << "\n";
    return 0;
}

} // namespace

int main(int argc, char ** argv) {
    try {
        return run(argc, argv);
    } catch (const std::exception & e) {
        std::cerr << "strata-bench-client: " << e.what() << "\n";
        return 1;
    }
}
