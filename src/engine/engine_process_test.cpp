// strata-engine as a process: its control socket and its jobs, with the real model.
#include "strata/v1/engine.grpc.pb.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace strata::v1 {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using testing::HasSubstr;

fs::path model_path() {
    if (const char * path = std::getenv("STRATA_TEST_MODEL")) return path;
    fs::path cache;
    if (const char * folder = std::getenv("STRATA_CACHE"))
        cache = folder;
    else if (const char * folder = std::getenv("XDG_CACHE_HOME"))
        cache = fs::path(folder) / "strata";
    else
        cache = fs::path(std::getenv("HOME")) / ".cache" / "strata";
    return cache / "models" / "smollm2-135m-instruct-q4_1.gguf";
}

bool eventually(const std::function<bool()> & condition, milliseconds timeout = seconds(60)) {
    const auto end = steady_clock::now() + timeout;
    while (!condition()) {
        if (steady_clock::now() > end) return false;
        std::this_thread::sleep_for(milliseconds(5));
    }
    return true;
}

// A process of strata-engine; ended with the test.
class Process {
public:
    explicit Process(const std::vector<std::string> & arguments, const fs::path & output = "/dev/null") {
        pid_ = ::fork();
        if (pid_ == 0) exec(arguments, output);
    }
    ~Process() {
        if (pid_ <= 0) return;
        ::kill(pid_, SIGKILL);
        (void)wait();
    }
    Process(const Process &) = delete;

    pid_t pid() const { return pid_; }
    void signal(int number) const { ::kill(pid_, number); }
    bool has_ended() {
        if (pid_ > 0 && ::waitpid(pid_, &status_, WNOHANG) == pid_) pid_ = -1;
        return pid_ < 0;
    }
    // The exit code, -N after signal N, -1000 when it did not end.
    int wait(milliseconds timeout = seconds(60)) {
        if (!eventually([&] { return has_ended(); }, timeout)) return -1000;
        return WIFEXITED(status_) ? WEXITSTATUS(status_) : -WTERMSIG(status_);
    }

private:
    [[noreturn]] static void exec(const std::vector<std::string> & arguments, const fs::path & output) {
        std::vector<char *> argv = {const_cast<char *>(STRATA_ENGINE_PROGRAM)};
        for (const std::string & argument : arguments) argv.push_back(const_cast<char *>(argument.c_str()));
        argv.push_back(nullptr);
        const int fd = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        ::dup2(fd, STDOUT_FILENO);
        ::execv(STRATA_ENGINE_PROGRAM, argv.data());
        ::_exit(127);
    }

    pid_t pid_ = -1;
    int status_ = 0;
};

class EngineTest : public testing::Test {
protected:
    void SetUp() override {
        std::string name = testing::TempDir() + "strata-engine-XXXXXX";
        folder_ = ::mkdtemp(name.data());
        socket_ = folder_ / "run" / "engine.sock";
    }
    void TearDown() override { fs::remove_all(folder_); }

    std::unique_ptr<Process> start(std::vector<std::string> more = {}) {
        std::vector<std::string> arguments = {"driver", "--socket", socket_.string(), "--log-level", "warning"};
        arguments.insert(arguments.end(), more.begin(), more.end());
        auto process = std::make_unique<Process>(arguments);
        connect();
        return process;
    }

    // A channel that finds no socket waits seconds before it tries again.
    void connect() {
        EXPECT_TRUE(eventually([&] { return fs::exists(socket_); }));
        grpc::ChannelArguments arguments;
        arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
        arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
        arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 50);
        arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1); // nothing of an earlier engine on this path
        stub_ = Engine::NewStub(
            grpc::CreateCustomChannel("unix:" + socket_.string(), grpc::InsecureChannelCredentials(), arguments));
        EXPECT_TRUE(eventually([&] { return status().has_value(); })) << "the engine does not answer";
    }

    std::optional<EngineStatus> status() {
        grpc::ClientContext context;
        context.set_deadline(std::chrono::system_clock::now() + seconds(60));
        EngineStatus status;
        if (!stub_->GetStatus(&context, {}, &status).ok()) return std::nullopt;
        return status;
    }

    LoadRequest load_request() const {
        LoadRequest request;
        request.set_model(model_path());
        request.set_deployment("test:latest");
        request.mutable_options()->set_slots(2);
        request.mutable_options()->set_threads(1);
        request.mutable_options()->set_context_tokens(1024);
        request.mutable_options()->set_batch_tokens(32);
        return request;
    }
    grpc::Status load(const LoadRequest & request, LoadProgress * last = nullptr) {
        grpc::ClientContext context;
        const auto reader = stub_->Load(&context, request);
        LoadProgress progress;
        float fraction = 0;
        while (reader->Read(&progress)) {
            EXPECT_GE(progress.fraction(), fraction);
            fraction = progress.fraction();
        }
        if (last != nullptr) *last = progress;
        return reader->Finish();
    }

    static ServeRequest serve_request(const std::string & body, const std::string & path = "/v1/completions") {
        ServeRequest request;
        request.mutable_head()->set_request_id("r1");
        request.mutable_head()->set_method("POST");
        request.mutable_head()->set_path(path);
        request.mutable_head()->set_body(body);
        return request;
    }

    fs::path folder_;
    fs::path socket_;
    std::unique_ptr<Engine::Stub> stub_;
};

const std::string kEndless = R"({"prompt":"Count:","stream":true,"max_tokens":900,"ignore_eos":true,"temperature":0})";

TEST_F(EngineTest, loads_serves_and_unloads) {
    const auto process = start();
    EXPECT_EQ(status()->state(), EngineStatus::STATE_EMPTY);
    EXPECT_EQ(status()->pid(), process->pid());
    EXPECT_GT(status()->resident_bytes(), 1 << 20);
    EXPECT_GT(status()->threads(), 1);
    struct stat info {};
    ASSERT_EQ(::stat(socket_.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    ASSERT_EQ(::stat(socket_.parent_path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0700u);

    LoadProgress last;
    const grpc::Status loaded = load(load_request(), &last);
    ASSERT_TRUE(loaded.ok()) << loaded.error_message();
    EXPECT_TRUE(last.ready());
    EXPECT_EQ(last.status().state(), EngineStatus::STATE_READY);
    EXPECT_EQ(last.status().deployment(), "test:latest");
    EXPECT_EQ(last.status().options().context_tokens(), 1024);
    EXPECT_EQ(last.status().slots_size(), 2);
    EXPECT_EQ(load(load_request()).error_code(), grpc::StatusCode::FAILED_PRECONDITION);

    grpc::ClientContext context;
    const auto stream = stub_->Serve(&context);
    ASSERT_TRUE(
        stream->Write(serve_request(R"({"prompt":"The sea is","stream":true,"max_tokens":8,"temperature":0})")));
    std::string data;
    ServeResponse part;
    ASSERT_TRUE(stream->Read(&part));
    EXPECT_EQ(part.head().status(), 200);
    EXPECT_EQ(part.head().content_type(), "text/event-stream");
    while (stream->Read(&part) && part.has_data()) data += part.data();
    EXPECT_TRUE(data.ends_with("data: [DONE]\n\n"));
    EXPECT_THAT(data, HasSubstr("test:latest"));
    EXPECT_EQ(part.end().generated_tokens(), 8);
    EXPECT_GT(part.end().prompt_tokens(), 1);
    EXPECT_TRUE(stream->Finish().ok());
    EXPECT_TRUE(eventually([&] { return status()->generated_tokens_total() == 8; }));
    EXPECT_EQ(status()->requests_total(), 1);

    grpc::ClientContext unload;
    UnloadResponse unloaded;
    EXPECT_TRUE(stub_->Unload(&unload, {}, &unloaded).ok());
    EXPECT_EQ(status()->state(), EngineStatus::STATE_EMPTY);
    EXPECT_TRUE(load(load_request()).ok());
    process->signal(SIGTERM);
    EXPECT_EQ(process->wait(), 0);
    EXPECT_FALSE(fs::exists(socket_));
}

TEST_F(EngineTest, a_failed_load_says_why_and_the_next_one_works) {
    const auto process = start();
    LoadRequest request = load_request();
    request.set_model("/nowhere.gguf");
    EXPECT_EQ(load(request).error_code(), grpc::StatusCode::NOT_FOUND);
    const fs::path broken = folder_ / "broken.gguf";
    std::ofstream(broken) << "GGUF and then nothing of use";
    request.set_model(broken);
    const grpc::Status failed = load(request);
    EXPECT_EQ(failed.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(failed.error_message(), HasSubstr("broken.gguf"));
    request = load_request();
    request.mutable_options()->add_llama_args("--port");
    request.mutable_options()->add_llama_args("1");
    EXPECT_EQ(load(request).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status()->state(), EngineStatus::STATE_EMPTY);

    grpc::ClientContext context;
    const auto stream = stub_->Serve(&context);
    ASSERT_TRUE(stream->Write(serve_request("{}")));
    ServeResponse part;
    EXPECT_FALSE(stream->Read(&part));
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_TRUE(load(load_request()).ok());
}

TEST_F(EngineTest, cancelling_frees_the_slot) {
    const auto process = start();
    ASSERT_TRUE(load(load_request()).ok());
    const auto busy = [&] {
        int busy = 0;
        const auto now = status();
        for (const SlotStatus & slot : now->slots()) busy += slot.busy() ? 1 : 0;
        return busy + now->active_requests();
    };
    { // the client goes away
        grpc::ClientContext context;
        const auto stream = stub_->Serve(&context);
        ASSERT_TRUE(stream->Write(serve_request(kEndless)));
        ServeResponse part;
        ASSERT_TRUE(stream->Read(&part));
        EXPECT_GT(busy(), 0);
        context.TryCancel();
        EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    }
    EXPECT_TRUE(eventually([&] { return busy() == 0; }));
    { // somebody else cancels it by its id
        grpc::ClientContext context;
        const auto stream = stub_->Serve(&context);
        ASSERT_TRUE(stream->Write(serve_request(kEndless)));
        ServeResponse part;
        ASSERT_TRUE(stream->Read(&part));
        CancelRequest request;
        request.set_request_id("r1");
        CancelResponse response;
        // The head may be here before the engine has noted the id.
        EXPECT_TRUE(eventually([&] {
            grpc::ClientContext cancel;
            EXPECT_TRUE(stub_->Cancel(&cancel, request, &response).ok());
            return response.found();
        }));
        while (stream->Read(&part)) {
        }
        EXPECT_TRUE(stream->Finish().ok());
        grpc::ClientContext again;
        EXPECT_TRUE(stub_->Cancel(&again, request, &response).ok());
        EXPECT_FALSE(response.found());
    }
    EXPECT_TRUE(eventually([&] { return busy() == 0; }));
}

TEST_F(EngineTest, drains_on_request_and_on_sigterm) {
    const auto process = start({"--drain-ms", "300"});
    ASSERT_TRUE(load(load_request()).ok());
    grpc::ClientContext context;
    const auto stream = stub_->Serve(&context);
    ASSERT_TRUE(stream->Write(serve_request(kEndless)));
    ServeResponse part;
    ASSERT_TRUE(stream->Read(&part));

    DrainRequest request;
    request.set_timeout_ms(50);
    DrainResponse response;
    grpc::ClientContext drain;
    EXPECT_TRUE(stub_->Drain(&drain, request, &response).ok());
    EXPECT_FALSE(response.drained());
    EXPECT_EQ(response.still_running(), 1);
    EXPECT_EQ(status()->state(), EngineStatus::STATE_DRAINING);
    {
        grpc::ClientContext late_context;
        const auto late = stub_->Serve(&late_context);
        ASSERT_TRUE(late->Write(serve_request("{}")));
        ASSERT_TRUE(late->Read(&part));
        EXPECT_EQ(part.head().status(), 503);
        while (late->Read(&part)) {
        }
        EXPECT_TRUE(late->Finish().ok());
    }
    process->signal(SIGTERM);
    while (stream->Read(&part)) {
    }
    EXPECT_TRUE(stream->Finish().ok()) << "the stream has its end";
    EXPECT_TRUE(part.has_end());
    EXPECT_EQ(process->wait(), 0);
}

TEST_F(EngineTest, a_second_engine_does_not_take_the_socket) {
    const auto first = start();
    Process second({"driver", "--socket", socket_.string(), "--log-level", "off"});
    EXPECT_EQ(second.wait(), 1);
    EXPECT_TRUE(status().has_value());
    first->signal(SIGKILL);
    EXPECT_EQ(first->wait(), -SIGKILL);
    EXPECT_TRUE(fs::exists(socket_));
    const auto third = start(); // takes the place of the dead one
    EXPECT_EQ(status()->pid(), third->pid());
}

TEST_F(EngineTest, an_orphan_ends_by_itself) {
    const pid_t starter = ::fork();
    if (starter == 0) { // starts an engine, and dies when that is up
        const pid_t engine = ::fork();
        if (engine == 0) {
            const int null = ::open("/dev/null", O_WRONLY);
            ::dup2(null, STDOUT_FILENO);
            ::execl(STRATA_ENGINE_PROGRAM, STRATA_ENGINE_PROGRAM, "driver", "--socket", socket_.c_str(),
                    "--orphan-timeout-s", "4", "--log-level", "off", nullptr);
        }
        for (int i = 0; i < 600 && ::access(socket_.c_str(), F_OK) != 0; ++i) ::usleep(50000);
        ::_exit(0);
    }
    ::waitpid(starter, nullptr, 0);
    connect();
    const pid_t pid = static_cast<pid_t>(status()->pid());
    for (int i = 0; i < 60; ++i) { // asked, it stays for longer than that
        std::this_thread::sleep_for(milliseconds(100));
        ASSERT_TRUE(status().has_value());
    }
    EXPECT_TRUE(eventually([&] { return ::kill(pid, 0) != 0 || !fs::exists(socket_); }));
}

TEST_F(EngineTest, many_streams_need_no_threads) {
    const auto process = start();
    LoadRequest request = load_request();
    ASSERT_TRUE(load(request).ok());
    const auto channel = grpc::CreateChannel("unix:" + socket_.string(), grpc::InsecureChannelCredentials());
    const auto stub = Engine::NewStub(channel);
    struct Stream {
        grpc::ClientContext context;
        std::unique_ptr<grpc::ClientReaderWriter<ServeRequest, ServeResponse>> stream;
    };
    std::vector<std::unique_ptr<Stream>> streams;
    const std::string body = R"({"prompt":[1,2,3],"max_tokens":1,"temperature":0})";
    for (int i = 0; i < 150; ++i) {
        streams.push_back(std::make_unique<Stream>());
        streams.back()->stream = stub->Serve(&streams.back()->context);
        ASSERT_TRUE(streams.back()->stream->Write(serve_request(body)));
    }
    const int threads = status()->threads();
    EXPECT_LT(threads, 60) << "about two dozen of gRPC, and the driver's few";
    for (const auto & one : streams) {
        ServeResponse part;
        ASSERT_TRUE(one->stream->Read(&part));
        EXPECT_EQ(part.head().status(), 200);
        while (one->stream->Read(&part)) {
        }
        EXPECT_TRUE(one->stream->Finish().ok());
    }
}

TEST_F(EngineTest, a_reader_that_does_not_read_is_given_up) {
    const auto process = start();
    ASSERT_TRUE(load(load_request()).ok());
    // Some 10 KB for each token, of 60 texts.
    std::string prompts = "[1]";
    for (int i = 1; i < 60; ++i) prompts += ",[1]";
    grpc::ClientContext context;
    const auto stream = stub_->Serve(&context);
    ASSERT_TRUE(stream->Write(
        serve_request(R"({"prompt":[)" + prompts + R"(],"stream":true,"n_predict":60,"ignore_eos":true,"n_probs":128})",
                      "/completion")));
    ServeResponse part;
    ASSERT_TRUE(stream->Read(&part));
    EXPECT_EQ(part.head().status(), 200);
    EXPECT_TRUE(eventually([&] { return status()->active_requests() == 0; }, seconds(200)));
    // Given up after 8 MiB in the queue, some hundreds of tokens, and before the end.
    EXPECT_GT(status()->generated_tokens_total(), 400);
    EXPECT_LT(status()->generated_tokens_total(), 60 * 60);
    size_t bytes = 0;
    while (stream->Read(&part)) bytes += part.data().size();
    // What was queued is dropped; what comes still was in gRPC's own windows.
    EXPECT_GT(bytes, 0u);
    EXPECT_LT(bytes, 16u << 20);
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

class JobTest : public EngineTest {
protected:
    struct Result {
        int code = 0;
        std::vector<nlohmann::json> lines;
        nlohmann::json last() const { return lines.empty() ? nlohmann::json() : lines.back(); }
    };
    Result run(const std::vector<std::string> & arguments) {
        const fs::path output = folder_ / "output";
        Process process(arguments, output);
        Result result;
        result.code = process.wait(seconds(120));
        std::ifstream file(output);
        for (std::string line; std::getline(file, line);) {
            result.lines.push_back(nlohmann::json::parse(line, nullptr, false));
            EXPECT_FALSE(result.lines.back().is_discarded()) << line;
        }
        return result;
    }
};

TEST_F(JobTest, imports_verifies_and_serves_from_the_store) {
    const std::string store = folder_ / "store";
    const Result imported = run({"import", "--store", store, "--name", "smol:q4_1", model_path()});
    ASSERT_EQ(imported.code, 0) << imported.last();
    EXPECT_EQ(imported.last()["finished"], true);
    EXPECT_THAT(imported.last()["digest"].get<std::string>(), testing::StartsWith("sha256:"));
    EXPECT_EQ(imported.lines.front()["phase"], "importing");
    EXPECT_GT(imported.lines.front()["total"], 1000000);

    const Result verified = run({"verify", "--store", store, "smol:q4_1"});
    EXPECT_EQ(verified.code, 0);
    EXPECT_EQ(verified.last()["problems"], nlohmann::json::array());

    const auto process = start();
    LoadRequest request = load_request();
    request.set_store_path(store);
    request.set_views_path(folder_ / "views");
    request.set_model("smol:q4_1");
    request.clear_deployment();
    const grpc::Status loaded = load(request);
    ASSERT_TRUE(loaded.ok()) << loaded.error_message();
    grpc::ClientContext context;
    const auto stream = stub_->Serve(&context);
    ASSERT_TRUE(stream->Write(serve_request(R"({"prompt":"The sea is","max_tokens":4,"temperature":0})")));
    std::string data;
    for (ServeResponse part; stream->Read(&part);) data += part.data();
    EXPECT_THAT(data, HasSubstr("\"model\":\"smol:q4_1\""));
    EXPECT_TRUE(stream->Finish().ok());

    // A flipped byte in a blob is named.
    for (const auto & blob : fs::directory_iterator(folder_ / "store" / "blobs" / "sha256")) {
        if (blob.file_size() < 1000000) continue;
        fs::permissions(blob.path(), fs::perms::owner_write, fs::perm_options::add);
        std::fstream file(blob.path(), std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(500000);
        file.put('\x55');
        file.put('\x55');
        break;
    }
    const Result corrupt = run({"verify", "--store", store});
    EXPECT_EQ(corrupt.code, 0);
    EXPECT_EQ(corrupt.last()["problems"].size(), 1u) << corrupt.last();
}

TEST_F(JobTest, failures_are_lines_of_json) {
    const std::string store = folder_ / "store";
    const fs::path broken = folder_ / "broken.gguf";
    std::ofstream(broken) << "GGUF\x03";
    const Result imported = run({"import", "--store", store, broken});
    EXPECT_EQ(imported.code, 1);
    EXPECT_EQ(imported.last()["error"]["code"], "INVALID_ARGUMENT");
    EXPECT_THAT(imported.last()["error"]["message"].get<std::string>(), HasSubstr("broken.gguf"));
    EXPECT_EQ(run({"verify", "--store", store, "nothing"}).last()["error"]["code"], "NOT_FOUND");
    EXPECT_EQ(run({"pull", "--store", store, "hf://../.."}).last()["error"]["code"], "INVALID_ARGUMENT");
    EXPECT_EQ(run({"version", "--json"}).last().contains("engine_build"), true);
}

TEST_F(EngineTest, wrong_use_is_exit_code_two) {
    const fs::path output = folder_ / "output";
    for (const std::vector<std::string> & wrong : {std::vector<std::string>{},
                                                   {"--bogus"},
                                                   {"import", "--store", "store"},
                                                   {"driver", "--socket", "s", "--drain-ms", "long"},
                                                   {"--log-level", "loud", "version"}}) {
        EXPECT_EQ(Process(wrong, output).wait(), 2) << testing::PrintToString(wrong);
    }
    EXPECT_EQ(Process({"--help"}, output).wait(), 0);
}

TEST_F(JobTest, sigterm_cancels_an_import) {
    const auto has_line = [&] {
        std::ifstream file(folder_ / "output");
        std::string line;
        return static_cast<bool>(std::getline(file, line));
    };
    int code = 0;
    for (int attempt = 0; code == 0 && attempt < 20; ++attempt) { // again, when it was done before the signal came
        fs::remove(folder_ / "output");
        const std::string store = folder_ / std::to_string(attempt);
        Process process({"import", "--store", store, model_path()}, folder_ / "output");
        ASSERT_TRUE(eventually([&] { return has_line() || process.has_ended(); }));
        process.signal(SIGTERM);
        code = process.wait();
        fs::remove_all(store);
    }
    EXPECT_EQ(code, 1);
    std::ifstream file(folder_ / "output");
    std::string last;
    for (std::string line; std::getline(file, line);) last = line;
    EXPECT_EQ(nlohmann::json::parse(last, nullptr, false)["error"]["code"], "CANCELLED") << last;
}

} // namespace
} // namespace strata::v1
