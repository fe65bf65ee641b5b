#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <string_view>

// Errors are absl::Status everywhere. A message says what happened, to what, and what the person can do about it.

#define STRATA_STATUS_CONCAT_INNER(a, b) a##b
#define STRATA_STATUS_CONCAT(a, b) STRATA_STATUS_CONCAT_INNER(a, b)

// Returns from the function when the expression is not OK.
#define STRATA_RETURN_IF_ERROR(expression)                                                                             \
    do {                                                                                                               \
        if (absl::Status strata_status = (expression); !strata_status.ok()) return strata_status;                      \
    } while (false)

// STRATA_ASSIGN_OR_RETURN(auto value, FunctionThatReturnsStatusOr());
#define STRATA_ASSIGN_OR_RETURN(lhs, expression)                                                                       \
    STRATA_ASSIGN_OR_RETURN_IMPL(STRATA_STATUS_CONCAT(strata_statusor_, __LINE__), lhs, expression)
// NOLINTBEGIN(bugprone-macro-parentheses): lhs may be a declaration
#define STRATA_ASSIGN_OR_RETURN_IMPL(statusor, lhs, expression)                                                        \
    auto statusor = (expression);                                                                                      \
    if (!statusor.ok()) return std::move(statusor).status();                                                           \
    lhs = std::move(statusor).value()
// NOLINTEND(bugprone-macro-parentheses)

namespace strata {

// The status for a failed system call: "cannot WHAT PATH: No space left on device". The code follows from the errno:
// ENOENT not found, ENOSPC and EDQUOT resource exhausted, EACCES permission denied, ...
absl::Status errno_status(int error, std::string_view what, std::string_view path);

} // namespace strata
