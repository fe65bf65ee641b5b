#include "engine/capi_common.h"

#include "base/version.h"
#include "engine/log.h"

#include <fmt/format.h>

#include <cstdlib>

namespace strata::engine {

namespace {

thread_local std::string last_error;

} // namespace

strata_status to_strata_status(absl::StatusCode code) {
    switch (code) {
    case absl::StatusCode::kOk:
        return STRATA_OK;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kFailedPrecondition:
        return STRATA_INVALID_ARGUMENT;
    case absl::StatusCode::kNotFound:
        return STRATA_NOT_FOUND;
    case absl::StatusCode::kDataLoss:
        return STRATA_CORRUPT;
    case absl::StatusCode::kCancelled:
        return STRATA_CANCELLED;
    case absl::StatusCode::kResourceExhausted:
        return STRATA_RESOURCE_EXHAUSTED;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDeadlineExceeded:
        return STRATA_UNAVAILABLE;
    default:
        return STRATA_INTERNAL;
    }
}

absl::StatusCode to_absl_code(strata_status status) {
    switch (status) {
    case STRATA_OK:
        return absl::StatusCode::kOk;
    case STRATA_INVALID_ARGUMENT:
        return absl::StatusCode::kInvalidArgument;
    case STRATA_NOT_FOUND:
        return absl::StatusCode::kNotFound;
    case STRATA_CORRUPT:
        return absl::StatusCode::kDataLoss;
    case STRATA_CANCELLED:
        return absl::StatusCode::kCancelled;
    case STRATA_RESOURCE_EXHAUSTED:
        return absl::StatusCode::kResourceExhausted;
    case STRATA_UNAVAILABLE:
        return absl::StatusCode::kUnavailable;
    case STRATA_INTERNAL:
        return absl::StatusCode::kInternal;
    }
    return absl::StatusCode::kInternal;
}

strata_status fail(const absl::Status & status) {
    const strata_status code = to_strata_status(status.code());
    try {
        const auto message = status.message();
        last_error.assign(message.data(), message.size());
    } catch (const std::bad_alloc &) {
        last_error = "out of memory"; // fits the string without an allocation
    }
    return code;
}

absl::Status null_argument(std::string_view name) {
    return absl::InvalidArgumentError(fmt::format("{} must not be NULL", name));
}

absl::StatusOr<std::string_view> bounded_string(const char * text, size_t limit, std::string_view name) {
    if (text == nullptr) return null_argument(name);
    const size_t bytes = ::strnlen(text, limit + 1);
    if (bytes > limit) {
        return absl::InvalidArgumentError(fmt::format("{} is longer than the limit of {} bytes", name, limit));
    }
    return std::string_view(text, bytes);
}

absl::Status check_struct_size(size_t struct_size, size_t our_size, const void * given, std::string_view name) {
    if (struct_size <= sizeof(size_t) || struct_size > kMaxOptionsBytes) {
        return absl::InvalidArgumentError(
            fmt::format("{}: struct_size is {}; set the struct up with STRATA_INIT before use", name, struct_size));
    }
    const char * bytes = static_cast<const char *>(given);
    for (size_t i = our_size; i < struct_size; ++i) {
        if (bytes[i] != 0) {
            return absl::InvalidArgumentError(
                fmt::format("{}: sets a member that this library (version {}) does not know; update the library", name,
                            STRATA_VERSION_STRING));
        }
    }
    return absl::OkStatus();
}

char * copy_string(std::string_view text) {
    char * copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (copy == nullptr) throw std::bad_alloc();
    std::memcpy(copy, text.data(), text.size());
    copy[text.size()] = '\0';
    return copy;
}

int32_t * copy_tokens(const std::vector<int32_t> & tokens) {
    int32_t * copy = static_cast<int32_t *>(std::malloc(std::max<size_t>(tokens.size(), 1) * sizeof(int32_t)));
    if (copy == nullptr) throw std::bad_alloc();
    std::copy(tokens.begin(), tokens.end(), copy);
    return copy;
}

} // namespace strata::engine

void strata_init_struct(void * options, size_t size) {
    if (options == nullptr || size < sizeof(size_t)) return;
    std::memset(options, 0, size);
    std::memcpy(options, &size, sizeof(size));
}

const char * strata_last_error(void) {
    return strata::engine::last_error.c_str();
}

uint32_t strata_api_version(void) {
    return STRATA_API_VERSION;
}

const char * strata_version(void) {
    return STRATA_VERSION_STRING;
}

const char * strata_engine_build(void) {
    return STRATA_ENGINE_BUILD_STRING;
}

void strata_free(void * pointer) {
    std::free(pointer);
}

void strata_set_log(strata_log_fn log, void * user) {
    strata::engine::set_log(log, user);
}
