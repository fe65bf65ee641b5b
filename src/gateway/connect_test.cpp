// The control plane as JSON, over a real gRPC server in this process.

#include "gateway/test_support.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <strata/v1/cluster.grpc.pb.h>
#include <strata/v1/models.grpc.pb.h>

namespace strata::gateway::testing {
namespace {

using ::testing::HasSubstr;
using namespace std::chrono_literals;

class ClusterService final : public v1::Cluster::CallbackService {
public:
    grpc::ServerUnaryReactor * ListNodes(grpc::CallbackServerContext * context, const v1::ListNodesRequest *,
                                         v1::ListNodesResponse * response) override {
        auto * node = response->add_nodes();
        node->set_name("n\"1");
        node->set_memory_bytes(1LL << 40);
        auto * reactor = context->DefaultReactor();
        reactor->Finish(grpc::Status::OK);
        return reactor;
    }
};

// Sends messages until it has sent `count`, or for ever.
class Progress final : public grpc::ServerWriteReactor<v1::JobProgress> {
public:
    Progress(int count, grpc::Status end, std::atomic<bool> & cancelled)
        : count_(count)
        , end_(std::move(end))
        , cancelled_(cancelled) {
        next();
    }
    void OnWriteDone(bool ok) override {
        if (ok) {
            next();
        } else {
            Finish(grpc::Status::CANCELLED);
        }
    }
    void OnCancel() override {
        cancelled_ = true;
        if (waiting_.exchange(false)) Finish(grpc::Status::CANCELLED);
    }
    void OnDone() override { delete this; }

private:
    void next() {
        if (sent_ == count_) {
            Finish(end_);
            return;
        }
        if (count_ < 0 && sent_ == 1) {
            waiting_ = true;
            if (cancelled_ && waiting_.exchange(false)) Finish(grpc::Status::CANCELLED);
            return;
        }
        message_.set_done_bytes(++sent_);
        message_.set_phase("verifying");
        StartWrite(&message_);
    }

    const int count_;
    const grpc::Status end_;
    std::atomic<bool> & cancelled_;
    std::atomic<bool> waiting_ = false;
    int sent_ = 0;
    v1::JobProgress message_;
};

// Answers only when it is cancelled.
class Never final : public grpc::ServerUnaryReactor {
public:
    void OnCancel() override { Finish(grpc::Status::CANCELLED); }
    void OnDone() override { delete this; }
};

class ModelsService final : public v1::Models::CallbackService {
public:
    std::atomic<bool> cancelled = false;

    grpc::ServerUnaryReactor * Remove(grpc::CallbackServerContext * context, const v1::RemoveModelRequest * request,
                                      v1::RemoveModelResponse *) override {
        auto * reactor = context->DefaultReactor();
        reactor->Finish({grpc::StatusCode::NOT_FOUND, "no model " + request->model()});
        return reactor;
    }
    grpc::ServerUnaryReactor * Show(grpc::CallbackServerContext *, const v1::ShowModelRequest *,
                                    v1::ShowModelResponse *) override {
        return new Never;
    }
    grpc::ServerWriteReactor<v1::JobProgress> * Verify(grpc::CallbackServerContext *,
                                                       const v1::VerifyModelRequest * request) override {
        if (request->model() == "endless") return new Progress(-1, grpc::Status::OK, cancelled);
        return new Progress(3,
                            request->model() == "bad" ? grpc::Status(grpc::StatusCode::DATA_LOSS, "blob 7 is damaged")
                                                      : grpc::Status::OK,
                            cancelled);
    }
};

struct Message {
    int flags;
    nlohmann::json json;
};

std::vector<Message> open_envelopes(std::string_view body) {
    std::vector<Message> messages;
    while (body.size() >= 5) {
        const auto byte = [&](int i) { return static_cast<uint32_t>(static_cast<unsigned char>(body[i])); };
        const size_t size = byte(1) << 24 | byte(2) << 16 | byte(3) << 8 | byte(4);
        messages.push_back({body[0], nlohmann::json::parse(body.substr(5, size), nullptr, false)});
        body.remove_prefix(5 + size);
    }
    return messages;
}

std::string enveloped(std::string_view json, char flags = 0) {
    const auto size = static_cast<uint32_t>(json.size());
    std::string out;
    out += flags;
    for (const int shift : {24, 16, 8, 0}) out += static_cast<char>(size >> shift & 0xff);
    out += json;
    return out;
}

constexpr std::string_view kJson = "Content-Type: application/json\r\n";
constexpr std::string_view kConnectJson = "Content-Type: application/connect+json\r\n";

class Connect : public ::testing::Test, public Fixture {
protected:
    void SetUp() override {
        grpc::ServerBuilder builder;
        builder.RegisterService(&cluster_);
        builder.RegisterService(&models_);
        control_ = builder.BuildAndStart();
        start({}, control_->InProcessChannel({}));
    }
    void TearDown() override {
        server.reset();
        control_->Shutdown(std::chrono::system_clock::now() + 5s);
    }

    ClusterService cluster_;
    ModelsService models_;
    std::unique_ptr<grpc::Server> control_;
};

TEST_F(Connect, UnaryCalls) {
    for (const char * body : {"{}", ""}) {
        const HttpAnswer answer = ask(post("/strata.v1.Cluster/ListNodes", body, kJson));
        EXPECT_EQ(answer.status, 200);
        EXPECT_EQ(answer.headers.at("content-type"), "application/json");
        const auto json = nlohmann::json::parse(answer.body);
        EXPECT_EQ(json["nodes"][0]["name"], "n\"1");
        EXPECT_EQ(json["nodes"][0]["memoryBytes"], "1099511627776");
    }
    EXPECT_TRUE(eventually([&] {
        return metric(R"(strata_http_requests_total{path="/strata.v1.Cluster/ListNodes",status="200"})") == 2;
    }));
}

TEST_F(Connect, ErrorsHaveConnectsShape) {
    HttpAnswer answer = ask(post("/strata.v1.Models/Remove", R"({"model":"x"})", kJson));
    EXPECT_EQ(answer.status, 404);
    auto json = nlohmann::json::parse(answer.body);
    EXPECT_EQ(json["code"], "not_found");
    EXPECT_EQ(json["message"], "no model x");

    for (const char * body : {"{", "[]", R"({"nonsense":1})", R"({"model":{}})"}) {
        answer = ask(post("/strata.v1.Models/Remove", body, kJson));
        EXPECT_EQ(answer.status, 400) << body;
        EXPECT_EQ(nlohmann::json::parse(answer.body)["code"], "invalid_argument");
    }
    answer = ask(post("/strata.v1.Models/Explode", "{}", kJson));
    EXPECT_EQ(answer.status, 404);
    EXPECT_EQ(nlohmann::json::parse(answer.body)["code"], "unimplemented");
    answer = ask(get("/strata.v1.Models/List"));
    EXPECT_EQ(answer.status, 405);
    EXPECT_EQ(answer.headers.at("allow"), "POST, OPTIONS");
    EXPECT_EQ(ask(post("/strata.v1.Models/List", "{}", "Content-Type: application/grpc\r\n")).status, 415);
    EXPECT_EQ(ask(post("/strata.v1.Models/List", "{}")).status, 415);
    // Not served by the fake: gRPC's own answer.
    answer = ask(post("/strata.v1.Deployments/List", "{}", kJson));
    EXPECT_EQ(answer.status, 501);
    EXPECT_EQ(nlohmann::json::parse(answer.body)["code"], "unimplemented");
}

TEST_F(Connect, LeavesOutWhatIsNotForClients) {
    for (const char * path :
         {"/strata.v1.Engine/GetStatus", "/strata.v1.Engine/Unload", "/strata.v1.Deployments/Serve"}) {
        EXPECT_EQ(ask(post(path, "{}", kJson)).status, 404) << path;
    }
}

TEST_F(Connect, ServerStreams) {
    HttpAnswer answer = ask(post("/strata.v1.Models/Verify", enveloped("{}"), kConnectJson));
    EXPECT_EQ(answer.status, 200);
    EXPECT_TRUE(answer.complete);
    EXPECT_EQ(answer.headers.at("content-type"), "application/connect+json");
    auto messages = open_envelopes(answer.body);
    ASSERT_EQ(messages.size(), 4u);
    EXPECT_EQ(messages[0].flags, 0);
    EXPECT_EQ(messages[2].json["doneBytes"], "3");
    EXPECT_EQ(messages[3].flags, 2);
    EXPECT_EQ(messages[3].json, nlohmann::json::object());

    messages =
        open_envelopes(ask(post("/strata.v1.Models/Verify", enveloped(R"({"model":"bad"})"), kConnectJson)).body);
    ASSERT_EQ(messages.size(), 4u);
    EXPECT_EQ(messages[3].json["error"]["code"], "data_loss");
    EXPECT_EQ(messages[3].json["error"]["message"], "blob 7 is damaged");

    for (const std::string & body : {std::string("{}"), enveloped("{}", 1), enveloped("{}") + "x", enveloped("[]"),
                                     std::string("\0\xff\xff\xff\xff", 5), std::string()}) {
        answer = ask(post("/strata.v1.Models/Verify", body, kConnectJson));
        EXPECT_EQ(answer.status, 200);
        messages = open_envelopes(answer.body);
        ASSERT_EQ(messages.size(), 1u);
        EXPECT_EQ(messages[0].flags, 2);
        EXPECT_TRUE(messages[0].json["error"]["code"].is_string());
    }
}

TEST_F(Connect, AClientThatLeavesCancelsTheCall) {
    Client connection = client();
    connection.send(post("/strata.v1.Models/Verify", enveloped(R"({"model":"endless"})"), kConnectJson));
    ASSERT_TRUE(connection.read_until("doneBytes"));
    connection.close();
    EXPECT_TRUE(eventually([&] { return models_.cancelled.load(); }));
    EXPECT_TRUE(server->wait_idle(60s));
}

TEST_F(Connect, TimeoutsAreKept) {
    HttpAnswer answer = ask(post("/strata.v1.Models/Show", "{}", fmt::format("{}Connect-Timeout-Ms: 50\r\n", kJson)));
    EXPECT_EQ(answer.status, 504);
    EXPECT_EQ(nlohmann::json::parse(answer.body)["code"], "deadline_exceeded");
    EXPECT_EQ(ask(post("/strata.v1.Models/Show", "{}", fmt::format("{}Connect-Timeout-Ms: soon\r\n", kJson))).status,
              400);
    Client connection = client();
    connection.send(post("/strata.v1.Models/Show", "{}", kJson));
    EXPECT_TRUE(eventually([&] { return !server->wait_idle(0ms); }));
    connection.close();
    EXPECT_TRUE(server->wait_idle(60s));
}

TEST_F(Connect, BodiesAreBounded) {
    EXPECT_EQ(ask("POST /strata.v1.Models/Show HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                  "Content-Length: 5000000\r\n\r\n")
                  .status,
              413);
    const std::string deep = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
    EXPECT_EQ(ask(post("/strata.v1.Models/Show", deep, kJson)).status, 400);
    EXPECT_EQ(
        ask(post("/strata.v1.Models/Show", "{}", "Content-Type: application/json\r\nOrigin: http://evil\r\n")).status,
        403);
}

} // namespace
} // namespace strata::gateway::testing
