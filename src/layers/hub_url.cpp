#include "base/text.h"
#include "layers/hub.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace strata::layers {

namespace {

constexpr std::string_view kPrefix = "hf://";
constexpr size_t kMaxRepoPartBytes = 96; // the hub's own limit
constexpr size_t kMaxFileBytes = 1024;
constexpr unsigned kMaxParts = 1024; // of a split model
constexpr size_t kMaxRevisionBytes = 250;

bool is_word(std::string_view text, std::string_view others) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               others.find(c) != std::string_view::npos;
    });
}

bool is_path(std::string_view text) {
    while (true) {
        const size_t slash = text.find('/');
        const std::string_view part = text.substr(0, slash);
        if (part.empty() || part == "." || part == "..") return false;
        if (slash == std::string_view::npos) return true;
        text.remove_prefix(slash + 1);
    }
}

bool has_control_characters(std::string_view text) {
    return std::any_of(text.begin(), text.end(), [](char c) { return (c >= 0 && c < 0x20) || c == 0x7f || c == '\\'; });
}

} // namespace

absl::StatusOr<HubUrl> HubUrl::parse(std::string_view text) {
    const auto refuse = [&](std::string_view why) {
        return absl::InvalidArgumentError(
            fmt::format("\"{}\" is not hf://ORG/REPO/FILE[@REVISION]: {}", printable(text, 300), why));
    };
    if (!text.starts_with(kPrefix)) return refuse("it does not begin with hf://");
    std::string_view rest = text.substr(kPrefix.size());
    HubUrl url;
    if (const size_t at = rest.rfind('@'); at != std::string_view::npos) {
        url.revision = rest.substr(at + 1);
        rest = rest.substr(0, at);
        if (!is_word(url.revision, "._-/") || !is_path(url.revision) || url.revision.size() > kMaxRevisionBytes) {
            return refuse("the revision is not a branch, tag or commit");
        }
    }
    const size_t first = rest.find('/');
    const size_t second = first == std::string_view::npos ? first : rest.find('/', first + 1);
    if (second == std::string_view::npos) return refuse("organisation, repository or file is missing");
    const std::string_view organisation = rest.substr(0, first);
    const std::string_view repository = rest.substr(first + 1, second - first - 1);
    for (const std::string_view part : {organisation, repository}) {
        if (!is_word(part, "._-") || !is_path(part) || part.size() > kMaxRepoPartBytes) {
            return refuse("organisation and repository are made of letters, digits and . _ -");
        }
    }
    url.repo = rest.substr(0, second);
    url.file = rest.substr(second + 1);
    if (!is_path(url.file) || has_control_characters(url.file) || url.file.size() > kMaxFileBytes) {
        return refuse("the file's path has an empty part, \"..\", or characters that no file has");
    }
    return url;
}

std::vector<HubUrl> HubUrl::parts() const {
    constexpr std::string_view kForm = "-00001-of-00003.gguf"; // the end of every part's name has this length
    constexpr size_t kDigits = 5, kCountAt = 10;
    if (file.size() <= kForm.size()) return {*this};
    const std::string_view end = std::string_view(file).substr(file.size() - kForm.size());
    const std::string_view stem = std::string_view(file).substr(0, file.size() - kForm.size());
    const auto number = [&](size_t at) {
        unsigned value = 0;
        const auto [last, error] = std::from_chars(end.data() + at, end.data() + at + kDigits, value);
        return error == std::errc() && last == end.data() + at + kDigits ? value : 0;
    };
    const unsigned part = number(1);
    const unsigned count = number(kCountAt);
    const auto name = [&](unsigned i) { return fmt::format("{}-{:05}-of-{:05}.gguf", stem, i, count); };
    if (part < 1 || part > count || count > kMaxParts || name(part) != file) return {*this};
    std::vector<HubUrl> all(count, *this);
    for (unsigned i = 0; i < count; ++i) all[i].file = name(i + 1);
    return all;
}

std::string HubUrl::to_string() const {
    return fmt::format("{}{}/{}{}{}", kPrefix, repo, file, revision == "main" ? "" : "@",
                       revision == "main" ? "" : revision);
}

} // namespace strata::layers
