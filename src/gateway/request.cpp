#include "gateway/request.h"

#include <boost/beast/http/error.hpp>

#include <algorithm>
#include <iterator>

namespace strata::gateway {

namespace http = boost::beast::http;

namespace {

constexpr size_t kFirstBodyBytes = 64 * 1024; // reserved at once when Content-Length says that so much comes

}

void RequestBody::reader::add(std::string_view piece, boost::system::error_code & error) {
    error = {};
    body_.received += piece.size();
    if (body_.scanner) body_.scanner->feed(piece);
    if (!body_.keep) return;
    std::string & bytes = body_.bytes;
    const size_t needed = bytes.size() + piece.size();
    if (needed > bytes.capacity()) {
        size_t capacity = std::max({needed, bytes.capacity() * 2, kFirstBodyBytes});
        if (content_length_ >= needed) capacity = std::min<size_t>(capacity, content_length_);
        if (!body_.share.grow_to(capacity)) {
            error = boost::system::errc::make_error_code(boost::system::errc::not_enough_memory);
            return;
        }
        bytes.reserve(capacity);
    }
    bytes += piece;
}

std::optional<FramingError> framing_error(const RequestParser & parser) {
    const RequestHeader & header = parser.get().base();
    const auto lengths = header.equal_range(http::field::content_length);
    const auto codings = header.equal_range(http::field::transfer_encoding);
    const auto length_count = std::distance(lengths.first, lengths.second);
    const auto coding_count = std::distance(codings.first, codings.second);
    if (length_count > 1) return FramingError{400, "Content-Length is given more than once"};
    if (length_count > 0 && coding_count > 0) return FramingError{400, "both Content-Length and Transfer-Encoding"};
    if (length_count == 1) {
        const auto value = lengths.first->value();
        if (value.empty() || !std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; })) {
            return FramingError{400, "Content-Length is not a number"};
        }
    }
    if (coding_count > 1) return FramingError{400, "Transfer-Encoding is given more than once"};
    if (coding_count == 1) {
        if (header.version() == 10) return FramingError{400, "Transfer-Encoding in an HTTP/1.0 request"};
        if (!boost::beast::iequals(codings.first->value(), "chunked")) {
            return FramingError{501, "this Transfer-Encoding is not supported; use chunked"};
        }
    }
    return std::nullopt;
}

int status_of_parse_error(const boost::system::error_code & error) {
    if (error == http::error::header_limit || error == http::error::buffer_overflow) return 431;
    if (error == http::error::body_limit) return 413;
    if (error == http::error::bad_version) return 505;
    if (error == boost::system::errc::not_enough_memory) return 503;
    return 400;
}

} // namespace strata::gateway
