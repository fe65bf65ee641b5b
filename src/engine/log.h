#pragma once

#include "strata/strata.h"

#include <string>
#include <string_view>
#include <vector>

// llama.cpp, llama-common and ggml have one log each per process. They go to the function given to strata_set_log, and
// error lines also to the ErrorCapture of the thread that they come from.
namespace strata::engine {

// Makes all of them log through here. Called when the runtime starts, and again after anything of llama.cpp that
// sets a log function of its own.
void route_llama_log();

// Thread-safe.
void set_log(strata_log_fn log, void * user);
void log_message(strata_log_level level, std::string_view text);

void capture_error_line(std::string_view line);

// Collects the error lines that llama.cpp writes on this thread while it lives, so that a failure can be told with its
// reason. Captures nest: only the innermost collects.
class ErrorCapture {
public:
    ErrorCapture();
    ~ErrorCapture();
    ErrorCapture(const ErrorCapture &) = delete;
    ErrorCapture & operator=(const ErrorCapture &) = delete;

    // The lines joined by "; ", without the names of llama.cpp's functions; `otherwise` when there was none.
    std::string reason(std::string_view otherwise) const;

private:
    friend void capture_error_line(std::string_view line);
    std::vector<std::string> lines_;
    ErrorCapture * outer_;
};

} // namespace strata::engine
