#include "executor/op_check.h"
#include "executor/op_check_runner.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <map>
#include <random>

namespace strata::executor {
namespace {

using testing::HasSubstr;

const NodeRecipe & recipe(std::string_view name) {
    for (const NodeRecipe & each : node_recipes()) {
        if (each.name == name) return each;
    }
    ADD_FAILURE() << "there is no recipe " << name;
    std::abort();
}

// ---- nodes that are run, in processes that may crash

struct Progress {
    uint64_t current;
    uint64_t possible;
    uint64_t accepted;
    uint64_t ran;
    char description[4096];
};

// Calls `run` with the numbers from `first` to `last` in child processes, and goes on after the one that ended a child.
// Returns what was under way then, with how it ended.
template <typename Run>
std::vector<std::string> run_in_children(uint64_t first, uint64_t last, Progress & progress, const Run & run) {
    constexpr uint64_t kPerChild = 2000;
    constexpr unsigned kMostSeconds = 20;
    std::vector<std::string> crashes;
    for (uint64_t next = first; next < last;) {
        const uint64_t end = std::min(next + kPerChild, last);
        const pid_t child = fork();
        if (child == 0) {
            setenv("GGML_NO_BACKTRACE", "1", 1);
            NodeRunner runner;
            for (uint64_t number = next; number < end; ++number) {
                progress.current = number;
                alarm(kMostSeconds);
                run(runner, number, progress);
            }
            _exit(0);
        }
        int status = 0;
        EXPECT_EQ(waitpid(child, &status, 0), child);
        next = end;
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
        const std::string how = WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : "exit";
        crashes.push_back(fmt::format("{} at {}: {}", how, progress.current, progress.description));
        next = progress.current + 1;
    }
    return crashes;
}

struct SharedProgress {
    SharedProgress()
        : progress(static_cast<Progress *>(
              mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {}
    ~SharedProgress() { munmap(progress, sizeof(Progress)); }
    Progress * progress;
};

std::vector<uint8_t> bytes_of(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<uint8_t> out(160);
    for (uint8_t & byte : out) byte = static_cast<uint8_t>(random());
    return out;
}

void note_result(const NodeRunner::Result & result, Progress & progress) {
    progress.possible += result.possible ? 1 : 0;
    progress.accepted += result.accepted ? 1 : 0;
    progress.ran += result.ran ? 1 : 0;
}

void run_seed(NodeRunner & runner, uint64_t seed, Progress & progress) {
    runner.on_description = [&](const std::string & text) {
        progress.description[text.copy(progress.description, sizeof progress.description - 1)] = '\0';
    };
    note_result(runner.run(bytes_of(seed)), progress);
}

// Every recipe as it is, on one and on two threads, with and without repacked weights.
void run_recipe(NodeRunner & runner, uint64_t number, Progress & progress) {
    const NodeRecipe & each = node_recipes()[number / 4];
    const bool repack = number % 2 == 1;
    const int threads = 1 + static_cast<int>(number / 2 % 2);
    each.name.copy(progress.description, sizeof progress.description - 1);
    if (repack && !each.repackable) return;
    const NodeRunner::Result result = runner.run(make_node(each), repack, threads, number);
    note_result(result, progress);
    if (!result.ran) {
        std::fprintf(stderr, "%s: %s\n", each.name.c_str(), result.refusal.c_str());
        _exit(1);
    }
}

TEST(OpCheck, WhatTheConstructorsMakeIsAcceptedAndRuns) {
    const SharedProgress shared;
    const auto crashes = run_in_children(0, node_recipes().size() * 4, *shared.progress, run_recipe);
    for (const std::string & crash : crashes) ADD_FAILURE() << crash;
    EXPECT_GE(shared.progress->ran, node_recipes().size() * 2);
}

// STRATA_OP_CHECK_SECONDS: for how long; STRATA_OP_CHECK_SEED: from where on (or which one, with 0 seconds).
TEST(OpCheck, MutatedNodesThatAreAcceptedDoNotCrash) {
    const auto number_of = [](const char * name, uint64_t otherwise) {
        const char * text = std::getenv(name);
        return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
    };
    const std::chrono::seconds seconds(number_of("STRATA_OP_CHECK_SECONDS", 3));
    uint64_t seed = number_of("STRATA_OP_CHECK_SEED", 1);
    const SharedProgress shared;
    const auto until = std::chrono::steady_clock::now() + seconds;
    uint64_t count = seconds.count() == 0 ? 1 : 2000;
    do {
        for (const std::string & crash : run_in_children(seed, seed + count, *shared.progress, run_seed)) {
            ADD_FAILURE() << crash;
        }
        seed += count;
    } while (std::chrono::steady_clock::now() < until);
    std::printf("up to seed %llu: %llu possible, %llu accepted, %llu ran\n", static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(shared.progress->possible),
                static_cast<unsigned long long>(shared.progress->accepted),
                static_cast<unsigned long long>(shared.progress->ran));
}

} // namespace
} // namespace strata::executor
