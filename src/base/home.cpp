#include "base/home.h"

#include "base/digest.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>

namespace strata {

namespace {

constexpr size_t kSocketPathBytes = 107;  // sizeof(sockaddr_un::sun_path) - 1
constexpr size_t kLongestSocketName = 40; // "/engine-….sock"

std::string_view env(const char * name) {
    const char * value = std::getenv(name);
    return value == nullptr ? std::string_view() : std::string_view(value);
}

} // namespace

Home Home::find(std::string_view given) {
    std::filesystem::path root;
    if (!given.empty()) {
        root = given;
    } else if (!env("STRATA_HOME").empty()) {
        root = env("STRATA_HOME");
    } else if (!env("XDG_DATA_HOME").empty()) {
        root = std::filesystem::path(env("XDG_DATA_HOME")) / "strata";
    } else {
        const std::string_view user = env("HOME");
        root = std::filesystem::path(user.empty() ? "/root" : user) / ".local/share/strata";
    }
    std::error_code ignored; // absolute() fails only when the current folder is gone; the path is then used as it is
    std::filesystem::path absolute = std::filesystem::absolute(root, ignored);
    return Home{ignored ? root : absolute.lexically_normal()};
}

std::filesystem::path Home::sockets() const {
    if (run().native().size() + kLongestSocketName <= kSocketPathBytes) return run();
    return fmt::format("/tmp/strata-{}-{}", ::getuid(), Digest::of(root.native()).hex().substr(0, 16));
}

} // namespace strata
