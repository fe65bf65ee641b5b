#pragma once

#include <chrono>
#include <cstddef>

namespace strata::gateway {

// What one HTTP server holds at most. Its memory is bounded by
//   max_connections * (header_bytes + a few KiB) + body_bytes_total + queued_bytes_total.
struct Limits {
    size_t connections = 10'000;     // open at once; one more is answered 503 and closed
    size_t header_bytes = 16 * 1024; // request line and headers: 431. Also what is read ahead of a pipelined request
    size_t body_bytes = 64u << 20;   // of one request: 413, from Content-Length already
    size_t body_bytes_total = 512u << 20;   // of all requests that have no answer yet: 503
    size_t json_depth = 128;                // nested arrays and objects of a body: 400
    size_t stream_queued_bytes = 8u << 20;  // of a streamed answer, not taken by the client: cancelled
    size_t answer_bytes = 64u << 20;        // of an answer that is not streamed
    size_t queued_bytes_total = 256u << 20; // of all answers: the one that would exceed it is cancelled

    std::chrono::milliseconds header_time{
        10'000}; // from a request's first byte (or the accept) to its last header: 408
    std::chrono::milliseconds body_time{
        10'000}; // to begin with, plus what the received bytes take at body_bytes_per_second
    size_t body_bytes_per_second = 16 * 1024;     // a body slower than this: 408
    std::chrono::milliseconds idle_time{75'000};  // between two requests of a connection
    std::chrono::milliseconds write_time{60'000}; // in which a client must take at least one byte
    std::chrono::milliseconds linger_time{2'000}; // to let a client read a refusal before its connection is closed
    std::chrono::milliseconds sweep_time{500};    // how often deadlines are looked at
};

} // namespace strata::gateway
