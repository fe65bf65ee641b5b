#pragma once

#include "base/status.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace strata::gateway {

// Reads a JSON request body as it arrives, piece by piece, and finds the "model" that its top-level object names.
// Checks the grammar (not UTF-8, which the engine's parser does) and bounds the nesting; keeps nothing but the name, so
// that a body full of images costs no second copy and no long stop at its end. Among several "model" keys the last one
// counts, as in the engine's parser. Not thread-safe.
class JsonScanner {
public:
    explicit JsonScanner(size_t max_depth)
        : max_depth_(max_depth) {}

    // Takes the next bytes. After the first error all further bytes are ignored.
    void feed(std::string_view bytes);
    // The model's name, empty when the body names none. InvalidArgument when what was fed is not one JSON object; about
    // the field "model" (field_of) when that is what is wrong.
    absl::StatusOr<std::string> finish();

private:
    enum class Expect : uint8_t {
        kValue,      // any value
        kFirstValue, // a value or the end of the array
        kFirstKey,   // a key or the end of the object
        kKey,        // a key
        kColon,
        kCommaOrEnd,
        kNothing // after the top-level object
    };
    enum class Token : uint8_t { kNone, kString, kEscape, kUnicode, kWord };

    void structural(char c);
    void begin_string();
    void end_string();
    void end_word();
    void close(char opener);
    void value_done();
    void fail(std::string_view what);
    void fail_model(std::string_view what);

    const size_t max_depth_;
    uint64_t offset_ = 0; // of the byte looked at
    std::string stack_;   // '{' and '['
    Expect expect_ = Expect::kValue;
    Token token_ = Token::kNone;
    uint8_t hex_left_ = 0; // digits of \uXXXX
    bool string_is_key_ = false;
    bool capture_ = false; // this string is a top-level key, or the value of "model"
    bool key_is_model_ = false;
    std::string captured_; // raw, with escapes
    std::string word_;     // a number or a literal
    std::string model_;
    absl::Status error_;
};

} // namespace strata::gateway
