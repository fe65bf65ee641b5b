#include "base/status.h"

#include <fmt/format.h>

#include <cerrno>
#include <system_error>

namespace strata {

absl::Status errno_status(int error, std::string_view what, std::string_view path) {
    // Unlike strerror, std::generic_category's message is thread-safe.
    const std::string message = fmt::format("cannot {} {}: {}", what, path, std::generic_category().message(error));
    if (error == ENOSPC || error == EDQUOT) {
        return absl::ResourceExhaustedError(message + "; free some space and try again");
    }
    return absl::Status(absl::ErrnoToStatusCode(error), message);
}

} // namespace strata
