// stratad as a process, with an engine without a model: what happens when engines crash, daemons are killed, clients
// leave.
#include "base/home.h"
#include "base/version.h"
#include "layers/store_testing.h"
#include "strata/v1/cluster.grpc.pb.h"
#include "strata/v1/deployments.grpc.pb.h"
#include "strata/v1/models.grpc.pb.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sqlite3.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <sstream>
#include <thread>

extern char ** environ;

namespace strata::daemon {
namespace {

using namespace std::chrono_literals;
using layers::testing::FakeModel;
using layers::testing::TempFolder;
using ::testing::ContainsRegex;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Clock = std::chrono::steady_clock;

constexpr auto kPatience = 60s;

// Whether a process runs; one that ended and was not waited for does not.
bool alive(int64_t pid) {
    std::ifstream file(fmt::format("/proc/{}/stat", pid));
    std::stringstream text;
    text << file.rdbuf();
    const std::string stat = text.str();
    const size_t name_end = stat.rfind(')');
    return name_end != std::string::npos && stat[name_end + 2] != 'Z' && stat[name_end + 2] != 'X';
}

::testing::AssertionResult comes_true(const std::function<bool()> & condition,
                                      std::chrono::seconds patience = kPatience) {
    for (const auto end = Clock::now() + patience; Clock::now() < end; std::this_thread::sleep_for(10ms)) {
        if (condition()) return ::testing::AssertionSuccess();
    }
    return ::testing::AssertionFailure() << "did not come true within " << patience.count() << " s";
}

struct Answer {
    int status = 0;
    std::string content_type;
    std::string data;
    int events = 0; // pieces of the body
    grpc::Status call;
};

// One stratad with a home of its own.
class Node {
public:
    explicit Node(std::filesystem::path folder)
        : home_{std::move(folder)} {
        set("STRATA_STUB_INTERVAL_MS", "20");
        set("STRATA_STUB_TOKENS", "5");
    }
    ~Node() {
        if (pid_ != 0) {
            ::kill(pid_, SIGKILL);
            ::waitpid(pid_, nullptr, 0);
        }
        for (const pid_t engine : engines_left()) ::kill(engine, SIGKILL);
    }

    const Home & home() const { return home_; }
    pid_t pid() const { return pid_; }
    void set(const std::string & variable, const std::string & value) { environment_[variable] = value; }
    void unset(const std::string & variable) { environment_.erase(variable); }

    void launch(std::vector<std::string> options = {}) {
        std::vector<std::string> words = {STRATA_STRATAD, "--home",   home_.root,        "--listen",
                                          "127.0.0.1:0",  "--engine", STRATA_STUB_ENGINE};
        words.insert(words.end(), options.begin(), options.end());
        std::vector<std::string> variables;
        for (char ** entry = environ; *entry != nullptr; ++entry) variables.emplace_back(*entry);
        for (const auto & [name, value] : environment_) variables.push_back(name + "=" + value);
        const auto pointers = [](std::vector<std::string> & strings) {
            std::vector<char *> result;
            for (std::string & string : strings) result.push_back(string.data());
            result.push_back(nullptr);
            return result;
        };
        std::filesystem::create_directories(home_.root);
        posix_spawn_file_actions_t files;
        posix_spawn_file_actions_init(&files);
        posix_spawn_file_actions_addopen(&files, 2, (home_.root / "stderr").c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                         0600);
        ASSERT_EQ(
            ::posix_spawn(&pid_, STRATA_STRATAD, &files, nullptr, pointers(words).data(), pointers(variables).data()),
            0);
        posix_spawn_file_actions_destroy(&files);
    }
    void start(std::vector<std::string> options = {}) {
        launch(std::move(options));
        if (::testing::Test::HasFatalFailure()) return;
        grpc::ChannelArguments arguments;
        arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
        arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
        arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 50);
        arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
        channel_ = grpc::CreateCustomChannel("unix:" + home_.daemon_socket().native(),
                                             grpc::InsecureChannelCredentials(), arguments);
        grpc::ClientContext context;
        context.set_wait_for_ready(true);
        context.set_deadline(std::chrono::system_clock::now() + kPatience);
        v1::ListNodesResponse nodes;
        const grpc::Status up = v1::Cluster::NewStub(channel_)->ListNodes(&context, {}, &nodes);
        ASSERT_TRUE(up.ok()) << up.error_message() << "\n" << log();
        http_port_ = std::stoi(nodes.nodes(0).http_address().substr(nodes.nodes(0).http_address().rfind(':') + 1));
    }
    // The exit code, or minus the signal.
    int end(int signal) {
        ::kill(pid_, signal);
        return wait();
    }
    int wait() {
        int status = 0;
        for (const auto limit = Clock::now() + kPatience; Clock::now() < limit; std::this_thread::sleep_for(5ms)) {
            if (::waitpid(pid_, &status, WNOHANG) != pid_) continue;
            pid_ = 0;
            return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        }
        ADD_FAILURE() << "stratad does not end\n" << log();
        return -1;
    }
    std::string log() const { return layers::testing::read_file(home_.root / "stderr"); }

    void add_model(const std::string & name, const std::string & seed = "",
                   const std::string & architecture = "llama") {
        auto store = layers::Store::open(home_.store());
        ASSERT_OK(store);
        const FakeModel model = FakeModel::make(seed.empty() ? name : seed);
        for (const std::string & layer : model.layers) ASSERT_OK((*store)->put(layer));
        layers::ModelIndex index = model.index();
        index.architecture = architecture;
        ASSERT_OK((*store)->commit_model(layers::testing::model_name(name), index, layers::testing::fake_lineage()));
    }

    std::unique_ptr<v1::Deployments::Stub> deployments() { return v1::Deployments::NewStub(channel_); }
    std::unique_ptr<v1::Models::Stub> models() { return v1::Models::NewStub(channel_); }

    v1::Deployment deployment(const std::string & name) {
        grpc::ClientContext context;
        v1::ListDeploymentsRequest request;
        request.set_all(true);
        v1::ListDeploymentsResponse response;
        deployments()->List(&context, request, &response);
        for (const v1::Deployment & found : response.deployments()) {
            if (found.name() == name) return found;
        }
        return {};
    }
    int64_t engine_pid(const std::string & name) { return deployment(name).engine_pid(); }

    // on_event is called after each event of a stream.
    Answer ask(const std::string & body, const std::function<void(int, grpc::ClientContext &)> & on_event = {},
               const std::string & path = "/v1/chat/completions") {
        grpc::ClientContext context;
        const auto stream = deployments()->Serve(&context);
        v1::ServeRequest request;
        request.mutable_head()->set_method("POST");
        request.mutable_head()->set_path(path);
        request.mutable_head()->set_body(body);
        stream->Write(request);
        stream->WritesDone();
        Answer answer;
        v1::ServeResponse part;
        while (stream->Read(&part)) {
            if (part.has_head()) {
                answer.status = part.head().status();
                answer.content_type = part.head().content_type();
            } else if (part.has_data()) {
                answer.data += part.data();
                ++answer.events;
                if (on_event) on_event(answer.events, context);
            }
        }
        answer.call = stream->Finish();
        return answer;
    }
    Answer chat(const std::string & model, const std::string & prompt = "Hi") {
        return ask(fmt::format(R"({{"model":"{}","prompt":"{}"}})", model, prompt));
    }
    Answer stream(const std::string & model, const std::function<void(int, grpc::ClientContext &)> & on_event = {}) {
        return ask(fmt::format(R"({{"model":"{}","stream":true}})", model), on_event);
    }

    // The whole answer to a request over HTTP, head included.
    std::string http(const std::string & method, const std::string & path, const std::string & body = "") const {
        const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(http_port_));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        std::string answer;
        if (::connect(fd, reinterpret_cast<const sockaddr *>(&address), sizeof(address)) == 0) {
            const std::string request =
                fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}",
                            method, path, body.size(), body);
            EXPECT_EQ(::write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
            char buffer[4096];
            for (ssize_t bytes = 0; (bytes = ::read(fd, buffer, sizeof(buffer))) > 0;) {
                answer.append(buffer, static_cast<size_t>(bytes));
            }
        }
        ::close(fd);
        return answer;
    }

private:
    // Engines outlive their daemon; those of this home have its path on their command line.
    std::vector<pid_t> engines_left() const {
        std::vector<pid_t> engines;
        std::error_code gone;
        for (const auto & entry : std::filesystem::directory_iterator("/proc", gone)) {
            const pid_t pid = std::atoi(entry.path().filename().c_str());
            if (pid == 0) continue;
            std::ifstream file(entry.path() / "cmdline");
            std::stringstream text;
            text << file.rdbuf();
            const std::string command = text.str();
            const bool engine = command.rfind(STRATA_STUB_ENGINE, 0) == 0;
            if (engine && command.find(home_.root.native() + "/") != std::string::npos) engines.push_back(pid);
        }
        return engines;
    }

    Home home_;
    std::map<std::string, std::string> environment_;
    pid_t pid_ = 0;
    int http_port_ = 0;
    std::shared_ptr<grpc::Channel> channel_;
};

struct DaemonTest : ::testing::Test {
    bool is(const std::string & model, v1::Deployment::State state) { return node.deployment(model).state() == state; }
    grpc::Status start_model(const std::string & model, bool keep, const v1::ServeOptions * options = nullptr) {
        grpc::ClientContext context;
        v1::StartDeploymentRequest request;
        request.set_model(model);
        request.set_keep(keep);
        if (options != nullptr) *request.mutable_options() = *options;
        const auto progress = node.deployments()->Start(&context, request);
        v1::LoadProgress step;
        last_progress.Clear();
        while (progress->Read(&step)) last_progress = step;
        return progress->Finish();
    }
    grpc::Status stop_model(const std::string & model, int64_t drain_ms = 0) {
        grpc::ClientContext context;
        v1::StopDeploymentRequest request;
        request.set_model(model);
        request.set_drain_ms(drain_ms);
        v1::StopDeploymentResponse response;
        const grpc::Status status = node.deployments()->Stop(&context, request, &response);
        was_stopped = response.was_stopped();
        return status;
    }

    // Whether the daemon refuses new requests; the stub refuses this one at once, too.
    bool is_shutting_down() { return node.chat("m", "__refuse__").data.find("shutting down") != std::string::npos; }

    TempFolder folder;
    Node node{folder.path() / "home"};
    v1::LoadProgress last_progress;
    bool was_stopped = false;
};

// ------------------------------------------------------------------------------------------------ loading

TEST_F(DaemonTest, LoadsOnFirstUseAndNotBefore) {
    node.add_model("m");
    node.start();
    EXPECT_THAT(node.http("GET", "/metrics"), HasSubstr("strata_deployments"));
    EXPECT_THAT(node.http("GET", "/v1/models"), HasSubstr("m:latest"));
    EXPECT_EQ(node.engine_pid("m:latest"), 0);
    const Answer answer = node.chat("m");
    EXPECT_EQ(answer.status, 200) << answer.data;
    EXPECT_TRUE(answer.call.ok()) << answer.call.error_message();
    const v1::Deployment deployment = node.deployment("m:latest");
    EXPECT_EQ(deployment.state(), v1::Deployment::STATE_READY);
    EXPECT_TRUE(alive(deployment.engine_pid()));
    EXPECT_TRUE(comes_true([&] { return node.deployment("m:latest").unload_in_ms() > 0; }));
    const Answer stream = node.stream("m");
    EXPECT_EQ(stream.content_type, "text/event-stream");
    EXPECT_EQ(stream.events, 6); // five tokens and [DONE]
    EXPECT_THAT(node.http("POST", "/v1/chat/completions", R"({"model":"m"})"), HasSubstr("200 OK"));
}

TEST_F(DaemonTest, ManyFirstRequestsLoadOnce) {
    node.add_model("m");
    node.set("STRATA_STUB_LOAD_MS", "500");
    node.start();
    std::vector<std::future<Answer>> answers;
    for (int i = 0; i < 20; ++i) answers.push_back(std::async(std::launch::async, [&] { return node.chat("m"); }));
    for (auto & answer : answers) EXPECT_EQ(answer.get().status, 200);
    EXPECT_TRUE(comes_true([&] { return node.deployment("m:latest").engine().requests_total() == 20; }));
    EXPECT_EQ(node.deployment("m:latest").restarts(), 0);
}

TEST_F(DaemonTest, RequestsFindTheirModelOrLearnWhichThereAre) {
    node.start();
    EXPECT_EQ(node.chat("m").status, 404);
    node.add_model("m:q4_1");
    EXPECT_EQ(node.chat("m").status, 200);
    EXPECT_EQ(node.ask("{}").status, 200); // the only model
    node.add_model("n");
    EXPECT_EQ(node.ask("{}").status, 200); // the only loaded one
    EXPECT_EQ(node.chat("n").status, 200);
    const Answer which = node.ask("{}");
    EXPECT_EQ(which.status, 400);
    EXPECT_THAT(which.data, HasSubstr("m:q4_1"));
    const Answer unknown = node.chat("x");
    EXPECT_EQ(unknown.status, 404);
    EXPECT_THAT(unknown.data, HasSubstr("m:q4_1, n:latest"));
    EXPECT_THAT(unknown.data, HasSubstr(R"("param":"model")"));
    EXPECT_EQ(node.ask("not JSON").status, 400);
    EXPECT_THAT(node.ask(R"({"model":"x"})", {}, "/v1/messages").data, HasSubstr("not_found_error"));
}

TEST_F(DaemonTest, ModelsForTextAndForEmbeddingsAreNotMixedUp) {
    node.add_model("text");
    node.add_model("vectors", "", "bert");
    node.start();
    EXPECT_EQ(node.ask(R"({"model":"vectors"})", {}, "/v1/embeddings").status, 200);
    EXPECT_TRUE(node.deployment("vectors:latest").engine().options().embeddings());
    EXPECT_EQ(node.chat("vectors").status, 400);
    EXPECT_EQ(node.ask(R"({"model":"text"})", {}, "/v1/embeddings").status, 400);
    v1::ServeOptions options;
    options.set_embeddings(true);
    EXPECT_TRUE(start_model("text", false, &options).ok());
    EXPECT_EQ(node.ask(R"({"model":"text"})", {}, "/v1/embeddings").status, 200);
}

TEST_F(DaemonTest, LoadThatFailsIsReportedAndNotTriedAgain) {
    node.add_model("m");
    node.set("STRATA_STUB_LOAD_ERROR", "tensor blk.0 is missing");
    node.start();
    const Answer answer = node.chat("m");
    EXPECT_EQ(answer.status, 500);
    EXPECT_THAT(answer.data, HasSubstr("tensor blk.0 is missing"));
    ASSERT_TRUE(comes_true([&] { return is("m:latest", v1::Deployment::STATE_STOPPED); }));
    EXPECT_THAT(node.deployment("m:latest").last_error(), HasSubstr("tensor blk.0 is missing"));
    std::this_thread::sleep_for(700ms); // longer than the first back-off
    EXPECT_TRUE(is("m:latest", v1::Deployment::STATE_STOPPED));
    const grpc::Status again = start_model("m", false);
    EXPECT_EQ(again.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(again.error_message(), HasSubstr("tensor blk.0 is missing"));
}

TEST_F(DaemonTest, OptionsThatCannotBeServedAreNotKept) {
    node.add_model("m");
    node.start();
    v1::ServeOptions good;
    good.set_slots(3);
    ASSERT_TRUE(start_model("m", false, &good).ok());
    v1::ServeOptions bad = good;
    bad.set_context_tokens(-1);
    EXPECT_EQ(start_model("m", false, &bad).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(node.chat("m").status, 200);
    EXPECT_EQ(node.deployment("m:latest").engine().options().slots(), 3);
    EXPECT_EQ(node.deployment("m:latest").engine().options().context_tokens(), 0);
    // Nor are they there after a restart.
    EXPECT_EQ(start_model("m", false, &bad).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    ::kill(node.pid(), SIGTERM);
    EXPECT_EQ(node.wait(), 0);
    node.start();
    EXPECT_EQ(node.chat("m").status, 200);
    EXPECT_EQ(node.deployment("m:latest").engine().options().slots(), 3);
}

TEST_F(DaemonTest, EngineOfAnotherBuildIsNotUsed) {
    node.add_model("m");
    node.set("STRATA_STUB_BUILD", "another-build");
    node.start();
    const Answer answer = node.chat("m");
    EXPECT_EQ(answer.status, 500);
    EXPECT_THAT(answer.data, HasSubstr("another-build"));
    EXPECT_THAT(answer.data, HasSubstr(STRATA_ENGINE_BUILD_STRING));
}

TEST_F(DaemonTest, StartReportsProgressAndTakesOptions) {
    node.add_model("m");
    node.start();
    v1::ServeOptions options;
    options.set_slots(7);
    EXPECT_TRUE(start_model("m", false, &options).ok());
    EXPECT_TRUE(last_progress.ready());
    const int64_t first = node.engine_pid("m:latest");
    EXPECT_EQ(node.deployment("m:latest").engine().options().slots(), 7);
    EXPECT_TRUE(start_model("m", false, &options).ok());
    EXPECT_EQ(node.engine_pid("m:latest"), first); // nothing to change
    options.set_slots(8);
    EXPECT_TRUE(start_model("m", false, &options).ok());
    EXPECT_NE(node.engine_pid("m:latest"), first);
    EXPECT_EQ(node.deployment("m:latest").engine().options().slots(), 8);
    options.Clear(); // the defaults again
    EXPECT_TRUE(start_model("m", false, &options).ok());
    EXPECT_EQ(node.deployment("m:latest").engine().options().slots(), 0);
    EXPECT_EQ(start_model("nothing", false).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(DaemonTest, NameThatMeansAnotherModelNowGetsAnotherEngine) {
    node.add_model("m", "first");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    const v1::Deployment before = node.deployment("m:latest");
    node.add_model("m", "second");
    ASSERT_EQ(node.chat("m").status, 200);
    const v1::Deployment after = node.deployment("m:latest");
    EXPECT_NE(after.engine_pid(), before.engine_pid());
    EXPECT_NE(after.model_digest(), before.model_digest());
}

// ------------------------------------------------------------------------------------------------ crashes

TEST_F(DaemonTest, CrashIsExplainedToRunningRequestsAndTheEngineComesBack) {
    node.add_model("m");
    node.set("STRATA_STUB_TOKENS", "1000");
    node.start();
    Answer killer;
    std::thread other;
    const Answer stream = node.stream("m", [&](int event, auto &) {
        if (event == 3) other = std::thread([&] { killer = node.chat("m", "__abort__"); });
    });
    other.join();
    EXPECT_EQ(stream.status, 200);
    EXPECT_TRUE(stream.call.ok());
    EXPECT_EQ(killer.status, 503);
    for (const Answer * answer : {&stream, static_cast<const Answer *>(&killer)}) {
        EXPECT_THAT(answer->data, HasSubstr("the engine serving m:latest ended unexpectedly (signal 6"));
        EXPECT_THAT(answer->data, HasSubstr("GGML_ASSERT"));
        EXPECT_THAT(answer->data, HasSubstr("it is being restarted"));
    }
    ASSERT_TRUE(comes_true([&] { return is("m:latest", v1::Deployment::STATE_READY); }));
    const v1::Deployment back = node.deployment("m:latest");
    EXPECT_EQ(back.restarts(), 1);
    EXPECT_THAT(back.last_error(), HasSubstr("signal 6"));
    ASSERT_TRUE(comes_true([&] {
        return node.http("GET", "/metrics").find("strata_engine_restarts_total{deployment=\"m:latest\"} 1") !=
               std::string::npos;
    }));
}

TEST_F(DaemonTest, RequestsDuringTheBackoffAreToldWhenToComeBack) {
    node.add_model("m");
    node.start();
    for (int crash = 1; crash <= 5; ++crash) {
        ASSERT_TRUE(start_model("m", false).ok()); // a person does not have to wait
        node.chat("m", "__abort__");
    }
    // The fifth pause is eight seconds long.
    const v1::Deployment waiting = node.deployment("m:latest");
    EXPECT_EQ(waiting.state(), v1::Deployment::STATE_BACKOFF);
    EXPECT_GT(waiting.retry_in_ms(), 500);
    const std::string answer = node.http("POST", "/v1/chat/completions", R"({"model":"m"})");
    EXPECT_THAT(answer, HasSubstr("503"));
    EXPECT_THAT(answer, ContainsRegex("[Rr]etry-[Aa]fter: [1-8]\r\n"));
    EXPECT_THAT(answer, HasSubstr("started again in"));
    EXPECT_TRUE(start_model("m", false).ok());
    EXPECT_EQ(node.chat("m").status, 200);
}

TEST_F(DaemonTest, EngineThatCrashesWhileLoadingIsGivenUpInTheEnd) {
    node.add_model("m");
    node.set("STRATA_STUB_LOAD_ABORT", "1");
    node.start();
    const Answer answer = node.chat("m");
    EXPECT_EQ(answer.status, 503);
    EXPECT_THAT(answer.data, HasSubstr("ended while loading (signal 6"));
    // It is started again after each pause, and each is longer than the one before.
    EXPECT_TRUE(comes_true([&] { return is("m:latest", v1::Deployment::STATE_BACKOFF); }));
    ASSERT_TRUE(stop_model("m").ok());
    EXPECT_TRUE(is("m:latest", v1::Deployment::STATE_STOPPED));
}

TEST_F(DaemonTest, OddAnswersOfAnEngineReachTheClient) {
    node.add_model("m");
    node.start();
    const Answer refused = node.chat("m", "__refuse__");
    EXPECT_EQ(refused.status, 429);
    EXPECT_THAT(refused.data, HasSubstr("refused by the stub"));
    const Answer broken = node.ask(R"({"model":"m","prompt":"__break__"})");
    EXPECT_EQ(broken.status, 500);
    EXPECT_THAT(broken.data, HasSubstr("broke the answer off"));
    const Answer stream = node.ask(R"({"model":"m","prompt":"__break__","stream":true})");
    EXPECT_EQ(stream.status, 200);
    EXPECT_THAT(stream.data, HasSubstr("broke the answer off"));
}

// ------------------------------------------------------------------------------------------------ clients that leave

TEST_F(DaemonTest, ClientThatLeavesFreesItsSlot) {
    node.add_model("m");
    node.start();
    const auto active = [&] { return node.deployment("m:latest").engine().active_requests(); };
    const Answer stream = node.stream("m", [&](int event, grpc::ClientContext & context) {
        if (event == 2) context.TryCancel();
    });
    EXPECT_EQ(stream.call.error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(comes_true([&] { return active() == 0; }));

    // Before the first token too.
    grpc::ClientContext context;
    const auto hanging = node.deployments()->Serve(&context);
    v1::ServeRequest request;
    request.mutable_head()->set_path("/v1/completions");
    request.mutable_head()->set_body(R"({"prompt":"__hang__"})");
    hanging->Write(request);
    ASSERT_TRUE(comes_true([&] { return active() == 1; }));
    context.TryCancel();
    EXPECT_TRUE(comes_true([&] { return active() == 0; }));
    EXPECT_EQ(hanging->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(DaemonTest, StopCutsOffWhatDoesNotEnd) {
    node.add_model("m");
    node.start();
    Answer answer;
    std::thread client([&] { answer = node.chat("m", "__hang__"); });
    ASSERT_TRUE(comes_true([&] { return node.deployment("m:latest").engine().active_requests() == 1; }));
    EXPECT_TRUE(stop_model("m", 200).ok());
    EXPECT_FALSE(was_stopped);
    client.join();
    EXPECT_TRUE(stop_model("m").ok());
    EXPECT_TRUE(was_stopped);
    EXPECT_EQ(answer.status, 503);
    EXPECT_THAT(answer.data, HasSubstr("was stopped"));
}

TEST_F(DaemonTest, ClientThatLeavesWhileTheModelLoadsNeverReachesTheEngine) {
    node.add_model("m");
    node.set("STRATA_STUB_LOAD_MS", "2000");
    node.start();
    grpc::ClientContext context;
    const auto stream = node.deployments()->Serve(&context);
    v1::ServeRequest request;
    request.mutable_head()->set_path("/v1/completions");
    request.mutable_head()->set_body("{}");
    stream->Write(request);
    const auto waiting = [&](int count) {
        const std::string line = fmt::format("strata_requests_waiting_for_load {}\n", count);
        return node.http("GET", "/metrics").find(line) != std::string::npos;
    };
    int64_t engine = 0;
    ASSERT_TRUE(comes_true([&] { return (engine = node.engine_pid("m:latest")) != 0; }));
    ::kill(static_cast<pid_t>(engine), SIGSTOP); // loads no further until the daemon has seen that the client left
    ASSERT_TRUE(comes_true([&] { return waiting(1); }));
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(comes_true([&] { return waiting(0); }));
    ::kill(static_cast<pid_t>(engine), SIGCONT);
    ASSERT_TRUE(comes_true([&] { return is("m:latest", v1::Deployment::STATE_READY); }));
    EXPECT_EQ(node.deployment("m:latest").engine().requests_total(), 0);
}

// ------------------------------------------------------------------------------------------------ unloading

TEST_F(DaemonTest, IdleModelIsUnloadedAndAKeptOneIsNot) {
    node.add_model("idle");
    node.add_model("kept");
    node.start({"--idle-timeout", "500ms"});
    ASSERT_TRUE(start_model("kept", true).ok());
    ASSERT_EQ(node.chat("idle").status, 200);
    const int64_t idle = node.engine_pid("idle:latest");
    ASSERT_TRUE(comes_true([&] { return !alive(idle); }));
    EXPECT_TRUE(comes_true([&] { return is("idle:latest", v1::Deployment::STATE_STOPPED); }));
    EXPECT_TRUE(is("kept:latest", v1::Deployment::STATE_READY));
    EXPECT_EQ(node.deployment("kept:latest").unload_in_ms(), 0);
    EXPECT_EQ(node.chat("idle").status, 200);
    EXPECT_EQ(node.deployment("idle:latest").restarts(), 0);
}

TEST_F(DaemonTest, ModelUsedLongestAgoMakesRoom) {
    for (const char * name : {"a", "b", "c"}) node.add_model(name);
    node.start({"--max-loaded", "2"});
    for (const std::string name : {"a", "b", "a", "c"}) {
        ASSERT_EQ(node.chat(name).status, 200);
        // Until the daemon knows too that the request has ended.
        ASSERT_TRUE(comes_true([&] { return node.deployment(name + ":latest").unload_in_ms() > 0; }));
    }
    EXPECT_TRUE(is("a:latest", v1::Deployment::STATE_READY));
    EXPECT_TRUE(is("b:latest", v1::Deployment::STATE_STOPPED));
    EXPECT_TRUE(is("c:latest", v1::Deployment::STATE_READY));
}

TEST_F(DaemonTest, BusyModelIsNotThrownOutAndKeptOnesNever) {
    node.add_model("a");
    node.add_model("b");
    node.set("STRATA_STUB_TOKENS", "40");
    node.start({"--max-loaded", "1"});
    Answer other;
    std::thread waiting;
    const Answer stream = node.stream("a", [&](int event, auto &) {
        if (event == 1) waiting = std::thread([&] { other = node.chat("b"); });
    });
    waiting.join();
    EXPECT_EQ(stream.events, 41);
    EXPECT_EQ(other.status, 200);
    ASSERT_TRUE(start_model("b", true).ok());
    const Answer refused = node.chat("a");
    EXPECT_EQ(refused.status, 503);
    EXPECT_THAT(refused.data, HasSubstr("kept"));
}

TEST_F(DaemonTest, LoadedModelCanNotBeRemoved) {
    node.add_model("m");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    const auto remove = [&] {
        grpc::ClientContext context;
        v1::RemoveModelRequest request;
        request.set_model("m");
        v1::RemoveModelResponse response;
        return node.models()->Remove(&context, request, &response);
    };
    const grpc::Status refused = remove();
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(refused.error_message(), HasSubstr("strata stop m:latest"));
    ASSERT_TRUE(stop_model("m").ok());
    EXPECT_TRUE(remove().ok());
    EXPECT_EQ(node.chat("m").status, 404);
}

TEST_F(DaemonTest, BlobsOfALoadedModelAreNotGarbage) {
    node.add_model("m");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    {
        auto store = layers::Store::open(node.home().store());
        ASSERT_OK(store);
        ASSERT_OK((*store)->remove(layers::testing::model_name("m"))); // behind the daemon's back
    }
    const auto collect = [&] {
        grpc::ClientContext context;
        v1::CollectGarbageRequest request;
        request.set_no_grace(true);
        v1::CollectGarbageResponse response;
        EXPECT_TRUE(node.models()->CollectGarbage(&context, request, &response).ok());
        return response.removed_blobs();
    };
    collect();
    const auto blobs = [&] { return layers::testing::entries(node.home().store() / "blobs" / "sha256").size(); };
    EXPECT_GT(blobs(), 0u);
    ASSERT_TRUE(stop_model("m:latest").ok());
    EXPECT_GT(collect(), 0);
    EXPECT_EQ(blobs(), 0u);
}

// ------------------------------------------------------------------------------------------------ daemons that end

TEST_F(DaemonTest, KilledDaemonIsFollowedByOneThatAdoptsItsEngines) {
    node.add_model("m");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    const int64_t engine = node.engine_pid("m:latest");
    EXPECT_EQ(node.end(SIGKILL), -SIGKILL);
    EXPECT_TRUE(alive(engine));
    node.start();
    EXPECT_EQ(node.chat("m").status, 200);
    EXPECT_EQ(node.engine_pid("m:latest"), engine);
    // An adopted engine is watched like any other.
    node.chat("m", "__abort__");
    ASSERT_TRUE(comes_true([&] { return node.chat("m").status == 200; }));
    EXPECT_NE(node.engine_pid("m:latest"), engine);
    EXPECT_EQ(node.deployment("m:latest").restarts(), 1);
}

TEST_F(DaemonTest, EnginesThatDoNotFitAreEnded) {
    node.add_model("m", "first");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    const int64_t engine = node.engine_pid("m:latest");
    node.end(SIGKILL);
    node.add_model("m", "second");
    node.start();
    EXPECT_TRUE(comes_true([&] { return !alive(engine); }));
    EXPECT_EQ(node.chat("m").status, 200);

    const int64_t next = node.engine_pid("m:latest");
    node.end(SIGKILL);
    sqlite3 * db = nullptr;
    ASSERT_EQ(sqlite3_open(node.home().state_db().c_str(), &db), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(db, "UPDATE engines SET build = 'an earlier release'", nullptr, nullptr, nullptr),
              SQLITE_OK);
    sqlite3_close(db);
    node.start();
    EXPECT_TRUE(comes_true([&] { return !alive(next); }));
    EXPECT_EQ(node.chat("m").status, 200);
    EXPECT_EQ(node.deployment("m:latest").restarts(), 0);
}

TEST_F(DaemonTest, EngineThatEndedWithItsDaemonIsForgotten) {
    node.add_model("m");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    const int64_t engine = node.engine_pid("m:latest");
    node.end(SIGKILL);
    ::kill(static_cast<pid_t>(engine), SIGKILL);
    ASSERT_TRUE(comes_true([&] { return !alive(engine); }));
    node.start();
    EXPECT_TRUE(is("m:latest", v1::Deployment::STATE_STOPPED));
    EXPECT_THAT(layers::testing::entries(node.home().sockets()), ElementsAre("stratad.lock", "stratad.sock"));
    EXPECT_EQ(node.chat("m").status, 200);
}

TEST_F(DaemonTest, HungEngineIsNotAdopted) {
    node.add_model("m");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    const int64_t engine = node.engine_pid("m:latest");
    node.end(SIGKILL);
    ::kill(static_cast<pid_t>(engine), SIGSTOP);
    node.start();
    EXPECT_EQ(node.chat("m").status, 200); // after it was killed
    EXPECT_FALSE(alive(engine));
}

TEST_F(DaemonTest, SecondDaemonIsRefusedWithThePidOfTheFirst) {
    node.add_model("m");
    node.start();
    Node second(node.home().root);
    second.launch();
    EXPECT_EQ(second.wait(), 1);
    EXPECT_THAT(node.log(), HasSubstr(fmt::format("process {}", node.pid())));
    EXPECT_EQ(node.chat("m").status, 200);
}

TEST_F(DaemonTest, TermLetsRunningRequestsEnd) {
    node.add_model("m");
    node.set("STRATA_STUB_TOKENS", "150");
    node.start();
    ASSERT_TRUE(start_model("m", false).ok());
    const int64_t engine = node.engine_pid("m:latest");
    const Answer stream = node.stream("m", [&](int event, auto &) {
        if (event != 3) return;
        ::kill(node.pid(), SIGTERM);
        EXPECT_TRUE(comes_true([&] { return is_shutting_down(); }));
    });
    EXPECT_EQ(stream.events, 151);
    EXPECT_EQ(node.wait(), 0);
    EXPECT_FALSE(alive(engine));
    EXPECT_THAT(layers::testing::entries(node.home().sockets()), Not(::testing::Contains(HasSubstr("engine"))));
}

TEST_F(DaemonTest, DrainTimeCutsLongRequestsOff) {
    node.add_model("m");
    node.set("STRATA_STUB_TOKENS", "100000");
    node.start({"--drain", "300ms"});
    const Answer stream = node.stream("m", [&](int event, auto &) {
        if (event == 3) ::kill(node.pid(), SIGTERM);
    });
    EXPECT_THAT(stream.data, HasSubstr("was stopped"));
    EXPECT_EQ(node.wait(), 0);
}

TEST_F(DaemonTest, SecondSignalEndsAtOnce) {
    node.add_model("m");
    node.set("STRATA_STUB_TOKENS", "100000");
    node.start({"--drain", "1h"});
    int64_t engine = 0;
    node.stream("m", [&](int event, auto &) {
        if (event == 2) engine = node.engine_pid("m:latest");
        if (event != 3) return;
        ::kill(node.pid(), SIGTERM);
        EXPECT_TRUE(comes_true([&] { return is_shutting_down(); })); // else both signals could be one
        ::kill(node.pid(), SIGTERM);
    });
    EXPECT_EQ(node.wait(), 1);
    EXPECT_TRUE(comes_true([&] { return !alive(engine); }));
}

TEST_F(DaemonTest, KeptModelsAndOptionsSurviveARestart) {
    node.add_model("m");
    node.start();
    v1::ServeOptions options;
    options.set_slots(7);
    ASSERT_TRUE(start_model("m", true, &options).ok());
    EXPECT_EQ(node.end(SIGTERM), 0);
    node.start();
    ASSERT_TRUE(comes_true([&] { return is("m:latest", v1::Deployment::STATE_READY); }));
    EXPECT_EQ(node.deployment("m:latest").engine().options().slots(), 7);
    ASSERT_TRUE(stop_model("m").ok()); // no longer kept
    EXPECT_EQ(node.end(SIGTERM), 0);
    node.start();
    EXPECT_TRUE(is("m:latest", v1::Deployment::STATE_STOPPED));
}

TEST_F(DaemonTest, AddressBeyondLoopbackIsRefused) {
    node.launch({"--listen", "0.0.0.0:0"});
    EXPECT_EQ(node.wait(), 2);
    EXPECT_THAT(node.log(), HasSubstr("loopback"));
}

TEST_F(DaemonTest, WrongUseIsExitCodeTwo) {
    for (const std::vector<std::string> & wrong : {std::vector<std::string>{"--bogus"},
                                                   {"--listen", "nowhere"},
                                                   {"--idle-timeout", "soon"},
                                                   {"--drain", "-1s"},
                                                   {"--max-loaded", "-1"},
                                                   {"--log-level", "loud"}}) {
        node.launch(wrong);
        EXPECT_EQ(node.wait(), 2) << ::testing::PrintToString(wrong);
    }
    node.launch({"--help"});
    EXPECT_EQ(node.wait(), 0);
    // What is right but fails.
    node.launch({"--home", "/dev/null/home"});
    EXPECT_EQ(node.wait(), 1);
}

// ------------------------------------------------------------------------------------------------ jobs, logs

struct JobTest : DaemonTest {
    grpc::Status import(const std::string & source, const std::function<void(grpc::ClientContext &)> & on_step = {}) {
        grpc::ClientContext context;
        v1::ImportModelRequest request;
        request.add_sources(source);
        const auto progress = node.models()->Import(&context, request);
        v1::JobProgress step;
        while (progress->Read(&step)) {
            steps.push_back(step);
            if (on_step) on_step(context);
        }
        return progress->Finish();
    }

    std::vector<v1::JobProgress> steps;
};

TEST_F(JobTest, RelaysProgressAndEnd) {
    node.start();
    ASSERT_TRUE(import("/models/x.gguf").ok());
    ASSERT_GE(steps.size(), 2u);
    EXPECT_EQ(steps.front().phase(), "importing");
    EXPECT_EQ(steps.front().total_bytes(), 4);
    EXPECT_TRUE(steps.back().finished());
}

TEST_F(JobTest, FailuresAndCrashesAreErrors) {
    node.start();
    EXPECT_EQ(import("relative.gguf").error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    const grpc::Status refused = import("/__refuse__.gguf");
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(refused.error_message(), "refused by the stub");
    const grpc::Status crashed = import("/__abort__.gguf");
    EXPECT_EQ(crashed.error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_THAT(crashed.error_message(), HasSubstr("/__abort__.gguf"));
    EXPECT_THAT(crashed.error_message(), HasSubstr("signal 6"));
    EXPECT_EQ(import("/__break__.gguf").error_code(), grpc::StatusCode::INTERNAL);
    EXPECT_TRUE(import("/good.gguf").ok());
}

TEST_F(JobTest, CancelledCallEndsTheProcess) {
    node.start();
    const auto running = [&] {
        return node.http("GET", "/metrics").find("strata_jobs_running 1") != std::string::npos;
    };
    bool ran = false;
    const grpc::Status cancelled = import("/__hang__.gguf", [&](grpc::ClientContext & context) {
        ran = running();
        context.TryCancel();
    });
    EXPECT_EQ(cancelled.error_code(), grpc::StatusCode::CANCELLED);
    EXPECT_TRUE(ran);
    EXPECT_TRUE(comes_true([&] { return !running(); }));
}

TEST_F(JobTest, TermEndsRunningJobs) {
    node.start();
    const grpc::Status ended = import("/__hang__.gguf", [&](auto &) { ::kill(node.pid(), SIGTERM); });
    EXPECT_FALSE(ended.ok());
    EXPECT_EQ(node.wait(), 0);
}

TEST_F(DaemonTest, LogsAreSentAndFollowed) {
    node.add_model("m");
    node.start();
    ASSERT_EQ(node.chat("m").status, 200);
    grpc::ClientContext context;
    v1::LogsRequest request;
    request.set_deployment("m");
    request.set_lines(1);
    request.set_follow(true);
    const auto logs = node.deployments()->Logs(&context, request);
    std::ofstream(node.home().logs() / "engine-m@latest.log", std::ios::app) << "a word \xFF\n";
    v1::LogsResponse response;
    std::string text;
    while (text.find("a word") == std::string::npos && logs->Read(&response)) text += response.text();
    EXPECT_THAT(text, HasSubstr("a word \xEF\xBF\xBD\n"));
    context.TryCancel();
    EXPECT_EQ(logs->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

} // namespace
} // namespace strata::daemon
