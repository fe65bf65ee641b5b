#pragma once

#include "gateway/request.h"
#include "gateway/response_queue.h"
#include "gateway/routes.h"
#include "gateway/server_context.h"
#include "gateway/task.h"

#include <boost/beast/core/flat_buffer.hpp>

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>

namespace strata::gateway {

// One client's connection: reads requests one after the other and answers each. Everything runs on the thread of its
// io_context, so nothing here is locked; other threads reach it through ResponseQueue only.
//
// While an answer is under way the socket is watched, so that a client that leaves ends its request at once. The end of
// what the client sends (FIN) may mean that it is gone or only that it has said everything (a half-close). To tell, the
// server writes something harmless (an interim "100 Continue", a comment in an event stream): one that is gone answers
// with a reset. Where nothing harmless can be written (HTTP/1.0 before the answer, Connect streams) a half-close counts
// as gone.
class Connection : public std::enable_shared_from_this<Connection> {
public:
    using Set = std::unordered_set<Connection *>; // of one thread

    Connection(Socket socket, ServerContext & server, Set & siblings);
    ~Connection();

    void start();
    // Ends what has waited too long.
    void sweep(std::chrono::steady_clock::time_point now);
    // Closes it between two requests, and after the one under way.
    void drain();
    // Cancels the request under way and closes.
    void stop();

private:
    using Clock = std::chrono::steady_clock;
    using Buffers = std::array<boost::asio::const_buffer, 3>;

    // One request and its answer.
    struct Exchange {
        std::string id;
        std::string method;
        std::string path;
        std::string_view route = "other"; // for metrics
        const Route * api = nullptr;
        const ConnectBridge::Method * connect = nullptr;
        bool head_only = false;
        bool keep_alive = false;
        bool http_1_0 = false;
        bool body_pending = false; // not wholly read
        bool answered = false;     // its head is written
        bool overflow = false;     // more came than may wait
        int status = 0;
        Clock::time_point started;  // headers complete
        Clock::time_point received; // body complete
        InFlightToken token;
    };

    struct Answer {
        int status = 200;
        std::string_view content_type = "application/json";
        std::string body;
        std::string_view allow = {};
        int retry_after = 0; // seconds
    };

    static Task<void> run(std::shared_ptr<Connection> self);
    // One request; false when the connection is to end.
    Task<bool> serve_one();
    Task<bool> read_head();
    // What can be said of the request before its body is read: an answer that refuses it, with the reason for metrics.
    std::optional<Answer> check_head(const char *& reason);
    Task<bool> read_body();
    Task<bool> dispatch();
    Task<bool> relay_to_backend();
    Task<bool> relay_to_connect();
    Task<bool> relay(std::shared_ptr<ResponseQueue> queue, std::shared_ptr<ApiCall> call, MemoryShare body);
    Task<bool> relay_stream(ResponseQueue & queue, ApiCall & call, ResponseQueue::Batch batch);
    std::shared_ptr<ResponseQueue> make_queue();
    void on_answer(bool overflow);
    // Waits for the next batch that has something in it; nothing when the client has left.
    Task<bool> next_batch(ResponseQueue & queue, ResponseQueue::Batch & batch);

    Answer error_answer(int status, std::string_view message, std::string_view field = {}) const;
    // Answers with an error and ends the connection; counts the refusal.
    Task<bool> refuse(int status, std::string_view message, const char * reason);
    Task<bool> respond(Answer answer);
    std::string head_text(int status, std::string_view content_type, std::optional<size_t> length) const;
    void finish_exchange();

    // False at the end of the stream, after an error or past the deadline.
    Task<bool> read_some(size_t most);
    Task<bool> write(Buffers buffers);
    // Reads and drops what the client still sends, so that closing does not reset the answer away.
    Task<void> linger();

    void start_watch();
    void stop_watch();
    void wait_readable();
    void on_readable();
    void peer_closed();
    Task<bool> probe();

    void set_deadline(Clock::time_point deadline);
    void clear_deadline() { deadline_ = Clock::time_point::max(); }
    Clock::time_point after(std::chrono::milliseconds time) const { return Clock::now() + time; }

    Socket socket_;
    ServerContext & server_;
    Set & siblings_;
    Signal signal_;
    boost::beast::flat_buffer buffer_; // read and not used yet; at most limits.header_bytes
    std::optional<RequestParser> parser_;
    Exchange exchange_;

    Clock::time_point deadline_ = Clock::time_point::max();
    bool timed_out_ = false;
    bool first_request_ = true;
    bool between_requests_ = true;
    bool stopping_ = false;
    bool linger_ = false;

    // The watch over the socket while an answer is under way.
    bool watching_ = false;
    bool saturated_ = false;    // buffer_ is full of pipelined requests: sweep() looks for a hang-up instead
    bool end_of_input_ = false; // the client has closed, or half-closed
    bool probe_wanted_ = false;
    bool gone_ = false;      // the client takes nothing any more
    bool in_stream_ = false; // an event stream is being written
};

} // namespace strata::gateway
