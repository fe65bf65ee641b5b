#pragma once

#include "base/home.h"
#include "strata/v1/cluster.grpc.pb.h"
#include "strata/v1/deployments.grpc.pb.h"
#include "strata/v1/models.grpc.pb.h"

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace strata::cli::testing {

// A daemon for tests of the command line: answers on a home's socket with what the test says.
class FakeDaemon {
public:
    explicit FakeDaemon(const Home & home) {
        std::filesystem::create_directories(home.sockets());
        cluster_.self = models_.self = deployments_.self = this;
        grpc::ServerBuilder builder;
        builder.AddListeningPort("unix:" + home.daemon_socket().native(), grpc::InsecureServerCredentials());
        builder.RegisterService(&cluster_);
        builder.RegisterService(&models_);
        builder.RegisterService(&deployments_);
        server_ = builder.BuildAndStart();
    }
    ~FakeDaemon() { server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1)); }

    // What it has, does and says.
    std::vector<v1::Model> models;
    std::vector<v1::Deployment> deployments;
    std::chrono::milliseconds import_time{0};
    bool imported_embeds = false;
    bool was_stopped = false;          // what it is asked to stop
    std::vector<std::string> problems; // that a verify finds
    int http_status = 200;
    std::vector<std::string> answer; // pieces of the body of an answer
    bool endless = false;            // sends `answer` again and again until the client leaves
    std::string log;

    // What it was asked.
    std::string last_body() {
        const std::lock_guard lock(mutex_);
        return last_body_;
    }
    v1::StartDeploymentRequest last_start() {
        const std::lock_guard lock(mutex_);
        return last_start_;
    }
    std::atomic<int> imports{0};
    std::atomic<int> requests{0};
    std::atomic<int> abandoned{0}; // requests and jobs whose client left

    static std::string delta(const std::string & text) {
        return R"(data: {"choices":[{"delta":{"content":")" + text + "\"}}]}\n\n";
    }
    static std::string last_events() {
        return "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
               "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2},"
               "\"timings\":{\"predicted_per_second\":99.5}}\n\ndata: [DONE]\n\n";
    }

private:
    static grpc::Status no_model(const std::string & name) {
        return {grpc::StatusCode::NOT_FOUND,
                fmt::format("there is no model \"{}\"; `strata ls` shows what there is", name)};
    }
    const v1::Model * find(const std::string & name) const {
        for (const v1::Model & model : models) {
            if (model.name() == name || model.name() == name + ":latest") return &model;
        }
        return nullptr;
    }

    struct Cluster final : v1::Cluster::Service {
        grpc::Status ListNodes(grpc::ServerContext *, const v1::ListNodesRequest *,
                               v1::ListNodesResponse * out) override {
            v1::Node & node = *out->add_nodes();
            node.set_version("0.0.0-fake");
            node.set_http_address("http://127.0.0.1:1");
            node.set_pid(::getpid());
            return grpc::Status::OK;
        }
        FakeDaemon * self = nullptr;
    };

    struct Models final : v1::Models::Service {
        grpc::Status List(grpc::ServerContext *, const v1::ListModelsRequest *, v1::ListModelsResponse * out) override {
            for (const v1::Model & model : self->models) *out->add_models() = model;
            return grpc::Status::OK;
        }
        grpc::Status Show(grpc::ServerContext *, const v1::ShowModelRequest * in,
                          v1::ShowModelResponse * out) override {
            const v1::Model * model = self->find(in->model());
            if (model == nullptr) return no_model(in->model());
            *out->mutable_model() = *model;
            return grpc::Status::OK;
        }
        grpc::Status Remove(grpc::ServerContext *, const v1::RemoveModelRequest * in,
                            v1::RemoveModelResponse *) override {
            return self->find(in->model()) == nullptr ? no_model(in->model()) : grpc::Status::OK;
        }
        grpc::Status Import(grpc::ServerContext * context, const v1::ImportModelRequest * in,
                            grpc::ServerWriter<v1::JobProgress> * out) override {
            ++self->imports;
            constexpr int kSteps = 100;
            for (int step = 0; step < kSteps; ++step) {
                if (context->IsCancelled()) {
                    ++self->abandoned;
                    return grpc::Status::CANCELLED;
                }
                v1::JobProgress progress;
                progress.set_phase("importing");
                progress.set_done_bytes(step * 1'000'000);
                progress.set_total_bytes(kSteps * 1'000'000);
                out->Write(progress);
                std::this_thread::sleep_for(self->import_time / kSteps);
            }
            v1::Model model;
            model.set_name(in->name().empty() ? "imported:latest" : in->name() + ":latest");
            model.set_digest("sha256:0123456789abcdef");
            model.set_embeds(self->imported_embeds);
            self->models.push_back(model);
            v1::JobProgress last;
            last.set_finished(true);
            *last.mutable_model() = model;
            out->Write(last);
            return grpc::Status::OK;
        }
        grpc::Status Verify(grpc::ServerContext *, const v1::VerifyModelRequest *,
                            grpc::ServerWriter<v1::JobProgress> * out) override {
            v1::JobProgress last;
            last.set_finished(true);
            for (const std::string & problem : self->problems) last.add_problems(problem);
            out->Write(last);
            return grpc::Status::OK;
        }
        FakeDaemon * self = nullptr;
    };

    struct Deployments final : v1::Deployments::Service {
        grpc::Status List(grpc::ServerContext *, const v1::ListDeploymentsRequest *,
                          v1::ListDeploymentsResponse * out) override {
            for (const v1::Deployment & deployment : self->deployments) *out->add_deployments() = deployment;
            return grpc::Status::OK;
        }
        grpc::Status Start(grpc::ServerContext *, const v1::StartDeploymentRequest * in,
                           grpc::ServerWriter<v1::LoadProgress> *) override {
            const std::lock_guard lock(self->mutex_);
            self->last_start_ = *in;
            return self->find(in->model()) == nullptr ? no_model(in->model()) : grpc::Status::OK;
        }
        grpc::Status Stop(grpc::ServerContext *, const v1::StopDeploymentRequest *,
                          v1::StopDeploymentResponse * out) override {
            out->set_was_stopped(self->was_stopped);
            return grpc::Status::OK;
        }
        grpc::Status Logs(grpc::ServerContext * context, const v1::LogsRequest * request,
                          grpc::ServerWriter<v1::LogsResponse> * out) override {
            v1::LogsResponse message;
            message.set_text(self->log);
            out->Write(message);
            while (request->follow() && !context->IsCancelled())
                std::this_thread::sleep_for(std::chrono::milliseconds(5));
            return grpc::Status::OK;
        }
        grpc::Status Serve(grpc::ServerContext * context,
                           grpc::ServerReaderWriter<v1::ServeResponse, v1::ServeRequest> * stream) override {
            v1::ServeRequest request;
            stream->Read(&request);
            {
                const std::lock_guard lock(self->mutex_);
                self->last_body_ = request.head().body();
            }
            ++self->requests;
            // The test may change them as soon as its client has left, which is known here only later.
            const std::vector<std::string> pieces = self->answer;
            const bool endless = self->endless;
            v1::ServeResponse head;
            head.mutable_head()->set_status(self->http_status);
            stream->Write(head);
            do {
                for (const std::string & piece : pieces) {
                    v1::ServeResponse data;
                    data.set_data(piece);
                    stream->Write(data);
                }
                if (endless) std::this_thread::sleep_for(std::chrono::milliseconds(10));
            } while (endless && !context->IsCancelled());
            if (context->IsCancelled()) ++self->abandoned;
            v1::ServeResponse end;
            end.mutable_end();
            stream->Write(end);
            return grpc::Status::OK;
        }
        FakeDaemon * self = nullptr;
    };

    std::mutex mutex_;
    std::string last_body_;
    v1::StartDeploymentRequest last_start_;
    Cluster cluster_;
    Models models_;
    Deployments deployments_;
    std::unique_ptr<grpc::Server> server_;
};

} // namespace strata::cli::testing
