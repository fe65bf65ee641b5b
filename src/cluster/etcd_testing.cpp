#include "cluster/etcd_testing.h"

#include "base/check.h"
#include "base/unique_fd.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace strata::cluster {

namespace {

std::string output_of(const std::string & command) {
    FILE * pipe = ::popen(command.c_str(), "r"); // NOLINT(cert-env33-c): of this test
    STRATA_CHECK(pipe != nullptr);
    std::array<char, 1024> line{};
    std::string text;
    while (std::fgets(line.data(), line.size(), pipe) != nullptr) text += line.data();
    STRATA_CHECK(::pclose(pipe) == 0);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
}

int free_port() {
    const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    STRATA_CHECK(::bind(fd.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)) == 0);
    socklen_t size = sizeof(address);
    STRATA_CHECK(::getsockname(fd.get(), reinterpret_cast<sockaddr *>(&address), &size) == 0);
    return ntohs(address.sin_port);
}

} // namespace

EtcdCluster::EtcdCluster(int members, bool tls)
    : tls_(tls)
    , program_(output_of(STRATA_ETCD_SCRIPT)) {
    if (tls_) {
        // One certificate for both sides, of a CA that is itself.
        std::filesystem::create_directory(folder_.path() / "tls");
        output_of(fmt::format("cd {} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 "
                              "-subj /CN=etcd -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem "
                              "2>/dev/null && cp cert.pem ca.pem",
                              (folder_.path() / "tls").native()));
    }
    for (int i = 0; i < members; ++i) members_.push_back({0, free_port(), free_port()});
    for (size_t i = 0; i < members_.size(); ++i) restart(i);
}

EtcdCluster::~EtcdCluster() {
    for (size_t i = 0; i < members_.size(); ++i) kill(i);
}

std::vector<std::string> EtcdCluster::endpoints() const {
    std::vector<std::string> all;
    for (const Member & member : members_) all.push_back(fmt::format("127.0.0.1:{}", member.client_port));
    return all;
}

void EtcdCluster::kill(size_t number) {
    Member & member = members_.at(number);
    if (member.pid == 0) return;
    ::kill(member.pid, SIGKILL);
    ::waitpid(member.pid, nullptr, 0);
    member.pid = 0;
}

void EtcdCluster::restart(size_t number) {
    kill(number);
    Member & member = members_.at(number);
    std::string all;
    for (size_t i = 0; i < members_.size(); ++i) {
        all += fmt::format("{}m{}=http://127.0.0.1:{}", i == 0 ? "" : ",", i, members_[i].peer_port);
    }
    const std::string client = fmt::format("{}://127.0.0.1:{}", tls_ ? "https" : "http", member.client_port);
    const std::string peer = fmt::format("http://127.0.0.1:{}", member.peer_port);
    std::vector<std::string> words = {program_,
                                      "--name",
                                      fmt::format("m{}", number),
                                      "--data-dir",
                                      folder_.path() / fmt::format("m{}", number),
                                      "--listen-client-urls",
                                      client,
                                      "--advertise-client-urls",
                                      client,
                                      "--listen-peer-urls",
                                      peer,
                                      "--initial-advertise-peer-urls",
                                      peer,
                                      "--initial-cluster",
                                      all,
                                      "--logger",
                                      "zap",
                                      "--log-outputs",
                                      folder_.path() / fmt::format("m{}.log", number)};
    if (tls_) {
        words.insert(words.end(), {"--client-cert-auth", "--trusted-ca-file", tls() / "ca.pem", "--cert-file",
                                   tls() / "cert.pem", "--key-file", tls() / "key.pem"});
    }
    std::vector<char *> arguments;
    for (std::string & word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
    STRATA_CHECK(::posix_spawn(&member.pid, program_.c_str(), &actions, nullptr, arguments.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
}

} // namespace strata::cluster
