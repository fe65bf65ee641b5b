// The program itself, on pipes and on a terminal, against a fake daemon.

#include "base/unique_fd.h"
#include "cli/fake_daemon_testing.h"
#include "cli/output.h"
#include "cli/program_testing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>

namespace strata::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::FakeDaemon;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Program;
using ::testing::StartsWith;

class Cli : public ::testing::Test {
protected:
    void SetUp() override {
        std::string name = "/tmp/strata-cli-test-XXXXXX";
        ASSERT_NE(::mkdtemp(name.data()), nullptr);
        folder_ = name;
        home_.root = folder_ / "home";
        environment_ = {
            {"STRATA_HOME", home_.root}, {"PATH", "/usr/bin:/bin"}, {"TERM", "xterm"}, {"LC_ALL", "C.UTF-8"}};
    }
    void TearDown() override { fs::remove_all(folder_); }

    void start_daemon() {
        daemon_ = std::make_unique<FakeDaemon>(home_);
        v1::Model & model = daemon_->models.emplace_back();
        model.set_name("m:latest");
        model.set_architecture("llama");
        model.set_parameters(134'515'008);
        model.set_size_bytes(98'430'552);
        model.set_unique_bytes(49'215'276);
        daemon_->answer = {FakeDaemon::delta("Grü"), FakeDaemon::delta("ße"), FakeDaemon::last_events()};
    }

    std::unique_ptr<Program> on_pipes(std::vector<std::string> arguments, std::string_view input = {}) {
        arguments.insert(arguments.begin(), program_);
        return std::make_unique<Program>(arguments, environment_, Program::On::kPipes, input);
    }
    std::unique_ptr<Program> on_terminal(std::vector<std::string> arguments) {
        arguments.insert(arguments.begin(), program_);
        return std::make_unique<Program>(arguments, environment_, Program::On::kTerminal);
    }

    // A copy of the program with a stratad of the test's own beside it.
    void install_with_stratad(const std::string & script) {
        fs::copy_file(program_, folder_ / "strata");
        program_ = folder_ / "strata";
        std::ofstream(folder_ / "stratad") << "#!/bin/sh\n" << script << "\n";
        ::chmod((folder_ / "stratad").c_str(), 0755);
    }

    fs::path folder_;
    Home home_;
    std::string program_ = STRATA_CLI;
    std::map<std::string, std::string> environment_;
    std::unique_ptr<FakeDaemon> daemon_;
};

TEST_F(Cli, ListsModels) {
    start_daemon();
    auto ls = on_pipes({"ls"});
    EXPECT_EQ(ls->wait(), 0);
    EXPECT_EQ(ls->out, "NAME      ARCH   PARAMS  QUANT     SIZE  SHARED  LAYERS  IMPORTED\n"
                       "m:latest  llama    135M         98.4 MB     50%       0  -\n");
    EXPECT_EQ(ls->err, "");

    auto json = on_pipes({"ls", "--json"}); // common options may stand anywhere
    EXPECT_EQ(json->wait(), 0);
    EXPECT_EQ(Json::parse(json->out)["models"][0]["sizeBytes"], 98'430'552);
}

TEST_F(Cli, ColoursOnlyOnATerminalThatWantsThem) {
    start_daemon();
    auto colored = on_terminal({"ls"});
    EXPECT_EQ(colored->wait(), 0);
    EXPECT_THAT(colored->out, HasSubstr("\x1b["));
    auto option = on_terminal({"--no-color", "ls"});
    EXPECT_EQ(option->wait(), 0);
    EXPECT_THAT(option->out, Not(HasSubstr("\x1b[")));
    environment_["NO_COLOR"] = "1";
    auto variable = on_terminal({"ls"});
    EXPECT_EQ(variable->wait(), 0);
    EXPECT_THAT(variable->out, Not(HasSubstr("\x1b[")));
}

TEST_F(Cli, ErrorsAreOneLineOrOneDocument) {
    start_daemon();
    auto plain = on_pipes({"show", "nonesuch"});
    EXPECT_EQ(plain->wait(), 1);
    EXPECT_EQ(plain->err, "strata: there is no model \"nonesuch\"; `strata ls` shows what there is\n");
    EXPECT_EQ(plain->out, "");
    auto json = on_pipes({"--json", "show", "nonesuch"});
    EXPECT_EQ(json->wait(), 1);
    EXPECT_EQ(Json::parse(json->out)["error"]["code"], "not_found");
    EXPECT_EQ(json->err, "");
}

TEST_F(Cli, WrongUseIsExitStatusTwo) {
    for (const std::vector<std::string> & wrong : {std::vector<std::string>{},
                                                   {"nonsense"},
                                                   {"ls", "extra"},
                                                   {"show"},
                                                   {"run", "m", "hi", "--temperature", "hot"},
                                                   {"run", "m", "hi", "--temperature", "nan"},
                                                   {"run", "m", "hi", "--temperature", "inf"},
                                                   {"run", "m", "hi", "--temperature=-1"},
                                                   {"run", "m", "hi", "--top-p", "1.5"},
                                                   {"run", "m", "hi", "--context", "-1"},
                                                   {"run", "m"},
                                                   {"embed", "m"},
                                                   {"stop"},
                                                   {"stop", "--all", "m"},
                                                   {"completion", "fish"},
                                                   {"logs", "-n", "0"}}) {
        auto program = on_pipes(wrong);
        EXPECT_EQ(program->wait(), 2) << ::testing::PrintToString(wrong);
        EXPECT_EQ(program->out, "");
        EXPECT_NE(program->err, "");
    }
    auto unknown = on_pipes({"--no-color", "bogus", "ls\x1b[31m"});
    EXPECT_EQ(unknown->wait(), 2);
    EXPECT_EQ(unknown->err, "strata: there is no command \"bogus\"; see `strata --help`\n");
    auto option = on_pipes({"--bogus", "--json"});
    EXPECT_EQ(option->wait(), 2);
    EXPECT_EQ(Json::parse(option->out)["error"]["message"], "there is no option \"--bogus\"; see `strata --help`");
    auto json = on_pipes({"ls", "extra", "--json"});
    EXPECT_EQ(json->wait(), 2);
    EXPECT_EQ(Json::parse(json->out)["error"]["code"], "invalid_argument");
}

TEST_F(Cli, CommandsThatLookNeverStartADaemon) {
    install_with_stratad("touch " + (folder_ / "started").native());
    for (const std::vector<std::string> & looks :
         {std::vector<std::string>{"ps"}, {"stop", "m"}, {"logs", "m"}, {"--no-start", "ls"}}) {
        auto program = on_pipes(looks);
        EXPECT_EQ(program->wait(), 1);
        EXPECT_THAT(program->err, HasSubstr("no daemon runs on " + home_.root.native()));
    }
    auto stop = on_pipes({"stop", "--daemon"}); // is the case already
    EXPECT_EQ(stop->wait(), 0);
    EXPECT_FALSE(fs::exists(folder_ / "started"));
}

TEST_F(Cli, ADaemonThatDiesIsQuoted) {
    install_with_stratad("echo 'stratad: port 7420 is taken' >&2; exit 3");
    auto ls = on_pipes({"ls"});
    EXPECT_EQ(ls->wait(), 1);
    EXPECT_THAT(ls->err, AllOf(HasSubstr("exit status 3"), HasSubstr("stratad: port 7420 is taken"),
                               HasSubstr((home_.logs() / "stratad.log").native())));
}

TEST_F(Cli, TheLogOfADeadDaemonIsShown) {
    fs::create_directories(home_.logs());
    std::ofstream(home_.logs() / "stratad.log") << "one\ntwo\nthree\n";
    auto logs = on_pipes({"logs", "-n", "2"});
    EXPECT_EQ(logs->wait(), 0);
    EXPECT_EQ(logs->out, "two\nthree\n");
}

TEST_F(Cli, ServeBecomesTheDaemonWithItsOptions) {
    install_with_stratad("echo \"$@\"");
    auto serve = on_pipes({"serve", "--listen", "127.0.0.1:1", "--allow-host", "a", "--allow-host", "b"});
    EXPECT_EQ(serve->wait(), 0);
    EXPECT_EQ(serve->out, "--home " + home_.root.native() + " --listen 127.0.0.1:1 --allow-host a --allow-host b\n");
    auto json = on_pipes({"serve", "--json"});
    EXPECT_EQ(json->wait(), 0);
    EXPECT_EQ(json->out, "--home " + home_.root.native() + " --json\n");
}

TEST_F(Cli, WhatCannotBeWrittenIsAFailure) {
    start_daemon();
    daemon_->log = "a line\n";
    for (const char * command : {"ls", "ls --json", "ps --json", "version", "--help", "ls --help", "--version",
                                 "completion bash", "run m hi", "logs -f", "show nonesuch --json"}) {
        Program full({"/bin/sh", "-c", program_ + " " + command + " >/dev/full"}, environment_, Program::On::kPipes);
        EXPECT_EQ(full.wait(), 1) << command;
        EXPECT_THAT(full.err, HasSubstr("strata: cannot write to the standard output: No space left on device; free "))
            << command;
    }
}

TEST_F(Cli, ADaemonThatDiesMeanwhileIsSaidToHaveEnded) {
    fs::create_directories(home_.sockets());
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    home_.daemon_socket().native().copy(address.sun_path, sizeof address.sun_path - 1);
    UniqueFd listening(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(::bind(listening.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listening.get(), 8), 0);
    auto ls = on_pipes({"ls"});
    std::thread daemon([&] {
        // Who only looks whether somebody listens says nothing; gRPC speaks first.
        for (bool spoken = false; !spoken;) {
            const UniqueFd connection(::accept(listening.get(), nullptr, nullptr));
            char byte = 0;
            spoken = ::read(connection.get(), &byte, 1) != 0;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(60));
        listening.reset();
    });
    EXPECT_EQ(ls->wait(), 1);
    daemon.join();
    EXPECT_EQ(ls->err,
              "strata: the daemon ended while it worked on this; run the command again (`strata logs` may show "
              "why it ended)\n");
}

TEST_F(Cli, StopSaysWhatWasNotLoaded) {
    start_daemon();
    auto stopped = on_pipes({"stop", "m"});
    EXPECT_EQ(stopped->wait(), 0);
    EXPECT_EQ(stopped->out, "stopped m\n");
    daemon_->was_stopped = true;
    auto idle = on_pipes({"stop", "m"});
    EXPECT_EQ(idle->wait(), 0);
    EXPECT_EQ(idle->out, "");
    EXPECT_EQ(idle->err, "m was not loaded\n");
    auto json = on_pipes({"stop", "m", "--json"});
    EXPECT_EQ(json->wait(), 0);
    EXPECT_EQ(Json::parse(json->out), Json::parse(R"({"stopped":[]})"));
}

TEST_F(Cli, RunAnswersAPrompt) {
    start_daemon();
    auto run = on_pipes({"run", "m", "show", "me", "ls", "--temperature", "0", "--max-tokens", "7", "--verbose"});
    EXPECT_EQ(run->wait(), 0);
    EXPECT_EQ(run->out, "Grüße\n");
    EXPECT_THAT(run->err, HasSubstr("2 tokens, 99.5 tokens/s"));
    const Json body = Json::parse(daemon_->last_body());
    EXPECT_EQ(body["model"], "m");
    EXPECT_EQ(body["messages"][0]["content"], "show me ls"); // words, though some are commands
    EXPECT_EQ(body["temperature"], 0);
    EXPECT_EQ(body["max_tokens"], 7);
}

TEST_F(Cli, RunAddsStdinToThePrompt) {
    start_daemon();
    EXPECT_EQ(on_pipes({"run", "m", "summarise:"}, "a text")->wait(), 0);
    EXPECT_EQ(Json::parse(daemon_->last_body())["messages"][0]["content"], "summarise:\n\na text");
    EXPECT_EQ(on_pipes({"run", "m"}, "only stdin")->wait(), 0);
    EXPECT_EQ(Json::parse(daemon_->last_body())["messages"][0]["content"], "only stdin");
}

TEST_F(Cli, RunPassesLoadOptionsOnlyWhenGiven) {
    start_daemon();
    EXPECT_EQ(on_pipes({"run", "m", "hi"})->wait(), 0);
    EXPECT_FALSE(daemon_->last_start().has_options());
    EXPECT_EQ(on_pipes({"run", "m", "hi", "--context", "512", "--keep"})->wait(), 0);
    EXPECT_EQ(daemon_->last_start().options().context_tokens(), 512);
    EXPECT_TRUE(daemon_->last_start().keep());
    EXPECT_EQ(on_pipes({"run", "m", "hi", "--context", "0"})->wait(), 0);
    EXPECT_TRUE(daemon_->last_start().has_options()); // the defaults
    EXPECT_EQ(daemon_->last_start().options().context_tokens(), 0);
}

TEST_F(Cli, RunGivesJsonLines) {
    start_daemon();
    auto run = on_pipes({"run", "--json", "m", "hi"});
    EXPECT_EQ(run->wait(), 0);
    std::vector<Json> lines;
    std::istringstream text(run->out);
    for (std::string line; std::getline(text, line);) lines.push_back(Json::parse(line));
    ASSERT_EQ(lines.size(), 3);
    EXPECT_EQ(lines[0]["text"], "Grü");
    EXPECT_EQ(lines[2]["done"], true);
    EXPECT_EQ(lines[2]["generatedTokens"], 2);
}

TEST_F(Cli, RunReportsWhatTheModelRefuses) {
    start_daemon();
    daemon_->http_status = 400;
    daemon_->answer = {R"({"error":{"message":"the prompt is too long","code":400}})"};
    auto run = on_pipes({"run", "m", "hi"});
    EXPECT_EQ(run->wait(), 1);
    EXPECT_EQ(run->err, "strata: the prompt is too long\n");

    daemon_->http_status = 200;
    daemon_->answer = {FakeDaemon::delta("half"),
                       "data: {\"error\":{\"message\":\"the engine died\",\"code\":503}}\n\n"};
    auto half = on_pipes({"run", "m", "hi"});
    EXPECT_EQ(half->wait(), 1);
    EXPECT_EQ(half->out, "half\n");
    EXPECT_EQ(half->err, "strata: the engine died\n");

    daemon_->answer = {FakeDaemon::delta("half")}; // and then nothing
    EXPECT_EQ(on_pipes({"run", "m", "hi"})->wait(), 1);
}

TEST_F(Cli, RunImportsAFileOnce) {
    start_daemon();
    const std::string file = folder_ / "model.gguf";
    std::ofstream(file) << "GGUF";
    EXPECT_EQ(on_pipes({"run", file, "hi"})->wait(), 0);
    EXPECT_EQ(Json::parse(daemon_->last_body())["model"], "imported:latest");
    EXPECT_EQ(on_pipes({"run", file, "hi"})->wait(), 0);
    EXPECT_EQ(daemon_->imports, 1);
    daemon_->models.pop_back(); // removed meanwhile
    EXPECT_EQ(on_pipes({"run", file, "hi"})->wait(), 0);
    EXPECT_EQ(daemon_->imports, 2);

    auto missing = on_pipes({"run", folder_ / "none.gguf", "hi"});
    EXPECT_EQ(missing->wait(), 1);
    EXPECT_THAT(missing->err, HasSubstr("there is no file"));
}

TEST_F(Cli, CtrlCCancelsTheRequest) {
    start_daemon();
    daemon_->answer = {FakeDaemon::delta("again ")};
    daemon_->endless = true;
    auto run = on_pipes({"run", "m", "hi"});
    ASSERT_TRUE(run->shows("again again"));
    run->send_signal(SIGINT);
    EXPECT_EQ(run->wait(), 130);
    for (int i = 0; i < 6000 && daemon_->abandoned == 0; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_EQ(daemon_->abandoned, 1);
}

TEST_F(Cli, ImportShowsABarAndCleansItUp) {
    start_daemon();
    const std::string file = folder_ / "model.gguf";
    std::ofstream(file) << "GGUF";
    daemon_->import_time = std::chrono::milliseconds(1000);
    auto import = on_terminal({"import", file, "--name", "new"});
    EXPECT_TRUE(import->shows("importing model.gguf"));
    EXPECT_TRUE(import->shows("\r\x1b[K"));
    EXPECT_TRUE(import->shows("new:latest"));
    EXPECT_EQ(import->wait(), 0);

    daemon_->import_time = std::chrono::seconds(30);
    auto interrupted = on_terminal({"import", file});
    EXPECT_TRUE(interrupted->shows("importing model.gguf"));
    interrupted->type("\x03");
    EXPECT_EQ(interrupted->wait(), 130);
    EXPECT_THAT(interrupted->out.substr(interrupted->out.rfind('\r')), StartsWith("\r\x1b[K"));
}

TEST_F(Cli, ImportSaysWhichCommandUsesTheModel) {
    start_daemon();
    const std::string file = folder_ / "model.gguf";
    std::ofstream(file) << "GGUF";
    auto chat = on_pipes({"import", file, "--name", "chat"});
    EXPECT_EQ(chat->wait(), 0);
    EXPECT_THAT(chat->err, HasSubstr("`strata run chat:latest`"));
    daemon_->imported_embeds = true;
    auto vectors = on_pipes({"import", file, "--name", "vectors"});
    EXPECT_EQ(vectors->wait(), 0);
    EXPECT_THAT(vectors->err, HasSubstr("`strata embed vectors:latest TEXT`"));
    EXPECT_THAT(vectors->err, Not(HasSubstr("strata run")));
}

TEST_F(Cli, VerifyFailsWhenSomethingIsDamaged) {
    start_daemon();
    EXPECT_EQ(on_pipes({"verify"})->wait(), 0);
    daemon_->problems = {"blob 0123 is damaged"};
    auto plain = on_pipes({"verify", "m"});
    EXPECT_EQ(plain->wait(), 1);
    EXPECT_THAT(plain->out, HasSubstr("blob 0123 is damaged"));
    auto json = on_pipes({"verify", "--json"});
    EXPECT_EQ(json->wait(), 1);
    EXPECT_EQ(Json::parse(json->out)["problems"][0], "blob 0123 is damaged");
}

TEST_F(Cli, PsShowsWhatFailed) {
    start_daemon();
    v1::Deployment & deployment = daemon_->deployments.emplace_back();
    deployment.set_name("m:latest");
    deployment.set_state(v1::Deployment::STATE_BACKOFF);
    deployment.set_restarts(2);
    deployment.set_last_error("signal 6: GGML_ASSERT");
    auto ps = on_pipes({"ps"});
    EXPECT_EQ(ps->wait(), 0);
    EXPECT_THAT(ps->out, AllOf(HasSubstr("RESTARTS"), HasSubstr("failed"), HasSubstr("signal 6: GGML_ASSERT")));
}

TEST_F(Cli, EmbedPrintsVectorsAndSimilarities) {
    start_daemon();
    daemon_->answer = {R"({"data":[{"index":1,"embedding":[0,1]},{"index":0,)", R"("embedding":[1,0.5]}]})"};
    auto vectors = on_pipes({"embed", "m", "a", "b"});
    EXPECT_EQ(vectors->wait(), 0);
    EXPECT_EQ(vectors->out, "1.000000 0.500000\n0.000000 1.000000\n");
    auto lines = on_pipes({"embed", "m", "--json"}, "a\nb\n");
    EXPECT_EQ(lines->wait(), 0);
    EXPECT_EQ(Json::parse(lines->out)["embeddings"][0][1], 0.5);
    auto similar = on_pipes({"embed", "m", "--similarity", "a", "b"});
    EXPECT_EQ(similar->wait(), 0);
    EXPECT_THAT(similar->out, HasSubstr("0.447"));
    for (const char * bad : {"", "{}", R"({"data":[]})", R"({"data":[{"index":5,"embedding":[1]}]})",
                             R"({"data":[{"index":0,"embedding":[1]},{"index":1,"embedding":[1,2]}]})"}) {
        daemon_->answer = {bad};
        EXPECT_EQ(on_pipes({"embed", "m", "a", "b"})->wait(), 1) << bad;
    }
}

TEST_F(Cli, AConversation) {
    start_daemon();
    auto run = on_terminal({"run", "m"});
    ASSERT_TRUE(run->shows(">>> "));
    run->type("hello\r");
    ASSERT_TRUE(run->shows("Grüße"));
    ASSERT_TRUE(run->shows("99.5 tokens/s"));
    ASSERT_TRUE(run->shows(">>> "));

    // Ctrl-C ends the answer, and at the prompt only what was typed.
    daemon_->answer = {FakeDaemon::delta("again ")};
    daemon_->endless = true;
    run->type("more\r");
    ASSERT_TRUE(run->shows("again again"));
    run->type("\x03");
    ASSERT_TRUE(run->shows("interrupted"));
    ASSERT_TRUE(run->shows(">>> "));
    run->type("half a line\x03");
    ASSERT_TRUE(run->shows(">>> "));

    // A paste of several lines is one message.
    daemon_->endless = false;
    daemon_->answer = {FakeDaemon::delta("last"), FakeDaemon::last_events()};
    run->type("see: \x1b[200~one\rtwo\x1b[201~\r");
    ASSERT_TRUE(run->shows("last"));
    ASSERT_TRUE(run->shows(">>> "));
    const Json messages = Json::parse(daemon_->last_body())["messages"];
    ASSERT_EQ(messages.size(), 5);
    EXPECT_EQ(messages[1]["content"], "Grüße");
    EXPECT_THAT(messages[3]["content"].get<std::string>(), StartsWith("again"));
    EXPECT_EQ(messages[4]["content"], "see: one\ntwo");

    run->type("\x04");
    EXPECT_EQ(run->wait(), 0);

    // What was typed is there the next time.
    auto next = on_terminal({"run", "m"});
    ASSERT_TRUE(next->shows(">>> "));
    next->type("\x1b[A");
    EXPECT_TRUE(next->shows("more"));
    next->type("\x15/bye\r");
    EXPECT_EQ(next->wait(), 0);
}

TEST_F(Cli, ControlCharactersOfAModelDoNotReachTheTerminal) {
    start_daemon();
    daemon_->answer = {FakeDaemon::delta("\\u001b[2J"), FakeDaemon::last_events()};
    auto terminal = on_terminal({"run", "m", "hi"});
    EXPECT_EQ(terminal->wait(), 0);
    EXPECT_THAT(terminal->out, AllOf(HasSubstr("\\x1b[2J"), Not(HasSubstr("\x1b[2J"))));
    auto pipe = on_pipes({"run", "m", "hi"});
    EXPECT_EQ(pipe->wait(), 0);
    EXPECT_EQ(pipe->out, "\x1b[2J\n"); // a pipe gets what the model said
}

TEST_F(Cli, CompletionKnowsCommandsOptionsAndModels) {
    start_daemon();
    const auto complete = [&](const std::string & words, int index) {
        const std::string script = "source <(\"" + program_ + "\" completion bash)\nCOMP_WORDS=(" + words +
                                   ")\nCOMP_CWORD=" + std::to_string(index) + "\n_strata\necho \"${COMPREPLY[@]}\"\n";
        Program bash({"/bin/bash", "--norc", "-c", script}, environment_, Program::On::kPipes);
        EXPECT_EQ(bash.wait(), 0) << bash.err;
        return bash.out;
    };
    const std::string strata = "\"" + program_ + "\" ";
    EXPECT_EQ(complete(strata + "ve", 1), "verify version\n");
    EXPECT_EQ(complete(strata + "run --temp", 2), "--temperature\n");
    EXPECT_EQ(complete(strata + "show ''", 2), "m:latest\n");
    EXPECT_EQ(complete(strata + "--home /tmp show m", 4), "m:latest\n");
    EXPECT_EQ(complete(strata + "show m:latest ''", 3), "\n");
    // A flag takes no value: what follows it is a word like any other.
    EXPECT_EQ(complete(strata + "--json sh", 2), "show\n");
    EXPECT_EQ(complete(strata + "--json show ''", 3), "m:latest\n");
    EXPECT_EQ(complete(strata + "show --tensors ''", 3), "m:latest\n");
    EXPECT_EQ(complete(strata + "serve --detach --log-level ''", 4), "trace debug info warn error\n");
    EXPECT_EQ(complete(strata + "logs -n ''", 3), "\n");
    EXPECT_EQ(complete(strata + "ls --he", 2), "--help\n"); // once
    EXPECT_THAT(complete(strata + "import " + folder_.native() + "/", 2), HasSubstr(home_.root.native()));
}

TEST_F(Cli, EveryCommandHasHelpWithAnExample) {
    for (const char * command : {"serve", "run", "embed", "import", "pull", "ls", "show", "verify", "rm", "gc", "ps",
                                 "stop", "logs", "version", "completion"}) {
        auto help = on_pipes({command, "--help"});
        EXPECT_EQ(help->wait(), 0);
        EXPECT_THAT(help->out, AllOf(HasSubstr("Usage: strata " + std::string(command)), HasSubstr("Examples:\n  "),
                                     HasSubstr("strata " + std::string(command))));
    }
}

} // namespace
} // namespace strata::cli
