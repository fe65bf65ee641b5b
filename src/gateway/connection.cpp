#include "gateway/connection.h"

#include "base/api_error.h"
#include "gateway/pages.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <poll.h>
#include <prometheus/text_serializer.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <ctime>

namespace strata::gateway {

namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

constexpr size_t kReadBytes = 4096;           // for headers
constexpr size_t kBodyReadBytes = 16 * 1024;  // for bodies
constexpr size_t kConnectBodyBytes = 4 << 20; // control-plane messages are small
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
constexpr std::string_view kLastChunk = "0\r\n\r\n";
constexpr std::string_view kComment = ":\n\n"; // of an event stream; clients skip it

std::string_view as_view(boost::beast::string_view text) {
    return {text.data(), text.size()};
}

asio::const_buffer as_buffer(std::string_view text) {
    return {text.data(), text.size()};
}

double seconds_since(std::chrono::steady_clock::time_point then) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - then).count();
}

// Content types come from an engine: nothing in them may end the header line.
std::string_view safe_content_type(std::string_view type) {
    const bool safe =
        !type.empty() && std::all_of(type.begin(), type.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
    return safe ? type : "application/octet-stream";
}

} // namespace

Connection::Connection(Socket socket, ServerContext & server, Set & siblings)
    : socket_(std::move(socket))
    , server_(server)
    , siblings_(siblings)
    , signal_(socket_.get_executor())
    , buffer_(server.limits.header_bytes) {
    siblings_.insert(this);
    server_.metrics.open_connections.Increment();
}

Connection::~Connection() {
    siblings_.erase(this);
    server_.connections.fetch_sub(1);
    server_.metrics.open_connections.Decrement();
}

void Connection::start() {
    boost::system::error_code ignored;
    socket_.non_blocking(true, ignored);
    socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::keep_alive(true), ignored);
    asio::co_spawn(socket_.get_executor(), run(shared_from_this()), asio::detached);
}

Task<void> Connection::run(std::shared_ptr<Connection> self) {
    try {
        while (co_await self->serve_one()) {
        }
        if (self->linger_) co_await self->linger();
    } catch (const std::exception & failure) {
        // Out of memory, most likely. This connection ends; the others go on.
        spdlog::error("an HTTP connection ended unexpectedly: {}", failure.what());
    }
    self->finish_exchange();
    boost::system::error_code ignored;
    self->socket_.close(ignored);
}

// ------------------------------------------------------------------------------------------------ a request --------

Task<bool> Connection::serve_one() {
    exchange_ = Exchange();
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(server_.limits.header_bytes));
    parser_->body_limit(boost::none); // checked here, for a better answer
    parser_->eager(false);
    between_requests_ = true;
    if (buffer_.size() == 0) buffer_.shrink_to_fit();
    if (!co_await read_head()) co_return false;

    const char * reason = "";
    std::optional<Answer> refusal = check_head(reason);
    if (refusal) {
        if (*reason) server_.metrics.refused(reason);
        if (exchange_.body_pending) exchange_.keep_alive = false;
        co_return co_await respond(std::move(*refusal));
    }
    if (!co_await read_body()) co_return false;
    exchange_.received = Clock::now();
    co_return co_await dispatch();
}

Task<bool> Connection::read_head() {
    const Limits & limits = server_.limits;
    bool begun = false;
    set_deadline(after(first_request_ ? limits.header_time : limits.idle_time));
    for (;;) {
        // RFC 9112, 2.2: an empty line before a request is skipped.
        while (!begun && buffer_.size() > 0) {
            const char c = *static_cast<const char *>(buffer_.data().data());
            if (c != '\r' && c != '\n') break;
            buffer_.consume(1);
        }
        if (buffer_.size() > 0) {
            if (!begun) {
                begun = true;
                between_requests_ = false;
                if (!first_request_) set_deadline(after(limits.header_time));
            }
            boost::system::error_code error;
            buffer_.consume(parser_->put(buffer_.data(), error));
            if (parser_->is_header_done()) break;
            if (error && error != http::error::need_more) {
                const int status = status_of_parse_error(error);
                const bool too_long = status == 431;
                std::string message = too_long
                                          ? fmt::format("the headers are longer than {} bytes", limits.header_bytes)
                                          : fmt::format("this is not an HTTP request: {}", error.message());
                co_return co_await refuse(status, message, too_long ? "headers_too_large" : "malformed");
            }
        } else if (server_.draining && !begun) {
            co_return false;
        }
        if (!end_of_input_ && co_await read_some(kReadBytes)) continue;
        if (!begun || stopping_ || gone_) co_return false;
        if (timed_out_) {
            co_return co_await refuse(408, "the request's headers did not arrive in time", "slow");
        }
        co_return co_await refuse(400, "the request ends in the middle of its headers", "malformed");
    }
    clear_deadline();
    first_request_ = false;
    exchange_.started = exchange_.received = Clock::now();
    exchange_.token = InFlightToken(server_.in_flight);
    exchange_.id = fmt::format("req-{:06x}", server_.next_request.fetch_add(1));
    co_return true;
}

std::optional<Connection::Answer> Connection::check_head(const char *& reason) {
    const Limits & limits = server_.limits;
    const RequestHeader & header = parser_->get().base();
    exchange_.http_1_0 = header.version() == 10;
    exchange_.keep_alive = parser_->keep_alive() && !server_.draining;
    exchange_.method = std::string(as_view(header.method_string()));
    exchange_.head_only = header.method() == http::verb::head;
    const auto length = parser_->content_length();
    exchange_.body_pending = parser_->chunked() || (length && *length > 0);

    if (const auto error = framing_error(*parser_)) {
        exchange_.keep_alive = false;
        exchange_.body_pending = true;
        reason = "malformed";
        return error_answer(error->status, error->message);
    }

    // The target: a path, or a whole URL as proxies send it.
    std::string_view target = as_view(header.target());
    const auto hosts = header.equal_range(http::field::host);
    const auto host_count = std::distance(hosts.first, hosts.second);
    std::string_view host = host_count == 0 ? std::string_view() : as_view(hosts.first->value());
    if (const std::string_view authority = authority_of(target); !authority.empty()) {
        host = authority;
        target.remove_prefix(static_cast<size_t>(authority.data() + authority.size() - target.data()));
        if (target.empty()) target = "/";
    }
    exchange_.path = std::string(target.substr(0, target.find_first_of("?#")));
    if (host_count > 1 || (host_count == 0 && !exchange_.http_1_0)) {
        exchange_.keep_alive = false;
        reason = "malformed";
        return error_answer(400, "a request needs exactly one Host header");
    }
    if (!host.empty() || host_count > 0) {
        if (!server_.access.host_allowed(host)) {
            reason = "foreign_host";
            return error_answer(403, "the Host header is not a name of this server; allow it with --allow-host");
        }
    }
    const std::string_view origin = as_view(header[http::field::origin]);
    const bool reads_only = header.method() == http::verb::get || header.method() == http::verb::head;
    if (!reads_only && header.find(http::field::origin) != header.end() && !server_.access.origin_allowed(origin)) {
        reason = "foreign_origin";
        return error_answer(403,
                            "requests from web pages of other hosts are refused; allow the host with --allow-host");
    }

    const bool options = header.method() == http::verb::options;
    if (options && target == "*") return Answer{204, {}, {}, "GET, HEAD, POST, OPTIONS"};
    std::string_view allow;
    if (server_.connect && ConnectBridge::is_connect_path(exchange_.path)) {
        exchange_.connect = server_.connect->find(exchange_.path);
        if (exchange_.connect == nullptr) {
            return error_answer(404, "there is no such method; the services are in proto/strata/v1");
        }
        exchange_.route = exchange_.connect->path;
        allow = "POST, OPTIONS";
    } else {
        exchange_.api = find_route(exchange_.path);
        if (exchange_.api == nullptr) {
            return error_answer(404, "there is no such path; GET / lists what there is");
        }
        exchange_.route = exchange_.api->path;
        allow = exchange_.api->allow();
    }
    if (options) return Answer{204, {}, {}, allow};
    const bool post = exchange_.connect != nullptr || exchange_.api->post;
    if (post ? header.method() != http::verb::post : !reads_only) {
        Answer answer = error_answer(405, fmt::format("this path takes {} only", post ? "POST" : "GET"));
        answer.allow = allow;
        return answer;
    }
    if (post && (server_.draining || !server_.backend.accepting())) {
        exchange_.keep_alive = false;
        reason = "draining";
        return error_answer(503, "the server is shutting down");
    }

    // Identity is all there is: nobody compresses requests to a model.
    if (const auto coding = header[http::field::content_encoding];
        !coding.empty() && !boost::beast::iequals(coding, "identity")) {
        return error_answer(415, "compressed request bodies are not supported");
    }
    if (exchange_.connect != nullptr) {
        const std::string_view type = as_view(header[http::field::content_type]);
        const std::string_view wanted = exchange_.connect->content_type();
        if (type != wanted && !type.starts_with(fmt::format("{};", wanted))) {
            return error_answer(415, fmt::format("this method takes Content-Type: {}", wanted));
        }
    }
    const size_t most = exchange_.connect != nullptr ? kConnectBodyBytes : limits.body_bytes;
    if (length && *length > most) {
        reason = "body_too_large";
        return error_answer(413, fmt::format("the request body is longer than {} bytes", most));
    }
    parser_->body_limit(most);
    RequestBody::value_type & body = parser_->get().body();
    body.keep = post;
    body.share = MemoryShare(server_.body_budget);
    if (exchange_.api != nullptr && post) body.scanner = std::make_unique<JsonScanner>(limits.json_depth);
    return std::nullopt;
}

Task<bool> Connection::read_body() {
    const Limits & limits = server_.limits;
    RequestBody::value_type & body = parser_->get().body();
    if (exchange_.body_pending && buffer_.size() == 0 && !exchange_.http_1_0 &&
        boost::beast::iequals(parser_->get()[http::field::expect], "100-continue")) {
        const Buffers buffers = {as_buffer(kContinue)};
        if (!co_await write(buffers)) co_return false;
    }
    const auto begin = Clock::now();
    const auto deadline = [&] {
        const auto earned = std::chrono::milliseconds(body.received * 1000 / limits.body_bytes_per_second);
        return begin + limits.body_time + earned;
    };
    set_deadline(deadline());
    while (!parser_->is_done()) {
        boost::system::error_code error;
        const size_t used = parser_->put(buffer_.data(), error);
        buffer_.consume(used);
        if (parser_->is_done()) break;
        if (error && error != http::error::need_more) {
            const int status = status_of_parse_error(error);
            std::string message;
            const char * reason = "malformed";
            if (status == 413) {
                message = "the request body is too long";
                reason = "body_too_large";
            } else if (status == 503) {
                message = "too many request bodies are held in memory; try again soon";
                reason = "bodies_full";
            } else {
                message = fmt::format("the request body is malformed: {}", error.message());
            }
            co_return co_await refuse(status, message, reason);
        }
        if (used > 0 && buffer_.size() > 0) continue;
        if (buffer_.size() >= limits.header_bytes) {
            co_return co_await refuse(400, "a chunk header of the request body is too long", "malformed");
        }
        if (!end_of_input_ && co_await read_some(kBodyReadBytes)) {
            set_deadline(deadline());
            continue;
        }
        if (stopping_ || gone_) co_return false;
        if (timed_out_) {
            co_return co_await refuse(408, "the request body did not arrive in time", "slow");
        }
        co_return co_await refuse(400, "the request ends in the middle of its body", "malformed");
    }
    clear_deadline();
    exchange_.body_pending = false;
    co_return true;
}

Task<bool> Connection::dispatch() {
    Answer answer;
    if (exchange_.connect != nullptr) {
        co_return co_await relay_to_connect();
    }
    switch (exchange_.api->handler) {
    case Handler::kApi: {
        co_return co_await relay_to_backend();
    }
    case Handler::kIndex:
        answer.content_type = "text/plain; charset=utf-8";
        answer.body = index_page(server_.connect != nullptr);
        break;
    case Handler::kHealth: {
        const bool ok = !server_.draining && server_.backend.accepting();
        answer.status = ok ? 200 : 503;
        answer.body = ok ? "{\"status\":\"ok\"}" : "{\"status\":\"shutting down\"}";
        break;
    }
    case Handler::kMetrics:
        answer.content_type = "text/plain; version=0.0.4; charset=utf-8";
        answer.body = prometheus::TextSerializer().Serialize(server_.registry.Collect());
        break;
    case Handler::kModels:
        answer.body = models_json(server_.backend.models());
        break;
    case Handler::kModel: {
        const std::string name = percent_decoded(std::string_view(exchange_.path).substr(exchange_.api->path.size()));
        if (auto json = model_json(server_.backend.models(), name)) {
            answer.body = *std::move(json);
        } else {
            answer = error_answer(404, "there is no model of this name; GET /v1/models lists them");
        }
        break;
    }
    }
    co_return co_await respond(std::move(answer));
}

// ------------------------------------------------------------------------------------------------- answers --------

Connection::Answer Connection::error_answer(int status, std::string_view message, std::string_view field) const {
    Answer answer;
    answer.status = status;
    if (ConnectBridge::is_connect_path(exchange_.path)) {
        absl::StatusCode code = absl::StatusCode::kUnknown;
        switch (status) { // the reverse of http_status_of, for what is found before a call begins
        case 400:
            code = absl::StatusCode::kInvalidArgument;
            break;
        case 403:
            code = absl::StatusCode::kPermissionDenied;
            break;
        case 404:
            code = absl::StatusCode::kUnimplemented;
            break;
        case 408:
            code = absl::StatusCode::kDeadlineExceeded;
            break;
        case 413:
            code = absl::StatusCode::kResourceExhausted;
            break;
        case 503:
            code = absl::StatusCode::kUnavailable;
            break;
        default:
            break;
        }
        answer.body = ConnectBridge::error_body(code, message);
    } else {
        answer.body = error_body(exchange_.path, status, message, {.param = field});
    }
    return answer;
}

Task<bool> Connection::refuse(int status, std::string_view message, const char * reason) {
    server_.metrics.refused(reason);
    exchange_.keep_alive = false;
    if (exchange_.started == Clock::time_point()) exchange_.started = exchange_.received = Clock::now();
    return respond(error_answer(status, message));
}

std::string Connection::head_text(int status, std::string_view content_type, std::optional<size_t> length) const {
    const std::string_view reason = as_view(http::obsolete_reason(static_cast<http::status>(status)));
    std::string head = fmt::format("HTTP/1.1 {} {}\r\ndate: {:%a, %d %b %Y %H:%M:%S} GMT\r\n", status, reason,
                                   fmt::gmtime(std::time(nullptr)));
    const auto add = [&](std::string_view name, std::string_view value) {
        fmt::format_to(std::back_inserter(head), "{}: {}\r\n", name, value);
    };
    if (!exchange_.id.empty()) {
        add("x-request-id", exchange_.id);
        if (exchange_.path.starts_with("/v1/messages")) add("request-id", exchange_.id); // Anthropic's clients show it
    }
    if (!content_type.empty()) {
        add("content-type", safe_content_type(content_type));
        add("x-content-type-options", "nosniff");
    }
    if (length) {
        if (status != 204) add("content-length", std::to_string(*length));
    } else {
        add("cache-control", "no-cache");
        if (!exchange_.http_1_0) add("transfer-encoding", "chunked");
    }
    if (!exchange_.keep_alive) {
        add("connection", "close");
    } else if (exchange_.http_1_0) {
        add("connection", "keep-alive");
    }
    return head;
}

Task<bool> Connection::respond(Answer answer) {
    if (server_.draining) exchange_.keep_alive = false;
    std::string head = head_text(answer.status, answer.content_type, answer.body.size());
    if (!answer.allow.empty()) head += fmt::format("allow: {}\r\n", answer.allow);
    if (answer.status == 429 || answer.status == 503) {
        head += fmt::format("retry-after: {}\r\n", std::max(answer.retry_after, 1));
    }
    head += "\r\n";
    exchange_.status = answer.status;
    exchange_.answered = true;
    const Buffers buffers = {as_buffer(head), as_buffer(exchange_.head_only ? std::string_view() : answer.body)};
    const bool written = co_await write(buffers);
    finish_exchange();
    linger_ = written && !exchange_.keep_alive;
    co_return written && exchange_.keep_alive;
}

void Connection::finish_exchange() {
    if (exchange_.started == Clock::time_point()) return;
    const double seconds = seconds_since(exchange_.started);
    if (exchange_.answered) server_.metrics.request_done(exchange_.route, exchange_.status, seconds);
    spdlog::debug("{} {} {} {} {:.1f} ms", exchange_.id, exchange_.method, exchange_.route, exchange_.status,
                  seconds * 1000);
    exchange_.started = {};
    exchange_.token.reset();
}

// --------------------------------------------------------------------------------------- answers from behind --------

std::shared_ptr<ResponseQueue> Connection::make_queue() {
    return std::make_shared<ResponseQueue>(ResponseQueue::Options{
        .stream_bytes = server_.limits.stream_queued_bytes,
        .answer_bytes = server_.limits.answer_bytes,
        .budget = server_.answer_budget,
        .token = InFlightToken(server_.in_flight),
        .wake =
            [self = shared_from_this()](bool overflow) {
                asio::post(self->socket_.get_executor(), [self, overflow] { self->on_answer(overflow); });
            },
    });
}

void Connection::on_answer(bool overflow) {
    if (overflow) {
        // The connection may be held up by just the client that does not read.
        exchange_.overflow = true;
        boost::system::error_code ignored;
        socket_.cancel(ignored);
    }
    signal_.notify();
}

Task<bool> Connection::relay_to_backend() {
    RequestBody::value_type & body = parser_->get().body();
    absl::StatusOr<std::string> model = body.scanner->finish();
    body.scanner.reset();
    if (!model.ok()) {
        Answer answer = error_answer(400, std::string(model.status().message()), field_of(model.status()));
        co_return co_await respond(std::move(answer));
    }
    ApiRequest request;
    request.id = exchange_.id;
    request.method = exchange_.method;
    request.path = exchange_.path;
    request.model = *std::move(model);
    request.body = std::move(body.bytes);
    MemoryShare share = std::move(body.share);
    auto queue = make_queue();
    auto call = server_.backend.serve(std::move(request), queue);
    co_return co_await relay(std::move(queue), std::move(call), std::move(share));
}

Task<bool> Connection::relay_to_connect() {
    RequestBody::value_type & body = parser_->get().body();
    std::optional<std::chrono::milliseconds> timeout;
    // At most ten digits, as the protocol says.
    if (const std::string_view text = as_view(parser_->get()["Connect-Timeout-Ms"]); !text.empty()) {
        int64_t ms = 0;
        const auto parsed = std::from_chars(text.data(), text.data() + text.size(), ms);
        if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || ms < 0 || text.size() > 10) {
            Answer answer = error_answer(400, "Connect-Timeout-Ms is not a number of at most ten digits");
            co_return co_await respond(std::move(answer));
        }
        timeout = std::chrono::milliseconds(ms);
    }
    auto queue = make_queue();
    auto call = server_.connect->call(*exchange_.connect, body.bytes, timeout, queue);
    body.bytes = std::string();
    body.share.reset();
    co_return co_await relay(std::move(queue), std::move(call), MemoryShare());
}

Task<bool> Connection::relay(std::shared_ptr<ResponseQueue> queue, std::shared_ptr<ApiCall> call, MemoryShare body) {
    // Whatever happens, nobody is woken after this.
    struct Detach {
        Connection & connection;
        ResponseQueue & queue;
        ~Detach() {
            queue.detach();
            connection.stop_watch();
        }
    } detach{*this, *queue};

    parser_.reset(); // what is needed of the request is elsewhere; streams live long
    buffer_.shrink_to_fit();
    start_watch();
    ResponseQueue::Batch batch;
    const bool have = co_await next_batch(*queue, batch);
    body.reset();
    if (!have || batch.overflow) call->cancel();
    if (!have) {
        if (!stopping_) server_.metrics.client_disconnects.Increment();
        co_return false;
    }
    if (batch.overflow && !batch.streamed) {
        co_return co_await refuse(500, "the answer is too large for this server's memory", "answer_too_large");
    }
    if (batch.streamed) {
        co_return co_await relay_stream(*queue, *call, std::move(batch));
    }
    stop_watch();
    server_.metrics.first_byte(exchange_.route, seconds_since(exchange_.received));
    Answer answer;
    if (batch.has_head) {
        answer.status = batch.status;
        answer.content_type = batch.content_type;
        answer.body = std::move(batch.data);
        answer.retry_after = batch.retry_after;
    } else {
        answer = error_answer(500, "the request ended without an answer");
    }
    co_return co_await respond(std::move(answer));
}

Task<bool> Connection::next_batch(ResponseQueue & queue, ResponseQueue::Batch & batch) {
    for (;;) {
        if (gone_ || stopping_) co_return false;
        if (probe_wanted_) {
            if (!co_await probe()) co_return false;
        }
        const bool had_head = batch.has_head;
        batch = queue.take();
        if (batch.has_head != had_head || !batch.data.empty() || batch.ended || batch.overflow) co_return true;
        co_await signal_.wait();
    }
}

Task<bool> Connection::relay_stream(ResponseQueue & queue, ApiCall & call, ResponseQueue::Batch batch) {
    struct OpenStream {
        Connection & connection;
        explicit OpenStream(Connection & of)
            : connection(of) {
            connection.server_.metrics.open_streams.Increment();
        }
        ~OpenStream() {
            connection.in_stream_ = false;
            connection.server_.metrics.open_streams.Decrement();
        }
    } open(*this);

    if (exchange_.http_1_0 || server_.draining) exchange_.keep_alive = false;
    std::string head = head_text(batch.status, batch.content_type, std::nullopt);
    if (batch.retry_after > 0) head += fmt::format("retry-after: {}\r\n", batch.retry_after);
    head += "\r\n";
    in_stream_ = batch.content_type.starts_with("text/event-stream");
    exchange_.status = batch.status;
    exchange_.answered = true;
    bool first_byte = false;
    for (;;) {
        // One chunk for everything that waits, and one system call.
        const bool chunked = !exchange_.http_1_0;
        std::string_view before;
        std::string_view after;
        if (!batch.data.empty()) {
            if (!first_byte) {
                first_byte = true;
                server_.metrics.first_byte(exchange_.route, seconds_since(exchange_.received));
            }
            if (chunked) fmt::format_to(std::back_inserter(head), "{:x}\r\n", batch.data.size());
            if (chunked) after = "\r\n";
        }
        if (chunked && batch.ended) after = batch.data.empty() ? kLastChunk : "\r\n0\r\n\r\n";
        before = head;
        const Buffers buffers = {as_buffer(before), as_buffer(batch.data), as_buffer(after)};
        const bool written = co_await write(buffers);
        head.clear();
        if (!written || batch.overflow) break;
        if (batch.ended) {
            finish_exchange();
            linger_ = !exchange_.keep_alive;
            co_return exchange_.keep_alive;
        }
        const bool have = co_await next_batch(queue, batch);
        if (!have || batch.overflow) break;
    }
    call.cancel();
    if (batch.overflow || exchange_.overflow || timed_out_) {
        server_.metrics.slow_clients.Increment();
    } else if (!stopping_) {
        server_.metrics.client_disconnects.Increment();
    }
    co_return false; // without a last chunk: the client sees that the answer is not complete
}

// ----------------------------------------------------------------------------------------- watching the client -------

void Connection::start_watch() {
    watching_ = true;
    saturated_ = false;
    if (end_of_input_) {
        peer_closed();
    } else {
        wait_readable();
    }
}

void Connection::stop_watch() {
    if (!watching_) return;
    watching_ = false;
    probe_wanted_ = false;
    boost::system::error_code ignored;
    socket_.cancel(ignored);
}

void Connection::wait_readable() {
    socket_.async_wait(Socket::wait_read, [self = shared_from_this()](const boost::system::error_code & error) {
        if (!error && self->watching_) self->on_readable();
    });
}

void Connection::on_readable() {
    const size_t room = server_.limits.header_bytes - buffer_.size();
    if (room == 0) {
        saturated_ = true;
        return;
    }
    boost::system::error_code error;
    const size_t bytes = socket_.read_some(buffer_.prepare(std::min(room, kReadBytes)), error);
    buffer_.commit(bytes);
    server_.metrics.received_bytes.Increment(static_cast<double>(bytes));
    if (!error || error == asio::error::would_block || error == asio::error::try_again) {
        wait_readable();
    } else if (error == asio::error::eof) {
        peer_closed();
    } else {
        gone_ = true;
        signal_.notify();
    }
}

void Connection::peer_closed() {
    end_of_input_ = true;
    const bool can_probe = in_stream_ || (!exchange_.answered && !exchange_.http_1_0);
    if (can_probe) {
        probe_wanted_ = true;
        // A reset comes as an error of the socket.
        socket_.async_wait(Socket::wait_error, [self = shared_from_this()](const boost::system::error_code & error) {
            if (error || !self->watching_) return;
            self->gone_ = true;
            self->signal_.notify();
        });
    } else {
        gone_ = true;
    }
    signal_.notify();
}

Task<bool> Connection::probe() {
    probe_wanted_ = false;
    std::string chunk;
    std::string_view text = kContinue;
    if (in_stream_) {
        text = kComment;
        if (!exchange_.http_1_0) {
            chunk = fmt::format("{:x}\r\n{}\r\n", kComment.size(), kComment);
            text = chunk;
        }
    }
    const Buffers buffers = {as_buffer(text)};
    co_return co_await write(buffers);
}

// ------------------------------------------------------------------------------------------------ the socket --------

Task<bool> Connection::read_some(size_t most) {
    const size_t room = std::min(most, server_.limits.header_bytes - buffer_.size());
    const auto space = buffer_.prepare(room);
    const auto [error, bytes] = co_await socket_.async_read_some(space, kAwait);
    buffer_.commit(bytes);
    server_.metrics.received_bytes.Increment(static_cast<double>(bytes));
    if (error == asio::error::eof) {
        end_of_input_ = true;
    } else if (error && !timed_out_) {
        gone_ = true;
    }
    co_return !error;
}

Task<bool> Connection::write(Buffers buffers) {
    set_deadline(after(server_.limits.write_time));
    size_t next = 0;
    for (;;) {
        while (next < buffers.size() && buffers[next].size() == 0) ++next;
        if (next == buffers.size() || stopping_ || gone_) break;
        boost::system::error_code error;
        size_t bytes = socket_.write_some(buffers, error);
        server_.metrics.sent_bytes.Increment(static_cast<double>(bytes));
        if (error == asio::error::would_block || error == asio::error::try_again) {
            const auto [wait_error] = co_await socket_.async_wait(Socket::wait_write, kAwait);
            if (wait_error) {
                gone_ = true;
                break;
            }
            continue;
        }
        if (error) {
            gone_ = true;
            break;
        }
        set_deadline(after(server_.limits.write_time));
        for (auto & buffer : buffers) {
            const size_t part = std::min(bytes, buffer.size());
            buffer += part;
            bytes -= part;
        }
    }
    clear_deadline();
    co_return !gone_ && !stopping_;
}

Task<void> Connection::linger() {
    boost::system::error_code error;
    socket_.shutdown(Socket::shutdown_send, error);
    set_deadline(after(server_.limits.linger_time));
    while (!error && !timed_out_ && !stopping_ && !end_of_input_) {
        buffer_.clear();
        const auto space = buffer_.prepare(kBodyReadBytes);
        const auto [read_error, bytes] = co_await socket_.async_read_some(space, kAwait);
        error = read_error;
        (void)bytes;
    }
    clear_deadline();
}

void Connection::set_deadline(Clock::time_point deadline) {
    deadline_ = deadline;
    timed_out_ = false;
}

void Connection::sweep(Clock::time_point now) {
    if (now >= deadline_) {
        clear_deadline();
        timed_out_ = true;
        boost::system::error_code ignored;
        socket_.cancel(ignored);
    }
    if (watching_ && saturated_) {
        pollfd state{socket_.native_handle(), POLLRDHUP, 0};
        if (::poll(&state, 1, 0) <= 0) return;
        saturated_ = false;
        if (state.revents & (POLLERR | POLLHUP)) {
            gone_ = true;
            signal_.notify();
        } else {
            peer_closed();
        }
    }
}

void Connection::drain() {
    if (between_requests_) {
        boost::system::error_code ignored;
        socket_.cancel(ignored);
    }
}

void Connection::stop() {
    stopping_ = true;
    signal_.notify();
    boost::system::error_code ignored;
    socket_.close(ignored);
}

} // namespace strata::gateway
