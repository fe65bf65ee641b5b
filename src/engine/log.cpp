#include "engine/log.h"

#include "engine/limits.h"

#include <ggml.h>
#include <llama.h>
#include <log.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <shared_mutex>

namespace strata::engine {

namespace {

thread_local ErrorCapture * capture = nullptr;
thread_local strata_log_level line_level = STRATA_LOG_INFO; // what a continued line goes on with

struct Sink {
    std::shared_mutex mutex; // shared: calls of `log` run side by side; exclusive: none runs when it is replaced
    strata_log_fn log = nullptr;
    void * user = nullptr;
};

// Never destroyed: threads of llama.cpp may still log while the process ends.
Sink & sink() {
    static Sink * instance = new Sink;
    return *instance;
}

strata_log_level to_level(ggml_log_level level) {
    switch (level) {
    case GGML_LOG_LEVEL_ERROR:
        return STRATA_LOG_ERROR;
    case GGML_LOG_LEVEL_WARN:
        return STRATA_LOG_WARN;
    case GGML_LOG_LEVEL_INFO:
        return STRATA_LOG_INFO;
    default:
        return STRATA_LOG_DEBUG;
    }
}

std::string_view trimmed(std::string_view text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.remove_suffix(1);
    return text;
}

void on_llama_log(ggml_log_level level, const char * text, void *) {
    if (text == nullptr) return;
    if (level != GGML_LOG_LEVEL_CONT) line_level = to_level(level);
    const std::string_view line = trimmed(text);
    if (line.empty()) return;
    if (line_level == STRATA_LOG_ERROR) capture_error_line(line);
    log_message(line_level, line);
}

} // namespace

void capture_error_line(std::string_view line) {
    if (capture == nullptr || capture->lines_.size() >= kMaxCapturedErrors) return;
    // "llama_model_load: error loading model: …": the function is of no use to the reader
    const size_t colon = line.find(": ");
    if (colon != std::string_view::npos && line.substr(0, colon).find_first_of(" \t") == std::string_view::npos) {
        line.remove_prefix(colon + 2);
    }
    try {
        capture->lines_.emplace_back(line.substr(0, kMaxCapturedErrorBytes));
    } catch (const std::bad_alloc &) { // a line less in a message
    }
}

void route_llama_log() {
    llama_log_set(on_llama_log, nullptr); // ggml's as well
    common_log_set_callback(on_llama_log, nullptr);
}

void set_log(strata_log_fn log, void * user) {
    std::unique_lock lock(sink().mutex);
    sink().log = log;
    sink().user = user;
}

void log_message(strata_log_level level, std::string_view text) {
    std::shared_lock lock(sink().mutex);
    if (sink().log == nullptr) return;
    try {
        sink().log(level, std::string(text).c_str(), sink().user);
    } catch (const std::bad_alloc &) { // a line less in the log
    }
}

ErrorCapture::ErrorCapture()
    : outer_(capture) {
    capture = this;
}

ErrorCapture::~ErrorCapture() {
    capture = outer_;
}

std::string ErrorCapture::reason(std::string_view otherwise) const {
    std::string joined;
    for (const std::string & line : lines_) {
        if (joined.find(line) != std::string::npos) continue; // llama.cpp says some things at two levels
        if (!joined.empty()) joined += "; ";
        joined += line;
    }
    return joined.empty() ? std::string(otherwise) : joined;
}

} // namespace strata::engine
