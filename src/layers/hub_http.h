#pragma once

#include "base/status.h"

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// The HTTP that a download from the hub needs, over libcurl: one request at a time, no redirect followed by itself,
// since who gets the token and which addresses are allowed is decided per hop.
namespace strata::layers {

// Scheme, host and port of a URL: what decides who may see the token.
struct Origin {
    std::string scheme; // "http" or "https"
    std::string host;   // lower case
    std::string port;

    // kInvalidArgument for what is no http(s) URL, or has a user in it.
    static absl::StatusOr<Origin> of(const std::string & url);
    bool is_loopback() const; // "localhost" or a loopback address
    auto operator<=>(const Origin &) const = default;
};

// The URL that a redirect from `base` goes to; kFailedPrecondition when it leaves http(s) or goes from https to http.
absl::StatusOr<std::string> redirect_target(const std::string & base, const std::string & location);

// Whether a textual IP address is one of the public internet: no loopback, private, link-local or otherwise special
// one.
bool is_public_address(std::string_view address);

struct HttpResponse {
    int status = 0;
    std::map<std::string, std::string> headers; // names in lower case; of the last of equal names
    std::string address;                        // that was connected to

    const std::string & header(const std::string & name) const;
    bool is_redirect() const { return status >= 300 && status < 400 && headers.contains("location"); }
};

struct HttpRequest {
    std::string url;
    bool head = false;
    std::vector<std::string> headers; // "Name: value"
    bool public_address_only = false;
    // Gets the body of a 200 or 206, with the response so far; an error ends the request and is returned. Other bodies
    // are dropped.
    std::function<absl::Status(const HttpResponse & response, std::span<const std::byte> body)> on_body;
};

// Not thread-safe. Keeps connections for the next request.
class HttpClient {
public:
    // `keep_going` is called at least once a second while a request runs; false ends it with kCancelled.
    explicit HttpClient(std::function<bool()> keep_going);
    ~HttpClient();

    // Whatever the status, the response; an error only when there was none: kUnavailable when trying again may help.
    absl::StatusOr<HttpResponse> perform(const HttpRequest & request);

private:
    struct State;
    std::unique_ptr<State> state_;
};

} // namespace strata::layers
