#include "gateway/json_scanner.h"

#include "base/api_error.h"
#include "base/text.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>

namespace strata::gateway {

namespace {

constexpr size_t kMaxCapture = 1024; // a longer key is not "model", a longer model name is refused
constexpr size_t kMaxWord = 1024;    // digits of a number

bool is_space(char c) {
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

bool is_word_byte(char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || c == '-' || c == '+' || c == '.' || c == 'E';
}

// Bytes inside a string that need no attention.
constexpr auto kPlain = [] {
    std::array<bool, 256> plain{};
    for (int c = 0x20; c < 256; ++c) plain[c] = c != '"' && c != '\\';
    return plain;
}();

// RFC 8259, section 6.
bool is_number(std::string_view text) {
    size_t i = 0;
    const auto digits = [&] {
        const size_t start = i;
        while (i < text.size() && is_digit(text[i])) ++i;
        return i - start;
    };
    if (i < text.size() && text[i] == '-') ++i;
    const bool zero = i < text.size() && text[i] == '0';
    const size_t whole = digits();
    if (whole == 0 || (zero && whole > 1)) return false;
    if (i < text.size() && text[i] == '.') {
        ++i;
        if (digits() == 0) return false;
    }
    if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
        ++i;
        if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
        if (digits() == 0) return false;
    }
    return i == text.size();
}

} // namespace

void JsonScanner::fail(std::string_view what) {
    error_ =
        absl::InvalidArgumentError(fmt::format("the request body is not valid JSON: {} at byte {}", what, offset_));
}

void JsonScanner::fail_model(std::string_view what) {
    error_ = about_field(absl::InvalidArgumentError(fmt::format("model {}, at byte {} of the body", what, offset_)),
                         "model");
}

void JsonScanner::feed(std::string_view bytes) {
    size_t i = 0;
    while (i < bytes.size() && error_.ok()) {
        const char c = bytes[i];
        switch (token_) {
        case Token::kString: {
            const size_t start = i;
            while (i < bytes.size() && kPlain[static_cast<unsigned char>(bytes[i])]) ++i;
            if (capture_) {
                captured_.append(bytes, start, std::min(i - start, kMaxCapture + 1 - captured_.size()));
            }
            offset_ += i - start;
            if (i == bytes.size()) return;
            if (bytes[i] == '"') {
                end_string();
            } else if (bytes[i] == '\\') {
                token_ = Token::kEscape;
                if (capture_ && captured_.size() <= kMaxCapture) captured_ += '\\';
            } else {
                fail("a control character in a string");
            }
            break;
        }
        case Token::kEscape:
            if (std::string_view("\"\\/bfnrtu").find(c) == std::string_view::npos) {
                fail("an unknown escape");
                break;
            }
            if (capture_ && captured_.size() <= kMaxCapture) captured_ += c;
            hex_left_ = 4;
            token_ = c == 'u' ? Token::kUnicode : Token::kString;
            break;
        case Token::kUnicode:
            if (!std::isxdigit(static_cast<unsigned char>(c))) {
                fail("a bad \\u escape");
                break;
            }
            if (capture_ && captured_.size() <= kMaxCapture) captured_ += c;
            if (--hex_left_ == 0) token_ = Token::kString;
            break;
        case Token::kWord:
            if (is_word_byte(c)) {
                word_ += c;
                if (word_.size() > kMaxWord) fail("a number that is too long");
                break;
            }
            end_word();
            if (error_.ok()) structural(c);
            break;
        case Token::kNone:
            structural(c);
            break;
        }
        ++i;
        ++offset_;
    }
}

// One byte outside of strings and words.
void JsonScanner::structural(char c) {
    if (is_space(c)) return;
    const bool value_allowed = expect_ == Expect::kValue || expect_ == Expect::kFirstValue;
    switch (c) {
    case '{':
    case '[':
        if (!value_allowed) break;
        if (stack_.empty() && c == '[') return fail("an array instead of an object");
        if (stack_.size() >= max_depth_) return fail(fmt::format("nested deeper than {} levels", max_depth_));
        if (stack_.size() == 1 && key_is_model_) return fail_model("is not a string");
        stack_ += c;
        expect_ = c == '{' ? Expect::kFirstKey : Expect::kFirstValue;
        return;
    case '}':
        if (expect_ == Expect::kFirstKey || expect_ == Expect::kCommaOrEnd) return close('{');
        break;
    case ']':
        if (expect_ == Expect::kFirstValue || expect_ == Expect::kCommaOrEnd) return close('[');
        break;
    case ':':
        if (expect_ != Expect::kColon) break;
        expect_ = Expect::kValue;
        return;
    case ',':
        if (expect_ != Expect::kCommaOrEnd) break;
        expect_ = stack_.back() == '{' ? Expect::kKey : Expect::kValue;
        return;
    case '"':
        if (expect_ == Expect::kFirstKey || expect_ == Expect::kKey || value_allowed) return begin_string();
        break;
    default:
        if (!value_allowed || !is_word_byte(c)) break;
        if (stack_.empty()) return fail("not an object");
        if (stack_.size() == 1 && key_is_model_ && c != 'n') return fail_model("is not a string");
        word_ = c;
        token_ = Token::kWord;
        return;
    }
    fail(fmt::format("an unexpected '{}'", printable(std::string_view(&c, 1))));
}

void JsonScanner::begin_string() {
    if (stack_.empty()) return fail("not an object");
    string_is_key_ = expect_ == Expect::kFirstKey || expect_ == Expect::kKey;
    capture_ = stack_.size() == 1 && (string_is_key_ || key_is_model_);
    captured_.clear();
    token_ = Token::kString;
}

void JsonScanner::end_string() {
    token_ = Token::kNone;
    if (capture_) {
        std::string text = std::move(captured_);
        captured_.clear();
        if (text.find('\\') != std::string::npos) {
            // Escapes of so short a string are left to the JSON library; what it does not take is no name.
            const auto json = nlohmann::json::parse('"' + text + '"', nullptr, false);
            text = json.is_string() ? json.get<std::string>() : std::string();
        }
        if (string_is_key_) {
            key_is_model_ = text == "model";
        } else {
            if (text.size() > kMaxCapture) return fail_model("is too long a name");
            model_ = std::move(text);
        }
    }
    if (string_is_key_) {
        expect_ = Expect::kColon;
    } else {
        value_done();
    }
}

void JsonScanner::end_word() {
    token_ = Token::kNone;
    if (word_ == "null" && stack_.size() == 1 && key_is_model_) model_.clear();
    if (word_ != "true" && word_ != "false" && word_ != "null" && !is_number(word_)) {
        return fail(fmt::format("'{}'", printable(word_, 20)));
    }
    value_done();
}

void JsonScanner::close(char opener) {
    if (stack_.back() != opener) return fail("brackets that do not match");
    stack_.pop_back();
    value_done();
}

void JsonScanner::value_done() {
    expect_ = stack_.empty() ? Expect::kNothing : Expect::kCommaOrEnd;
    if (stack_.size() == 1) key_is_model_ = false;
}

absl::StatusOr<std::string> JsonScanner::finish() {
    if (error_.ok() && offset_ == 0) error_ = absl::InvalidArgumentError("the request has no body; send a JSON object");
    if (error_.ok() && expect_ != Expect::kNothing) fail("it ends too early");
    if (!error_.ok()) return error_;
    return model_;
}

} // namespace strata::gateway
