#pragma once

#include <cstdio>
#include <cstdlib>

// For our own mistakes only, and on in every build. What a file, a peer or a person can cause is an absl::Status.
#define STRATA_CHECK(condition)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) [[unlikely]] {                                                                               \
            std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);                         \
            std::abort();                                                                                              \
        }                                                                                                              \
    } while (false)
