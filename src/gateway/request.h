#pragma once

#include "gateway/json_scanner.h"
#include "gateway/memory_budget.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace strata::gateway {

// The body of a request as Beast's parser fills it: only what was asked for is kept, and its memory is taken from a
// budget as the bytes arrive, never ahead because of what Content-Length claims.
struct RequestBody {
    struct value_type {
        bool keep = false;                    // else the bytes are thrown away
        std::unique_ptr<JsonScanner> scanner; // null: not looked at
        std::string bytes;
        MemoryShare share;
        uint64_t received = 0;
    };

    class reader {
    public:
        template <bool isRequest, class Fields>
        reader(boost::beast::http::header<isRequest, Fields> &, value_type & body)
            : body_(body) {}

        void init(const boost::optional<uint64_t> & content_length, boost::system::error_code & error) {
            content_length_ = content_length.value_or(0);
            error = {};
        }
        template <class ConstBufferSequence>
        size_t put(const ConstBufferSequence & buffers, boost::system::error_code & error) {
            size_t taken = 0;
            const auto end = boost::asio::buffer_sequence_end(buffers);
            for (auto it = boost::asio::buffer_sequence_begin(buffers); it != end; ++it) {
                const boost::asio::const_buffer buffer = *it;
                add(std::string_view(static_cast<const char *>(buffer.data()), buffer.size()), error);
                if (error) break;
                taken += buffer.size();
            }
            return taken;
        }
        void finish(boost::system::error_code & error) { error = {}; }

    private:
        // Sets errc::not_enough_memory when the budget has no room.
        void add(std::string_view piece, boost::system::error_code & error);

        value_type & body_;
        uint64_t content_length_ = 0;
    };
};

using RequestParser = boost::beast::http::parser<true, RequestBody>;
using RequestHeader = boost::beast::http::header<true>;

// What is wrong with how the message says where it ends: two lengths, a length and chunks, an unknown coding. Nullptr
// when nothing is. A message that two parties may cut differently must not be answered on a connection that stays open
// (RFC 9112, 6.3).
struct FramingError {
    int status;
    const char * message;
};
std::optional<FramingError> framing_error(const RequestParser & parser);

// The HTTP status for an error of the parser.
int status_of_parse_error(const boost::system::error_code & error);

} // namespace strata::gateway
