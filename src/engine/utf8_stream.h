#pragma once

#include <string>
#include <string_view>

namespace strata::engine {

// Turns the bytes of a stream of tokens into valid UTF-8: holds back a character that is not complete yet, and puts
// U+FFFD for bytes that can't become one. Not thread-safe.
class Utf8Stream {
public:
    // The text that is complete with these bytes.
    std::string push(std::string_view bytes);
    // Bytes held back.
    std::string_view pending() const { return pending_; }

private:
    std::string pending_;
};

} // namespace strata::engine
