#include "layers/hub_http.h"

#include "base/check.h"
#include "base/text.h"
#include "base/version.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>

namespace strata::layers {

namespace {

constexpr size_t kMaxHeaderBytes = 64u << 10; // of one response
constexpr long kConnectTimeoutS = 30;
constexpr long kStallS = 60; // no byte for so long: the connection is given up

void lower_case(std::string & text) {
    for (char & c : text) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
}

std::string_view trim(std::string_view text) {
    while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
    while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r' || text.back() == '\n')) {
        text.remove_suffix(1);
    }
    return text;
}

class CurlUrl {
public:
    CurlUrl()
        : handle_(curl_url()) {
        STRATA_CHECK(handle_ != nullptr);
    }
    ~CurlUrl() { curl_url_cleanup(handle_); }
    CurlUrl(const CurlUrl &) = delete;

    // A second call resolves a relative URL against the first.
    bool set(const std::string & url) { return curl_url_set(handle_, CURLUPART_URL, url.c_str(), 0) == CURLUE_OK; }
    std::string get(CURLUPart part, unsigned flags = 0) const {
        char * text = nullptr;
        if (curl_url_get(handle_, part, &text, flags) != CURLUE_OK) return {};
        std::string result = text;
        curl_free(text);
        return result;
    }

private:
    CURLU * handle_;
};

void init_curl() {
    static std::once_flag once;
    std::call_once(once, [] { STRATA_CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK); });
}

bool has_prefix(std::span<const uint8_t> address, std::span<const uint8_t> network, int bits) {
    for (int i = 0; i < bits; ++i) {
        const auto index = static_cast<size_t>(i / 8);
        const int mask = 0x80 >> (i % 8);
        if ((address[index] & mask) != (network[index] & mask)) return false;
    }
    return true;
}

bool is_public_v4(std::span<const uint8_t, 4> address) {
    struct Network {
        std::array<uint8_t, 4> bytes;
        int bits;
    };
    // IANA's special-purpose registry (RFC 6890) as far as it is not globally reachable, and multicast.
    constexpr std::array kSpecial = {
        Network{{0, 0, 0, 0}, 8},    Network{{10, 0, 0, 0}, 8},     Network{{100, 64, 0, 0}, 10},
        Network{{127, 0, 0, 0}, 8},  Network{{169, 254, 0, 0}, 16}, Network{{172, 16, 0, 0}, 12},
        Network{{192, 0, 0, 0}, 24}, Network{{192, 168, 0, 0}, 16}, Network{{198, 18, 0, 0}, 15},
        Network{{224, 0, 0, 0}, 3},
    };
    return std::none_of(kSpecial.begin(), kSpecial.end(),
                        [&](const Network & network) { return has_prefix(address, network.bytes, network.bits); });
}

} // namespace

absl::StatusOr<Origin> Origin::of(const std::string & url) {
    CurlUrl parsed;
    const bool valid = parsed.set(url);
    Origin origin{parsed.get(CURLUPART_SCHEME), parsed.get(CURLUPART_HOST),
                  parsed.get(CURLUPART_PORT, CURLU_DEFAULT_PORT)};
    lower_case(origin.scheme);
    lower_case(origin.host);
    if (!valid || (origin.scheme != "http" && origin.scheme != "https") || origin.host.empty()) {
        return absl::InvalidArgumentError(fmt::format("\"{}\" is not an http or https URL", printable(url)));
    }
    if (!parsed.get(CURLUPART_USER).empty() || !parsed.get(CURLUPART_PASSWORD).empty()) {
        return absl::InvalidArgumentError(
            fmt::format("the URL of {} has a user or password in it", printable(origin.host)));
    }
    return origin;
}

bool Origin::is_loopback() const {
    return host == "localhost" || host == "[::1]" ||
           (host.starts_with("127.") && in_addr_t(-1) != inet_addr(host.c_str()));
}

absl::StatusOr<std::string> redirect_target(const std::string & base, const std::string & location) {
    STRATA_ASSIGN_OR_RETURN(const Origin from, Origin::of(base));
    CurlUrl url;
    const bool valid = url.set(base) && url.set(location);
    const std::string target = valid ? url.get(CURLUPART_URL) : std::string();
    const absl::StatusOr<Origin> to = Origin::of(target);
    if (!valid || !to.ok()) {
        return absl::FailedPreconditionError(
            fmt::format("{} redirects to \"{}\", which is not an http or https URL", from.host, printable(location)));
    }
    if (from.scheme == "https" && to->scheme == "http") {
        return absl::FailedPreconditionError(fmt::format(
            "{} redirects from https to plain http ({}), which is not followed", from.host, printable(to->host)));
    }
    return target;
}

bool is_public_address(std::string_view address) {
    const std::string text(address);
    std::array<uint8_t, 16> bytes{};
    if (inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) {
        return is_public_v4(std::span(bytes).first<4>());
    }
    if (inet_pton(AF_INET6, text.c_str(), bytes.data()) != 1) return false;
    constexpr std::array<uint8_t, 16> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    if (has_prefix(bytes, kMapped, 96)) return is_public_v4(std::span(bytes).last<4>());
    constexpr std::array<uint8_t, 1> kGlobalUnicast = {0x20}; // 2000::/3
    return has_prefix(bytes, kGlobalUnicast, 3);
}

const std::string & HttpResponse::header(const std::string & name) const {
    static const std::string empty;
    const auto found = headers.find(name);
    return found == headers.end() ? empty : found->second;
}

struct HttpClient::State {
    CURL * curl = nullptr;
    std::function<bool()> keep_going;

    // Of the request that runs.
    const HttpRequest * request = nullptr;
    HttpResponse response;
    size_t header_bytes = 0;
    absl::Status error; // why a callback ended the request
    std::array<char, CURL_ERROR_SIZE> message{};

    static size_t on_header(char * data, size_t size, size_t count, void * self) {
        return static_cast<State *>(self)->take_header(std::string_view(data, size * count)) ? size * count : 0;
    }
    static size_t on_body(char * data, size_t size, size_t count, void * self) {
        return static_cast<State *>(self)->take_body(std::string_view(data, size * count)) ? size * count
                                                                                           : CURL_WRITEFUNC_ERROR;
    }
    static int on_progress(void * self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
        auto & state = *static_cast<State *>(self);
        if (state.keep_going()) return 0;
        state.error = absl::CancelledError("the download was cancelled");
        return 1;
    }
    static int before_request(void * self, char * address, char *, int, int) {
        auto & state = *static_cast<State *>(self);
        state.response.address = address;
        if (!state.request->public_address_only || is_public_address(address)) return CURL_PREREQFUNC_OK;
        state.error = absl::PermissionDeniedError(
            fmt::format("the hub redirects to {}, an address that is not of the public internet", printable(address)));
        return CURL_PREREQFUNC_ABORT;
    }

    bool take_header(std::string_view line) {
        header_bytes += line.size();
        if (header_bytes > kMaxHeaderBytes) {
            error = absl::ResourceExhaustedError(
                fmt::format("the server's headers take more than {}", human_bytes(kMaxHeaderBytes)));
            return false;
        }
        if (line.starts_with("HTTP/")) { // a new response, after an informational one
            response.headers.clear();
            return true;
        }
        const size_t colon = line.find(':');
        if (colon == std::string_view::npos) return true;
        std::string name(line.substr(0, colon));
        lower_case(name);
        response.headers[name] = trim(line.substr(colon + 1));
        return true;
    }

    bool take_body(std::string_view data) {
        long status = 0;
        curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
        response.status = static_cast<int>(status);
        if ((status != 200 && status != 206) || !request->on_body) return true;
        error = request->on_body(response, std::as_bytes(std::span(data)));
        return error.ok();
    }
};

HttpClient::HttpClient(std::function<bool()> keep_going)
    : state_(std::make_unique<State>()) {
    init_curl();
    state_->keep_going = std::move(keep_going);
    CURL * curl = state_->curl = curl_easy_init();
    STRATA_CHECK(curl != nullptr);
    static constexpr char kUserAgent[] = "strata/" STRATA_VERSION_STRING;
    curl_easy_setopt(curl, CURLOPT_USERAGENT, kUserAgent);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, kConnectTimeoutS);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, kStallS);
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &State::on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, state_.get());
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &State::on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, state_.get());
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &State::on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, state_.get());
    curl_easy_setopt(curl, CURLOPT_PREREQFUNCTION, &State::before_request);
    curl_easy_setopt(curl, CURLOPT_PREREQDATA, state_.get());
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, state_->message.data());
}

HttpClient::~HttpClient() {
    curl_easy_cleanup(state_->curl);
}

absl::StatusOr<HttpResponse> HttpClient::perform(const HttpRequest & request) {
    State & state = *state_;
    state.request = &request;
    state.response = HttpResponse();
    state.header_bytes = 0;
    state.error = absl::OkStatus();
    state.message[0] = '\0';
    curl_slist * headers = nullptr;
    for (const std::string & header : request.headers) {
        curl_slist * longer = curl_slist_append(headers, header.c_str());
        STRATA_CHECK(longer != nullptr);
        headers = longer;
    }
    curl_easy_setopt(state.curl, CURLOPT_URL, request.url.c_str());
    curl_easy_setopt(state.curl, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(state.curl, CURLOPT_NOBODY, request.head ? 1L : 0L);
    curl_easy_setopt(state.curl, CURLOPT_HTTPHEADER, headers);
    const CURLcode code = curl_easy_perform(state.curl);
    curl_easy_setopt(state.curl, CURLOPT_HTTPHEADER, nullptr);
    curl_slist_free_all(headers);
    state.request = nullptr;

    if (!state.error.ok()) return state.error;
    if (code == CURLE_OK) {
        long status = 0;
        curl_easy_getinfo(state.curl, CURLINFO_RESPONSE_CODE, &status);
        state.response.status = static_cast<int>(status);
        return state.response;
    }
    const absl::StatusOr<Origin> origin = Origin::of(request.url);
    const std::string what =
        fmt::format("cannot reach {}: {}", origin.ok() ? origin->host : printable(request.url),
                    state.message[0] != '\0' ? printable(state.message.data(), 300) : curl_easy_strerror(code));
    // What another try would not mend.
    constexpr std::array kFinal = {CURLE_UNSUPPORTED_PROTOCOL, CURLE_URL_MALFORMAT, CURLE_PEER_FAILED_VERIFICATION,
                                   CURLE_SSL_CACERT_BADFILE,   CURLE_SSL_CIPHER,    CURLE_SSL_CERTPROBLEM,
                                   CURLE_BAD_FUNCTION_ARGUMENT};
    if (std::find(kFinal.begin(), kFinal.end(), code) != kFinal.end()) return absl::FailedPreconditionError(what);
    return absl::UnavailableError(what);
}

} // namespace strata::layers
