#include "layers/hub.h"

#include "base/text.h"
#include "layers/hub_http.h"
#include "layers/hub_part.h"

#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <thread>

namespace strata::layers {

namespace {

using Clock = std::chrono::steady_clock;

constexpr char kPublicHub[] = "https://huggingface.co";
constexpr int kMaxRedirects = 10;
constexpr int kMaxAttempts = 5;              // one after the other without getting further
constexpr uint64_t kFurtherBytes = 1u << 20; // what counts as getting further
constexpr uint64_t kSpareDiskBytes = 64u << 20;
constexpr auto kLongestBackOff = std::chrono::seconds(60);
constexpr auto kProgressInterval = std::chrono::milliseconds(100);

std::string environment(const char * name) {
    const char * value = std::getenv(name);
    return value == nullptr ? "" : value;
}

// For a path of a URL: all but unreserved characters (RFC 3986) as %XX.
std::string encode(std::string_view text, std::string_view kept = "") {
    std::string out;
    for (const char c : text) {
        const bool unreserved = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                                std::string_view("-._~").find(c) != std::string_view::npos;
        if (unreserved || kept.find(c) != std::string_view::npos) {
            out += c;
        } else {
            out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
        }
    }
    return out;
}

std::optional<uint64_t> to_number(std::string_view text) {
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

// An ETag without quotes and the mark of a weak one.
std::string_view bare_etag(std::string_view etag) {
    if (etag.starts_with("W/")) etag.remove_prefix(2);
    if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
    return etag;
}

bool is_hex(std::string_view text, size_t digits) {
    return text.size() == digits && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

// "bytes 100-199/200": the first byte and the size of the whole.
std::optional<std::pair<uint64_t, uint64_t>> parse_content_range(std::string_view text) {
    constexpr std::string_view kUnit = "bytes ";
    const size_t dash = text.find('-');
    const size_t slash = text.find('/');
    if (!text.starts_with(kUnit) || dash == std::string_view::npos || slash == std::string_view::npos || dash > slash) {
        return std::nullopt;
    }
    const auto first = to_number(text.substr(kUnit.size(), dash - kUnit.size()));
    const auto whole = to_number(text.substr(slash + 1));
    if (!first.has_value() || !whole.has_value()) return std::nullopt;
    return std::pair(*first, *whole);
}

class Download {
public:
    Download(const HubUrl & url, const std::filesystem::path & folder, const HubOptions & options)
        : url_(url)
        , folder_(folder)
        , options_(options)
        , http_([this] { return keep_going(); }) {}

    absl::StatusOr<HubFile> run();

private:
    absl::Status prepare();
    absl::StatusOr<std::filesystem::path> attempt();
    absl::StatusOr<StatedContent> resolve();
    absl::Status fetch();
    absl::Status take_body(const HttpResponse & response, std::span<const std::byte> body, bool & begun);
    absl::Status check_room() const;
    absl::Status back_off(int failures);
    bool keep_going();

    // The headers for a request to `target`, the token among them when that is where it belongs.
    absl::Status address_request(const std::string & target, HttpRequest & request) const;
    absl::Status status_error(const HttpResponse & response, const std::string & target);

    const HubUrl & url_;
    const std::filesystem::path & folder_;
    const HubOptions & options_;
    HttpClient http_;

    std::string endpoint_;
    Origin origin_; // of the endpoint
    std::string token_;
    std::string resolve_url_;
    bool endpoint_is_public_ = false;

    std::optional<PartFile> part_;
    StatedContent stated_;
    std::chrono::seconds retry_after_{0};
    Clock::time_point next_report_;
};

bool Download::keep_going() {
    const auto now = Clock::now();
    if (!options_.progress || now < next_report_) return true;
    next_report_ = now + kProgressInterval;
    return options_.progress(part_.has_value() ? part_->size() : 0, stated_.size);
}

absl::Status Download::prepare() {
    endpoint_ = !options_.endpoint.empty() ? options_.endpoint : environment("HF_ENDPOINT");
    if (endpoint_.empty()) endpoint_ = kPublicHub;
    while (endpoint_.ends_with('/')) endpoint_.pop_back();
    STRATA_ASSIGN_OR_RETURN(origin_, Origin::of(endpoint_));

    token_ = !options_.token.empty() ? options_.token : environment("HF_TOKEN");
    const bool visible = std::all_of(token_.begin(), token_.end(), [](char c) { return c > 0x20 && c < 0x7f; });
    if (!visible)
        return absl::InvalidArgumentError("the token of HF_TOKEN has characters that no token has, such as a line end");
    if (origin_.scheme != "https" && !origin_.is_loopback()) token_.clear();

    resolve_url_ =
        fmt::format("{}/{}/resolve/{}/{}", endpoint_, url_.repo, encode(url_.revision), encode(url_.file, "/"));
    std::error_code error;
    std::filesystem::create_directories(folder_, error);
    if (error) return errno_status(error.value(), "make the folder", folder_.native());
    return absl::OkStatus();
}

absl::Status Download::address_request(const std::string & target, HttpRequest & request) const {
    STRATA_ASSIGN_OR_RETURN(const Origin origin, Origin::of(target));
    request.url = target;
    request.headers = {"Accept-Encoding: identity"};
    if (origin == origin_) {
        if (!token_.empty()) request.headers.push_back("Authorization: Bearer " + token_);
    } else {
        // The public hub has no reason to send anyone to a machine in the own network.
        request.public_address_only = endpoint_is_public_;
    }
    return absl::OkStatus();
}

absl::Status Download::status_error(const HttpResponse & response, const std::string & target) {
    const absl::StatusOr<Origin> origin = Origin::of(target);
    const bool from_hub = origin.ok() && *origin == origin_;
    const std::string & reason = response.header("x-error-code");
    const int status = response.status;
    if (from_hub && status == 401) {
        return absl::UnauthenticatedError(
            token_.empty()
                ? fmt::format(
                      "the hub shows {} to nobody without a token, or there is no such repository; check the name, "
                      "or set HF_TOKEN to a token of yours ({}/settings/tokens)",
                      url_.repo, endpoint_)
                : fmt::format(
                      "the hub does not take the token of HF_TOKEN for {}, or there is no such repository; check "
                      "both ({}/settings/tokens)",
                      url_.repo, endpoint_));
    }
    if (from_hub && status == 403) {
        return absl::PermissionDeniedError(fmt::format(
            "access to {} is restricted: accept its licence at {}/{} and set HF_TOKEN to a token that may read it",
            url_.repo, endpoint_, url_.repo));
    }
    if (from_hub && (status == 404 || status == 410)) {
        const std::string what =
            reason == "RevisionNotFound" ? fmt::format("{} has no revision {}", url_.repo, url_.revision)
            : reason == "EntryNotFound"
                ? fmt::format("{} has no file {} at {}", url_.repo, printable(url_.file), url_.revision)
                : fmt::format("the hub has no {} in {} at {}", printable(url_.file), url_.repo, url_.revision);
        return absl::NotFoundError(fmt::format("{}; see {}/{}", what, endpoint_, url_.repo));
    }
    const std::string what =
        fmt::format("{} answered with HTTP status {}", origin.ok() ? origin->host : "the hub", status);
    // A signed link to where the data is runs out with 401 or 403; the hub gives a new one.
    const bool link_ran_out = !from_hub && (status == 401 || status == 403 || status == 404);
    if (status == 408 || status == 429 || status >= 500 || link_ran_out) {
        const uint64_t seconds = to_number(response.header("retry-after")).value_or(0);
        retry_after_ = std::chrono::seconds(std::min<uint64_t>(seconds, kLongestBackOff.count()));
        return absl::UnavailableError(what);
    }
    return absl::FailedPreconditionError(what);
}

absl::StatusOr<StatedContent> Download::resolve() {
    std::string target = resolve_url_;
    for (int hop = 0; hop <= kMaxRedirects; ++hop) {
        HttpRequest request;
        request.head = true;
        STRATA_RETURN_IF_ERROR(address_request(target, request));
        STRATA_ASSIGN_OR_RETURN(const HttpResponse response, http_.perform(request));
        if (hop == 0) endpoint_is_public_ = is_public_address(response.address);

        const std::string & linked = response.header("x-linked-etag");
        if (response.is_redirect() && linked.empty()) { // a repository that was renamed
            STRATA_ASSIGN_OR_RETURN(target, redirect_target(target, response.header("location")));
            continue;
        }
        if (!response.is_redirect() && response.status != 200) return status_error(response, target);

        StatedContent stated;
        const std::string_view etag = bare_etag(linked.empty() ? response.header("etag") : linked);
        const std::optional<uint64_t> size =
            to_number(response.header(linked.empty() ? "content-length" : "x-linked-size"));
        if (is_hex(etag, 64)) {
            STRATA_ASSIGN_OR_RETURN(stated.sha256, Digest::parse_hex(etag));
        } else if (is_hex(etag, 40)) {
            stated.git_sha1 = etag;
        }
        if (!size.has_value() || (!stated.sha256.has_value() && stated.git_sha1.empty())) {
            return absl::FailedPreconditionError(fmt::format("{} does not state size and hash of {} (X-Linked-Size, "
                                                             "X-Linked-ETag), so a download could not be checked",
                                                             endpoint_, printable(url_.file)));
        }
        stated.size = *size;
        return stated;
    }
    return absl::FailedPreconditionError(fmt::format("{} redirects more than {} times", endpoint_, kMaxRedirects));
}

absl::Status Download::take_body(const HttpResponse & response, std::span<const std::byte> body, bool & begun) {
    if (!begun) {
        begun = true;
        if (response.status == 206) {
            const auto range = parse_content_range(response.header("content-range"));
            if (!range.has_value() || range->first != part_->size() || range->second != stated_.size) {
                STRATA_RETURN_IF_ERROR(part_->restart());
                return absl::UnavailableError("the server sent another range than it was asked for");
            }
        } else if (part_->size() > 0) {
            STRATA_RETURN_IF_ERROR(part_->restart()); // the bytes there are others than ours now
        }
        const std::string & etag = response.header("etag");
        STRATA_RETURN_IF_ERROR(part_->set_etag(etag.starts_with('"') ? etag : "")); // a weak one does for no range
    }
    if (body.size() > stated_.size - part_->size()) {
        STRATA_RETURN_IF_ERROR(part_->restart());
        return absl::DataLossError(
            fmt::format("the server sends more than the {} bytes that the hub states", stated_.size));
    }
    return part_->append(body);
}

absl::Status Download::fetch() {
    std::string target = resolve_url_;
    for (int hop = 0; hop <= kMaxRedirects; ++hop) {
        HttpRequest request;
        STRATA_RETURN_IF_ERROR(address_request(target, request));
        if (part_->size() > 0) {
            request.headers.push_back(fmt::format("Range: bytes={}-", part_->size()));
            request.headers.push_back("If-Range: " + part_->etag());
        }
        bool begun = false;
        request.on_body = [&](const HttpResponse & response, std::span<const std::byte> body) {
            return take_body(response, body, begun);
        };
        STRATA_ASSIGN_OR_RETURN(const HttpResponse response, http_.perform(request));
        if (response.is_redirect()) {
            STRATA_ASSIGN_OR_RETURN(target, redirect_target(target, response.header("location")));
            continue;
        }
        if (response.status == 416) {
            STRATA_RETURN_IF_ERROR(part_->restart());
            return absl::UnavailableError("the server does not have the range that it was asked for");
        }
        if (response.status != 200 && response.status != 206) return status_error(response, target);
        if (part_->size() != stated_.size) {
            return absl::UnavailableError(
                fmt::format("the connection ended after {} of {} bytes", part_->size(), stated_.size));
        }
        return absl::OkStatus();
    }
    return absl::FailedPreconditionError(fmt::format("{} redirects more than {} times", endpoint_, kMaxRedirects));
}

absl::Status Download::check_room() const {
    struct statvfs info = {};
    if (::statvfs(folder_.c_str(), &info) != 0) return errno_status(errno, "look at the disk of", folder_.native());
    const uint64_t room = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
    const uint64_t missing = stated_.size - part_->size();
    if (missing > room || room - missing < kSpareDiskBytes) {
        return absl::ResourceExhaustedError(
            fmt::format("{} has {} to go, but the disk of {} has room for {}; free some space "
                        "and try again",
                        printable(url_.file), human_bytes(missing), folder_.native(), human_bytes(room)));
    }
    return absl::OkStatus();
}

absl::StatusOr<std::filesystem::path> Download::attempt() {
    STRATA_ASSIGN_OR_RETURN(stated_, resolve());
    STRATA_ASSIGN_OR_RETURN(const auto finished, part_->find_finished(stated_));
    if (finished.has_value()) return *finished;
    STRATA_RETURN_IF_ERROR(part_->begin(stated_));
    STRATA_RETURN_IF_ERROR(check_room());
    const bool resumed = part_->size() > 0;
    if (part_->size() < stated_.size) STRATA_RETURN_IF_ERROR(fetch());
    absl::StatusOr<std::filesystem::path> path = part_->finish();
    if (resumed && absl::IsDataLoss(path.status())) {
        // What an earlier call left may be at fault, so the whole is tried once.
        STRATA_RETURN_IF_ERROR(fetch());
        path = part_->finish();
    }
    return path;
}

absl::Status Download::back_off(int failures) {
    const auto doubled = options_.back_off * (1 << std::min(failures - 1, 16));
    const auto wait = std::max<std::chrono::milliseconds>(std::min<std::chrono::milliseconds>(doubled, kLongestBackOff),
                                                          retry_after_);
    retry_after_ = std::chrono::seconds(0);
    const auto end = Clock::now() + wait;
    while (Clock::now() < end) {
        if (!keep_going()) return absl::CancelledError("the download was cancelled");
        std::this_thread::sleep_for(std::min<Clock::duration>(end - Clock::now(), kProgressInterval));
    }
    return absl::OkStatus();
}

absl::StatusOr<HubFile> Download::run() {
    STRATA_RETURN_IF_ERROR(prepare());
    const std::string name = Digest::of(endpoint_ + '\n' + url_.to_string()).hex().substr(0, 32);
    {
        STRATA_ASSIGN_OR_RETURN(PartFile part, PartFile::open(folder_, name, [this] { return keep_going(); }));
        part_.emplace(std::move(part));
    }
    uint64_t reached = 0;
    for (int failures = 0;;) {
        absl::StatusOr<std::filesystem::path> path = attempt();
        if (path.ok()) {
            if (options_.progress) options_.progress(stated_.size, stated_.size);
            return HubFile{*std::move(path), stated_.sha256, part_->lock()};
        }
        if (!absl::IsUnavailable(path.status())) return path.status();
        const uint64_t now = part_->size();
        failures = now >= reached + kFurtherBytes ? 0 : failures + 1;
        reached = std::max(reached, now);
        if (failures >= kMaxAttempts) {
            return absl::UnavailableError(
                fmt::format("{}; gave up after {} attempts, what was downloaded is kept for the next one",
                            std::string(path.status().message()), kMaxAttempts));
        }
        STRATA_RETURN_IF_ERROR(back_off(failures));
    }
}

} // namespace

absl::StatusOr<HubFile> hub_download(const HubUrl & url, const std::filesystem::path & folder,
                                     const HubOptions & options) {
    return Download(url, folder, options).run();
}

} // namespace strata::layers
