#include "layers/model_name.h"

#include "base/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace strata::layers {

namespace {

constexpr size_t kMaxBytes = 255;
constexpr size_t kMaxTagBytes = 128;
constexpr size_t kMaxNameFromFile = 120; // leaves room for a tag

bool is_lower(char c) {
    return c >= 'a' && c <= 'z';
}
bool is_digit(char c) {
    return c >= '0' && c <= '9';
}
bool is_separator(char c) {
    return c == '.' || c == '_' || c == '-';
}
bool is_name_char(char c) {
    return is_lower(c) || is_digit(c);
}
bool is_tag_char(char c) {
    return is_name_char(c) || (c >= 'A' && c <= 'Z') || is_separator(c);
}

// Parts joined by "/", each of letters and digits with single separators between them.
bool is_valid_name(std::string_view name) {
    char before = '/';
    for (const char c : name) {
        const bool joins = c == '/' || is_separator(c);
        if (joins ? !is_name_char(before) : !is_name_char(c)) return false;
        before = c;
    }
    return !name.empty() && is_name_char(before);
}

// A tag of the OCI distribution specification.
bool is_valid_tag(std::string_view tag) {
    return !tag.empty() && tag.size() <= kMaxTagBytes && tag.front() != '.' && tag.front() != '-' &&
           std::all_of(tag.begin(), tag.end(), is_tag_char);
}

bool consume(std::string_view & text, std::string_view prefix) {
    if (!text.starts_with(prefix)) return false;
    text.remove_prefix(prefix.size());
    return true;
}

// "q4_k_m", "iq2_xxs", "tq1_0", "bf16", "mxfp4", "ud-q4_k_xl": what llama.cpp's and others' file names end in.
bool is_quantization(std::string_view text) {
    for (const std::string_view whole : {"f16", "f32", "bf16", "fp16", "fp32", "mxfp4", "mxfp4_moe", "nvfp4"}) {
        if (text == whole) return true;
    }
    consume(text, "ud-");
    if (!consume(text, "iq") && !consume(text, "tq") && !consume(text, "q")) return false;
    if (text.empty() || !is_digit(text.front())) return false;
    text.remove_prefix(1);
    constexpr std::array kParts = {"0", "1", "k", "s", "m", "l", "xl", "xs", "xxs", "nl", "4", "8"};
    while (consume(text, "_")) {
        const std::string_view part = text.substr(0, text.find('_'));
        if (std::find(kParts.begin(), kParts.end(), part) == kParts.end()) return false;
        text.remove_prefix(part.size());
    }
    return text.empty();
}

// Lower case, anything but letters, digits and separators to "-", no separator at an end or beside another.
std::string sanitised(std::string_view text) {
    std::string out;
    for (char c : text) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
        if (!is_name_char(c) && !is_separator(c)) c = '-';
        if (is_separator(c) && (out.empty() || is_separator(out.back()))) continue;
        out += c;
    }
    while (!out.empty() && is_separator(out.back())) out.pop_back();
    return out;
}

// Takes "-00001-of-00003" off the end.
void remove_split_suffix(std::string_view & stem) {
    constexpr std::string_view kForm = "-00000-of-00000";
    if (stem.size() <= kForm.size()) return;
    const std::string_view end = stem.substr(stem.size() - kForm.size());
    for (size_t i = 0; i < kForm.size(); ++i) {
        if (kForm[i] == '0' ? !is_digit(end[i]) : end[i] != kForm[i]) return;
    }
    stem.remove_suffix(kForm.size());
}

} // namespace

absl::StatusOr<ModelName> ModelName::parse(std::string_view text) {
    const auto refuse = [text](std::string_view why) {
        return absl::InvalidArgumentError(fmt::format("\"{}\" is not a model name: {}", printable(text), why));
    };
    if (text.empty()) return refuse("it is empty");
    if (text.size() > kMaxBytes) return refuse(fmt::format("it is longer than {} bytes", kMaxBytes));
    const size_t colon = text.find(':');
    ModelName parsed;
    parsed.name = text.substr(0, colon);
    if (colon != std::string_view::npos) parsed.tag = text.substr(colon + 1);
    if (!is_valid_name(parsed.name)) {
        return refuse("use NAME[:TAG], NAME of lower-case letters and digits with single . _ - or / between them");
    }
    if (!is_valid_tag(parsed.tag)) {
        return refuse(
            fmt::format("a tag is 1 to {} letters, digits, . _ -, and begins with a letter, digit or _", kMaxTagBytes));
    }
    if (parsed.to_string().size() > kMaxBytes) return refuse(fmt::format("it is longer than {} bytes", kMaxBytes));
    return parsed;
}

ModelName ModelName::from_file(std::string_view path) {
    std::string_view stem = path.substr(path.find_last_of('/') + 1); // npos + 1 is 0
    constexpr std::string_view kExtension = ".gguf";
    const auto same_letter = [](char a, char b) { return (a | 0x20) == (b | 0x20); };
    if (stem.size() > kExtension.size() &&
        std::equal(kExtension.begin(), kExtension.end(), stem.end() - kExtension.size(), same_letter)) {
        stem.remove_suffix(kExtension.size());
    }
    remove_split_suffix(stem);

    ModelName made;
    made.name = sanitised(stem);
    // The longest end that is a quantization, so that "x-ud-q4_k_m" is not cut at "_m".
    for (size_t i = 1; i + 1 < made.name.size(); ++i) {
        if (is_separator(made.name[i]) && is_quantization(std::string_view(made.name).substr(i + 1))) {
            made.tag = made.name.substr(i + 1);
            made.name.resize(i);
            break;
        }
    }
    if (made.name.size() > kMaxNameFromFile) made.name = sanitised(made.name.substr(0, kMaxNameFromFile));
    if (made.name.empty()) made.name = "model";
    return made;
}

} // namespace strata::layers
