// The parts of the daemon that need no daemon: state, logs, processes, the words of job processes, names.
#include "base/duration.h"
#include "daemon/catalog.h"
#include "daemon/home_lock.h"
#include "daemon/jobs.h"
#include "daemon/limits.h"
#include "daemon/log_file.h"
#include "daemon/process.h"
#include "daemon/state.h"
#include "daemon/utf8.h"
#include "layers/store_testing.h"

#include <boost/asio/io_context.hpp>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <csignal>
#include <fstream>

namespace strata::daemon {
namespace {

using layers::testing::TempFolder;
using ::testing::HasSubstr;
using ::testing::Not;

std::string message(const absl::Status & status) {
    return std::string(status.message());
}

void append(const std::filesystem::path & path, const std::string & text) {
    std::ofstream(path, std::ios::app) << text;
}

// ------------------------------------------------------------------------------------------------ state

SavedEngine engine_of(const std::string & model) {
    return {model, {1234, 567890, "boot"}, "/run/engine-1.sock", "build-1", "sha256:" + std::string(64, 'a')};
}

TEST(StateTest, SurvivesReopening) {
    const TempFolder folder;
    const auto file = folder.path() / "state.db";
    {
        auto state = open_sqlite_state(file);
        ASSERT_OK(state);
        SavedDeployment deployment{"m:latest", {}, true};
        deployment.options.set_slots(7);
        deployment.options.add_llama_args("--cache-type-k");
        ASSERT_OK((*state)->save(deployment));
        ASSERT_OK((*state)->save(engine_of("m:latest")));
        ASSERT_OK((*state)->save(engine_of("n:latest")));
        ASSERT_OK((*state)->forget_engine("n:latest"));
        EXPECT_EQ(*(*state)->next_number("engine"), 1);
    }
    auto state = open_sqlite_state(file);
    ASSERT_OK(state);
    const auto deployments = (*state)->deployments();
    ASSERT_OK(deployments);
    ASSERT_EQ(deployments->size(), 1u);
    EXPECT_EQ(deployments->front().model, "m:latest");
    EXPECT_TRUE(deployments->front().keep);
    EXPECT_EQ(deployments->front().options.slots(), 7);
    EXPECT_EQ(deployments->front().options.llama_args(0), "--cache-type-k");
    const auto engines = (*state)->engines();
    ASSERT_OK(engines);
    ASSERT_EQ(engines->size(), 1u);
    EXPECT_EQ(engines->front().process.pid, 1234);
    EXPECT_EQ(engines->front().process.start_ticks, 567890u);
    EXPECT_EQ(engines->front().process.boot_id, "boot");
    EXPECT_EQ(engines->front().model_digest, engine_of("").model_digest);
    EXPECT_EQ(*(*state)->next_number("engine"), 2);
}

TEST(StateTest, DamagedFileIsNamedWithWhatToDo) {
    const TempFolder folder;
    const auto file = folder.path() / "state.db";
    append(file, "this is no database, and it is long enough to look like one " + std::string(4096, 'x'));
    const auto state = open_sqlite_state(file);
    ASSERT_EQ(state.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(message(state.status()), HasSubstr(file.native()));
    EXPECT_THAT(message(state.status()), HasSubstr("move it away"));
}

TEST(StateTest, FileOfANewerReleaseIsRefused) {
    const TempFolder folder;
    const auto file = folder.path() / "state.db";
    ASSERT_OK(open_sqlite_state(file));
    sqlite3 * db = nullptr;
    ASSERT_EQ(sqlite3_open(file.c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, "PRAGMA user_version = 99", nullptr, nullptr, nullptr), SQLITE_OK);
    sqlite3_close(db);
    const auto state = open_sqlite_state(file);
    ASSERT_EQ(state.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(message(state.status()), HasSubstr("newer"));
}

// ------------------------------------------------------------------------------------------------ home

TEST(HomeLockTest, OneAtATime) {
    const TempFolder folder;
    const Home home{folder.path()};
    {
        const auto first = take_home(home);
        ASSERT_OK(first);
        const auto second = take_home(home);
        ASSERT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
        EXPECT_THAT(message(second.status()), HasSubstr(std::to_string(::getpid())));
    }
    ASSERT_OK(take_home(home));
    struct stat run {};
    ASSERT_EQ(::stat(home.run().c_str(), &run), 0);
    EXPECT_EQ(run.st_mode & 0777, 0700u);
}

TEST(HomeLockTest, LinkInPlaceOfASocketFolderIsRefused) {
    const TempFolder folder;
    const Home home{folder.path()};
    std::filesystem::create_directory(folder.path() / "elsewhere");
    std::filesystem::create_directory_symlink(folder.path() / "elsewhere", home.run());
    EXPECT_EQ(take_home(home).status().code(), absl::StatusCode::kFailedPrecondition);
}

// ------------------------------------------------------------------------------------------------ logs

TEST(LogFileTest, NamesAreFilesAndDiffer) {
    EXPECT_EQ(engine_log_name("smollm2:latest"), "engine-smollm2@latest.log");
    EXPECT_EQ(engine_log_name("org/model:q4_0"), "engine-org__model@q4_0.log");
    const std::string a = engine_log_name(std::string(250, 'a') + ":b");
    const std::string b = engine_log_name(std::string(250, 'a') + ":c");
    EXPECT_NE(a, b);
    EXPECT_LT(a.size(), 255u);
}

TEST(LogFileTest, ReasonIsTheAssertionNotTheBacktrace) {
    const TempFolder folder;
    const LogFile log(folder.path() / "log");
    append(log.path(), "x.cpp:1: GGML_ASSERT(of an earlier engine) failed\n");
    const uint64_t start = log.size();
    EXPECT_EQ(log.reason_since(start), "");
    append(log.path(), "2026-01-01T00:00:00.000 I loading\n");
    EXPECT_EQ(log.reason_since(start), "");
    append(log.path(), "out of luck\n2026-01-01T00:00:00.000 I going on\n");
    EXPECT_EQ(log.reason_since(start), "out of luck");
    append(log.path(), "y.cpp:2: GGML_ASSERT(n > 0) failed\n#0 0x1234 in main\n\n");
    EXPECT_EQ(log.reason_since(start), "y.cpp:2: GGML_ASSERT(n > 0) failed");
    append(log.path(), "terminate called after throwing\n  what():  a \x1b[31mred\x1b[0m word\n");
    EXPECT_THAT(log.reason_since(start), Not(HasSubstr("\x1b")));
}

TEST(LogFileTest, WhatTheLogSaysOnTheWayIsNoReason) {
    const TempFolder folder;
    const LogFile log(folder.path() / "log");
    append(log.path(), "2026-01-01T00:00:00.000 W llama_context: n_ctx is not divisible by n_seq_max\n"
                       "2026-01-01T00:00:00.001 D GGML_ASSERT is a word in a log line\n"
                       "2026-01-01T00:00:00.002 W\n");
    EXPECT_EQ(log.reason_since(0), "");
    // The error of a request that the engine survived, and one that it ended with.
    append(log.path(), "2026-01-01T00:00:01.000 E srv send_error: too many tokens\n2026-01-01T00:00:01.001 I idle\n");
    EXPECT_EQ(log.reason_since(0), "");
    append(log.path(), "2026-01-01T00:00:02.000 E cannot allocate\n");
    EXPECT_EQ(log.reason_since(0), "2026-01-01T00:00:02.000 E cannot allocate");
    // Looked at from the end of a long log, whose first line is then cut.
    append(log.path(), "2026-01-01T00:00:03.000 I " + std::string(100'000, 'x') + "\n2026-01-01T00:00:04.000 I end\n");
    EXPECT_EQ(log.reason_since(0), "");
}

TEST(LogFileTest, RotationKeepsAnOpenWriterWriting) {
    const TempFolder folder;
    const LogFile log(folder.path() / "log");
    auto writer = log.open_for_append();
    ASSERT_OK(writer);
    const std::string block(1 << 20, 'x');
    for (size_t bytes = 0; bytes <= limits::kLogBytes; bytes += block.size()) {
        ASSERT_EQ(::write(writer->get(), block.data(), block.size()), static_cast<ssize_t>(block.size()));
    }
    log.rotate_when_large();
    EXPECT_EQ(log.size(), 0u);
    EXPECT_GT(std::filesystem::file_size(folder.path() / "log.1"), limits::kLogBytes);
    ASSERT_EQ(::write(writer->get(), "new\n", 4), 4);
    EXPECT_EQ(log.size(), 4u);
}

TEST(LogTailTest, LastLinesThenWhatIsAdded) {
    const TempFolder folder;
    const auto path = folder.path() / "log";
    LogTail tail(path);
    EXPECT_EQ(tail.last_lines(1).status().code(), absl::StatusCode::kNotFound);
    std::string all;
    for (int i = 0; i < 20'000; ++i) all += "line " + std::to_string(i) + "\n";
    append(path, all);
    EXPECT_EQ(*tail.last_lines(2), "line 19998\nline 19999\n");
    EXPECT_EQ(*tail.last_lines(100'000), all);
    append(path, "begun");
    EXPECT_EQ(*tail.last_lines(2), "line 19999\nbegun");
    append(path, " and done\n");
    EXPECT_EQ(tail.read_new(), " and done\n");
    EXPECT_EQ(tail.read_new(), "");
    std::filesystem::rename(path, folder.path() / "log.1");
    append(path, "another file\n");
    EXPECT_EQ(tail.read_new(), "another file\n");
    std::filesystem::resize_file(path, 0);
    append(path, "cut\n");
    EXPECT_EQ(tail.read_new(), "cut\n");
}

TEST(Utf8Test, ReplacesWhatIsInvalidOnly) {
    EXPECT_EQ(valid_utf8("plain"), "plain");
    EXPECT_EQ(valid_utf8("gr\xC3\xBC\xC3\x9F \xF0\x9F\x98\x80"), "gr\xC3\xBC\xC3\x9F \xF0\x9F\x98\x80");
    EXPECT_EQ(valid_utf8("a\xFFz"), "a\xEF\xBF\xBDz");
    EXPECT_EQ(valid_utf8("\xC0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD");                 // overlong
    EXPECT_EQ(valid_utf8("\xED\xA0\x80").find("\xED\xA0\x80"), std::string::npos); // surrogate
    EXPECT_EQ(valid_utf8("\xF4\x90\x80\x80").find('\xF4'), std::string::npos);     // beyond U+10FFFF
    EXPECT_EQ(unfinished_character("a\xC3"), 1u);
    EXPECT_EQ(unfinished_character("a\xF0\x9F\x98"), 3u);
    EXPECT_EQ(unfinished_character("a\xF0\x9F\x98\x80"), 0u);
    EXPECT_EQ(unfinished_character("\x80\x80\x80\x80"), 0u);
}

TEST(DurationTest, Parses) {
    EXPECT_EQ(parse_duration("500ms")->count(), 500);
    EXPECT_EQ(parse_duration("30s")->count(), 30'000);
    EXPECT_EQ(parse_duration("10m")->count(), 600'000);
    EXPECT_EQ(parse_duration("2h")->count(), 7'200'000);
    EXPECT_EQ(parse_duration("0")->count(), 0);
    for (const char * bad : {"", "5", "-5s", "5 s", "5d", "s", "99999999999999999999s", "9999999999h"}) {
        EXPECT_FALSE(parse_duration(bad).ok()) << bad;
    }
}

// ------------------------------------------------------------------------------------------------ processes

struct SpawnTest : ::testing::Test {
    absl::StatusOr<std::unique_ptr<Process>> shell(const std::string & script) {
        return Process::spawn(loop, {"/bin/sh", {"-c", script}, null, null});
    }
    ExitStatus wait_for(Process & process) {
        ExitStatus result;
        process.on_exit([&](ExitStatus exit) { result = exit; });
        loop.run();
        loop.restart();
        return result;
    }

    boost::asio::io_context loop;
    int null = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
};

TEST_F(SpawnTest, TellsHowAProcessEnded) {
    auto exits = shell("exit 3");
    ASSERT_OK(exits);
    EXPECT_EQ(wait_for(**exits).describe(), "exit code 3");
    auto aborts = shell("kill -ABRT $$");
    ASSERT_OK(aborts);
    EXPECT_EQ(wait_for(**aborts).describe(), "signal 6 (Aborted)");
    auto killed = shell("kill -KILL $$");
    ASSERT_OK(killed);
    EXPECT_EQ(wait_for(**killed).describe(), "signal 9 (Killed), perhaps for lack of memory");
    auto sleeps = shell("exec sleep 100");
    ASSERT_OK(sleeps);
    (*sleeps)->signal(SIGTERM);
    EXPECT_EQ(wait_for(**sleeps).signal, SIGTERM);
}

TEST_F(SpawnTest, MissingProgramIsAnError) {
    EXPECT_EQ(Process::spawn(loop, {"/nowhere/engine", {}, null, null}).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(SpawnTest, HasItsOwnSessionAndNoneOfOurFiles) {
    const int leaked = ::open("/dev/null", O_RDONLY); // without O_CLOEXEC
    auto process = shell("[ $(ps -o sid= -p $$) -eq $$ ] && [ ! -e /proc/self/fd/" + std::to_string(leaked) + " ]");
    ASSERT_OK(process);
    EXPECT_EQ(wait_for(**process).code, 0);
    ::close(leaked);
}

TEST_F(SpawnTest, AdoptsOnlyTheSameProcess) {
    auto process = shell("exec sleep 100");
    ASSERT_OK(process);
    const ProcessId id = (*process)->id();
    ASSERT_OK(Process::adopt(loop, id));
    EXPECT_FALSE(Process::adopt(loop, {id.pid, id.start_ticks + 1, id.boot_id}).ok());
    EXPECT_FALSE(Process::adopt(loop, {id.pid, id.start_ticks, "another boot"}).ok());
    EXPECT_FALSE(Process::adopt(loop, {1, 0, id.boot_id}).ok());
    (*process)->signal(SIGKILL);
    wait_for(**process);
    EXPECT_FALSE(Process::adopt(loop, id).ok());
}

// ------------------------------------------------------------------------------------------------ jobs

TEST(JobResultTest, ReadsTheLastLine) {
    const JobSpec spec{"import", {}, "/models/x.gguf"};
    const ExitStatus good{true, 0, 0};
    const auto digest = job_result(spec, R"({"finished":true,"digest":"sha256:00"})", good, "");
    ASSERT_OK(digest);
    EXPECT_EQ(digest->digest, "sha256:00");
    const auto problems = job_result(spec, R"({"finished":true,"problems":["a",5,"b"]})", good, "");
    ASSERT_OK(problems);
    EXPECT_THAT(problems->problems, ::testing::ElementsAre("a", "b"));
    const auto refused =
        job_result(spec, R"({"error":{"code":"INVALID_ARGUMENT","message":"x.gguf: bad"}})", {true, 1, 0}, "");
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(message(refused.status()), "x.gguf: bad");
}

TEST(JobResultTest, CrashNamesTheFileAndTheSignal) {
    const JobSpec spec{"import", {}, "/models/x.gguf"};
    for (const char * line : {"", "garbage", "[1]", R"({"finished":"yes"})", R"({"finished":true,"digest":7})"}) {
        const auto crashed = job_result(spec, line, {true, 0, SIGSEGV}, "loading\nthe last word\n");
        ASSERT_FALSE(crashed.ok()) << line;
        EXPECT_THAT(message(crashed.status()), HasSubstr("/models/x.gguf"));
        EXPECT_THAT(message(crashed.status()), HasSubstr("signal 11"));
        EXPECT_THAT(message(crashed.status()), HasSubstr("the last word"));
    }
}

// ------------------------------------------------------------------------------------------------ catalog

struct CatalogTest : ::testing::Test {
    void SetUp() override {
        auto opened = layers::Store::open(folder.path() / "store");
        ASSERT_OK(opened);
        store = std::move(*opened);
        catalog = std::make_unique<Catalog>(*store);
    }
    void add(const std::string & name) {
        ASSERT_OK(layers::testing::write_model(*store, name, layers::testing::FakeModel::make(name)));
    }

    TempFolder folder;
    std::unique_ptr<layers::Store> store;
    std::unique_ptr<Catalog> catalog;
};

TEST_F(CatalogTest, ResolvesNames) {
    EXPECT_THAT(message(catalog->resolve("m").status()), HasSubstr("there are none"));
    add("m:q4_1");
    EXPECT_EQ(catalog->resolve("m")->full_name, "m:q4_1"); // the only tag
    EXPECT_EQ(catalog->resolve("m:latest").status().code(), absl::StatusCode::kNotFound);
    add("m:q8_0");
    const auto ambiguous = catalog->resolve("m");
    EXPECT_EQ(ambiguous.status().code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(message(ambiguous.status()), HasSubstr("m:q4_1, m:q8_0"));
    add("m");
    EXPECT_EQ(catalog->resolve("m")->full_name, "m:latest");
    EXPECT_EQ(catalog->resolve("m:q8_0")->full_name, "m:q8_0");
    EXPECT_EQ(catalog->resolve("../etc\x1b").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CatalogTest, SeesWhatAnotherProcessDoes) {
    add("a");
    EXPECT_EQ(catalog->models()->size(), 1u);
    auto other = layers::Store::open(folder.path() / "store");
    ASSERT_OK(other);
    ASSERT_OK(layers::testing::write_model(**other, "b", layers::testing::FakeModel::make("b")));
    EXPECT_EQ(catalog->models()->size(), 2u);
    ASSERT_OK((*other)->remove(layers::testing::model_name("a")));
    EXPECT_EQ(catalog->models()->size(), 1u);
}

TEST_F(CatalogTest, KnowsModelsForEmbeddings) {
    const auto with = [&](const std::string & name, const std::string & architecture, const std::string & pooling) {
        const auto model = layers::testing::FakeModel::make(name);
        layers::ModelIndex index = model.index();
        index.architecture = architecture;
        if (!pooling.empty()) index.metadata.emplace_back(architecture + ".pooling_type", pooling);
        for (const std::string & layer : model.layers) ASSERT_OK(store->put(layer));
        ASSERT_OK(store->commit_model(layers::testing::model_name(name), index, layers::testing::fake_lineage()));
    };
    with("bert", "bert", "");
    with("decoder", "llama", "");
    with("pooled", "qwen3", "3");
    with("unpooled", "qwen2", "0");
    EXPECT_TRUE(catalog->resolve("bert")->embeds);
    EXPECT_FALSE(catalog->resolve("decoder")->embeds);
    EXPECT_TRUE(catalog->resolve("pooled")->embeds);
    EXPECT_FALSE(catalog->resolve("unpooled")->embeds);
}

} // namespace
} // namespace strata::daemon
