#include "gateway/test_support.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>

#include <sstream>

namespace strata::gateway::testing {

namespace {

constexpr int kPatienceMs = 60'000;

}

bool eventually(const std::function<bool()> & condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
    while (!condition()) {
        if (std::chrono::steady_clock::now() > deadline) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
}

std::shared_ptr<ApiCall> FakeBackend::serve(ApiRequest request, std::shared_ptr<ResponseSink> sink) {
    Served served{std::move(request), std::move(sink), std::make_shared<FakeCall>()};
    auto call = served.call;
    ++count_;
    if (script) {
        script(served);
    } else {
        const std::lock_guard lock(mutex_);
        waiting_.push_back(std::move(served));
    }
    return call;
}

std::optional<Served> FakeBackend::next() {
    std::optional<Served> served;
    eventually([&] {
        const std::lock_guard lock(mutex_);
        if (waiting_.empty()) return false;
        served = std::move(waiting_.front());
        waiting_.erase(waiting_.begin());
        return true;
    });
    return served;
}

std::function<void(Served &)> FakeBackend::answer(int status, std::string body) {
    return [status, body = std::move(body)](Served & served) {
        served.sink->on_head(status, "application/json");
        served.sink->on_data(body);
        served.sink->on_end(1, 1);
    };
}

Client::Client(uint16_t port)
    : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(fd_.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)) != 0) fd_.reset();
}

bool Client::send(std::string_view bytes) {
    while (!bytes.empty()) {
        const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (sent <= 0) return false;
        bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
}

void Client::half_close() {
    ::shutdown(fd_.get(), SHUT_WR);
}

void Client::reset() {
    const linger hard{1, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    fd_.reset();
}

bool Client::fill() {
    pollfd wait{fd_.get(), POLLIN, 0};
    if (::poll(&wait, 1, kPatienceMs) != 1) return false;
    char bytes[16 * 1024];
    const ssize_t count = ::recv(fd_.get(), bytes, sizeof(bytes), 0);
    if (count <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(count));
    return true;
}

bool Client::read_until(std::string_view text) {
    while (buffer_.find(text) == std::string::npos) {
        if (!fill()) return false;
    }
    return true;
}

bool Client::closed_by_server() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
    while (std::chrono::steady_clock::now() < deadline) {
        pollfd wait{fd_.get(), POLLIN, 0};
        if (::poll(&wait, 1, kPatienceMs) != 1) return false;
        char byte[4096];
        if (::recv(fd_.get(), byte, sizeof(byte), 0) <= 0) return true;
    }
    return false;
}

HttpAnswer Client::read_answer(bool head_only) {
    HttpAnswer answer;
    for (;;) {
        if (!read_until("\r\n\r\n")) return answer;
        const size_t head_end = buffer_.find("\r\n\r\n");
        std::istringstream head(buffer_.substr(0, head_end + 2));
        buffer_.erase(0, head_end + 4);
        std::string version;
        head >> version >> answer.status;
        if (answer.status == 100) {
            ++answer.interim;
            continue;
        }
        std::string line;
        std::getline(head, line);
        while (std::getline(head, line)) {
            if (line.ends_with('\r')) line.pop_back();
            const size_t colon = line.find(": ");
            if (colon != std::string::npos) answer.headers[line.substr(0, colon)] = line.substr(colon + 2);
        }
        break;
    }
    if (head_only || answer.status == 204) {
        answer.complete = true;
    } else if (answer.headers.count("content-length")) {
        const size_t length = std::stoull(answer.headers["content-length"]);
        while (buffer_.size() < length) {
            if (!fill()) break;
        }
        answer.complete = buffer_.size() >= length;
        answer.body = buffer_.substr(0, length);
        buffer_.erase(0, length);
    } else if (answer.headers.count("transfer-encoding")) {
        for (;;) {
            if (!read_until("\r\n")) return answer;
            const size_t line_end = buffer_.find("\r\n");
            const size_t size = std::stoull(buffer_.substr(0, line_end), nullptr, 16);
            while (buffer_.size() < line_end + 2 + size + 2) {
                if (!fill()) return answer;
            }
            answer.body += buffer_.substr(line_end + 2, size);
            buffer_.erase(0, line_end + 2 + size + 2);
            if (size == 0) break;
        }
        answer.complete = true;
    } else {
        while (fill()) {
        }
        answer.body = std::exchange(buffer_, {});
        answer.complete = true;
    }
    return answer;
}

std::string get(std::string_view path, std::string_view more_headers) {
    return fmt::format("GET {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n", path, more_headers);
}

std::string post(std::string_view path, std::string_view body, std::string_view more_headers) {
    return fmt::format("POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n{}\r\n{}", path, body.size(),
                       more_headers, body);
}

void Fixture::start(ServerOptions options, std::shared_ptr<grpc::Channel> control) {
    options.port = 0;
    auto started = Server::start(options, backend, *registry, std::move(control));
    ASSERT_TRUE(started.ok()) << started.status();
    server = *std::move(started);
}

HttpAnswer Fixture::ask(std::string_view request) const {
    Client connection = client();
    connection.send(request);
    return connection.read_answer(request.starts_with("HEAD"));
}

double Fixture::metric(std::string_view name_and_labels) const {
    std::istringstream text(prometheus::TextSerializer().Serialize(registry->Collect()));
    double sum = 0;
    for (std::string line; std::getline(text, line);) {
        if (!line.starts_with(name_and_labels)) continue;
        sum += std::stod(line.substr(line.rfind(' ') + 1));
    }
    return sum;
}

} // namespace strata::gateway::testing
