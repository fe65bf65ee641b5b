#include "engine/jobs.h"

#include "strata/strata.h"

#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>

namespace strata::engine {

namespace {

using Json = nlohmann::ordered_json;
using std::chrono::steady_clock;

constexpr std::chrono::milliseconds kBetweenLines{100};
// Private memory of a job: what maps a file does not count. More than any honest file needs.
[[maybe_unused]] constexpr rlim_t kMaxPrivateBytes = rlim_t{8} << 30;

std::atomic<bool> stop = false;
static_assert(std::atomic<bool>::is_always_lock_free); // for the signal handler

void print(const Json & line) {
    const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
}

void start_job() {
    struct sigaction action {};
    action.sa_handler = [](int) { stop = true; };
    ::sigaction(SIGTERM, &action, nullptr);
    ::sigaction(SIGINT, &action, nullptr);
    const rlimit none = {0, 0}; // a core dump would hold the model
    ::setrlimit(RLIMIT_CORE, &none);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    const rlimit memory = {kMaxPrivateBytes, kMaxPrivateBytes};
    ::setrlimit(RLIMIT_DATA, &memory);
#endif
}

struct Progress {
    steady_clock::time_point last_line{};
    std::string phase;
};

// At most ten lines a second, and the first and last of each phase.
bool on_progress(const char * phase, uint64_t done, uint64_t total, void * user) {
    Progress & progress = *static_cast<Progress *>(user);
    const auto now = steady_clock::now();
    if (progress.phase != phase || now - progress.last_line >= kBetweenLines || (done == total && total > 0)) {
        progress.phase = phase;
        progress.last_line = now;
        print(Json{{"phase", phase}, {"done", done}, {"total", total}});
    }
    return !stop;
}

const char * code_name(strata_status status) {
    switch (status) {
    case STRATA_OK:
        return "OK";
    case STRATA_INVALID_ARGUMENT:
        return "INVALID_ARGUMENT";
    case STRATA_NOT_FOUND:
        return "NOT_FOUND";
    case STRATA_CORRUPT:
        return "DATA_LOSS";
    case STRATA_CANCELLED:
        return "CANCELLED";
    case STRATA_RESOURCE_EXHAUSTED:
        return "RESOURCE_EXHAUSTED";
    case STRATA_UNAVAILABLE:
        return "UNAVAILABLE";
    case STRATA_INTERNAL:
        return "INTERNAL";
    }
    return "INTERNAL";
}

int failed(strata_status status) {
    print(Json{{"error", Json{{"code", code_name(status)}, {"message", strata_last_error()}}}});
    return 1;
}

// `reference` is NAME:TAG@DIGEST.
int finished(strata_status status, char * reference) {
    if (status != STRATA_OK) return failed(status);
    const std::string_view text = reference;
    const size_t at = text.find('@');
    print(Json{{"finished", true}, {"name", text.substr(0, at)}, {"digest", text.substr(at + 1)}});
    strata_free(reference);
    return 0;
}

const char * or_null(const std::string & text) {
    return text.empty() ? nullptr : text.c_str();
}

} // namespace

int run_import(const std::string & store, const std::string & name, const std::vector<std::string> & sources) {
    start_job();
    std::vector<const char *> paths;
    for (const std::string & source : sources) paths.push_back(source.c_str());
    Progress progress;
    char * reference = nullptr;
    const strata_status status =
        strata_import(or_null(store), paths.data(), paths.size(), or_null(name), on_progress, &progress, &reference);
    return finished(status, reference);
}

int run_pull(const std::string & store, const std::string & name, const std::string & url) {
    start_job();
    Progress progress;
    char * reference = nullptr;
    const strata_status status =
        strata_pull(or_null(store), url.c_str(), or_null(name), on_progress, &progress, &reference);
    return finished(status, reference);
}

int run_verify(const std::string & store, const std::string & model) {
    start_job();
    Progress progress;
    char * problems = nullptr;
    const strata_status status = strata_verify(or_null(store), or_null(model), on_progress, &progress, &problems);
    // Corrupt and no list: the look itself failed.
    if (problems == nullptr || (status != STRATA_OK && status != STRATA_CORRUPT)) return failed(status);
    Json list = Json::parse(problems, nullptr, false);
    strata_free(problems);
    if (!list.is_array()) list = Json::array();
    print(Json{{"finished", true}, {"problems", std::move(list)}});
    return 0;
}

} // namespace strata::engine
