#pragma once

#include "base/status.h"
#include "engine/limits.h"
#include "strata/strata.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <vector>

// What every function of the C interface does: no exception leaves it, each failure has a status and a sentence.
namespace strata::engine {

strata_status to_strata_status(absl::StatusCode code);
absl::StatusCode to_absl_code(strata_status status);

// Keeps the sentence for strata_last_error on this thread and returns the status for the caller.
strata_status fail(const absl::Status & status);

// Runs the body of a C function, which returns absl::Status, and turns whatever happens into a strata_status.
template <typename Body>
strata_status guarded(Body && body) noexcept {
    try {
        const absl::Status status = body();
        return status.ok() ? STRATA_OK : fail(status);
    } catch (const std::bad_alloc &) {
        return fail(absl::ResourceExhaustedError("out of memory"));
    } catch (const std::exception & e) {
        return fail(absl::InternalError(std::string("unexpected failure: ") + e.what()));
    } catch (...) {
        return fail(absl::InternalError("unexpected failure of an unknown kind"));
    }
}

// kInvalidArgument that names the parameter.
absl::Status null_argument(std::string_view name);

#define STRATA_REQUIRE_ARGUMENT(name)                                                                                  \
    do {                                                                                                               \
        if ((name) == nullptr) return ::strata::engine::null_argument(#name);                                          \
    } while (false)

// A string of the caller, at most `limit` bytes; kInvalidArgument when it is NULL or longer.
absl::StatusOr<std::string_view> bounded_string(const char * text, size_t limit, std::string_view name);

// The size that a struct of the caller claims: kInvalidArgument when it can't be right.
absl::Status check_struct_size(size_t struct_size, size_t our_size, const void * given, std::string_view name);

// An options struct as this build of the library knows it. Members that the caller's older header lacks are zero, which
// means their default; members that are unknown here must be zero. `given` may be NULL: all defaults.
template <typename Options>
absl::StatusOr<Options> read_options(const Options * given, std::string_view name) {
    Options options{};
    options.struct_size = sizeof(Options);
    if (given == nullptr) return options;
    const size_t size = given->struct_size; // the first member of every options struct
    STRATA_RETURN_IF_ERROR(check_struct_size(size, sizeof(Options), given, name));
    std::memcpy(static_cast<void *>(&options), given, std::min(size, sizeof(Options)));
    options.struct_size = sizeof(Options);
    return options;
}

// Writes a result struct as far as the caller's header knows it; its size was checked before.
template <typename Result>
void write_result(Result * out, const Result & result) {
    const size_t size = out->struct_size;
    std::memcpy(static_cast<void *>(out), &result, std::min(size, sizeof(Result)));
    out->struct_size = size;
}

// Copies for the caller to free with strata_free. Throw std::bad_alloc, which guarded() reports.
char * copy_string(std::string_view text);
int32_t * copy_tokens(const std::vector<int32_t> & tokens);

} // namespace strata::engine
