#pragma once

// What the gateway's tests share: a backend that does as it is told and a client that sends raw bytes.

#include "base/unique_fd.h"
#include "gateway/server.h"

#include <prometheus/registry.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace strata::gateway::testing {

// Polls until the condition holds; false after a minute.
bool eventually(const std::function<bool()> & condition);

class FakeCall final : public ApiCall {
public:
    void cancel() override { cancelled = true; }
    std::atomic<bool> cancelled = false;
};

// One request that the fake backend was given.
struct Served {
    ApiRequest request;
    std::shared_ptr<ResponseSink> sink;
    std::shared_ptr<FakeCall> call;
};

class FakeBackend final : public Backend {
public:
    // What to do with a request, on the gateway's thread; by default the request waits to be taken by next().
    std::function<void(Served &)> script;
    std::vector<ModelSummary> model_list;
    std::atomic<bool> accepts = true;

    std::shared_ptr<ApiCall> serve(ApiRequest request, std::shared_ptr<ResponseSink> sink) override;
    std::vector<ModelSummary> models() override { return model_list; }
    bool accepting() override { return accepts; }

    // The next request that came in; waits for it. Nothing after a minute.
    std::optional<Served> next();
    size_t count() const { return count_; }

    // A script that answers with this JSON.
    static std::function<void(Served &)> answer(int status, std::string body);

private:
    std::mutex mutex_;
    std::vector<Served> waiting_;
    std::atomic<size_t> count_ = 0;
};

struct HttpAnswer {
    int status = 0;
    std::map<std::string, std::string> headers; // names in lower case
    std::string body;                           // chunks put together
    bool complete = false;                      // as Content-Length or the last chunk says
    int interim = 0;                            // "100 Continue"s before it
};

// A blocking connection to 127.0.0.1.
class Client {
public:
    explicit Client(uint16_t port);

    // False when the connection is broken.
    bool send(std::string_view bytes);
    // Ends what this client sends; it still reads.
    void half_close();
    void close() { fd_.reset(); }
    // Closes with a reset instead of a FIN.
    void reset();
    // The next answer. head_only: to a HEAD request.
    HttpAnswer read_answer(bool head_only = false);
    // Until the answer so far contains the text.
    bool read_until(std::string_view text);
    // Whether the server has closed the connection, within a minute.
    bool closed_by_server();
    const std::string & received() const { return buffer_; }
    int fd() const { return fd_.get(); }

private:
    bool fill();

    UniqueFd fd_;
    std::string buffer_;
};

std::string get(std::string_view path, std::string_view more_headers = "");
std::string post(std::string_view path, std::string_view body, std::string_view more_headers = "");

// A server with a fake behind it.
struct Fixture {
    FakeBackend backend;
    std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
    std::unique_ptr<Server> server;

    void start(ServerOptions options = {}, std::shared_ptr<grpc::Channel> control = nullptr);
    Client client() const { return Client(server->port()); }
    HttpAnswer ask(std::string_view request) const;
    // The value of a metric whose line starts with this, summed; 0 when there is none.
    double metric(std::string_view name_and_labels) const;
};

} // namespace strata::gateway::testing
