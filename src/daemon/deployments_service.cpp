#include "daemon/deployments_service.h"

#include "base/version.h"
#include "daemon/limits.h"
#include "daemon/log_file.h"
#include "daemon/placement.h"
#include "daemon/serve_relay.h"
#include "daemon/stream_writer.h"
#include "daemon/timer.h"
#include "daemon/utf8.h"

#include <boost/asio/post.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace strata::daemon {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kDefaultDrain{10'000};
constexpr milliseconds kFollowPause{200};
constexpr int32_t kDefaultLogLines = 100;

// Sends a log as it grows. Lives on the loop, until the client leaves.
class LogFollower : public std::enable_shared_from_this<LogFollower> {
public:
    using Writer = StreamWriter<v1::LogsResponse>;

    LogFollower(boost::asio::io_context & loop, std::shared_ptr<Writer> writer, const std::filesystem::path & path)
        : tail_(path)
        , writer_(std::move(writer))
        , timer_(loop) {}

    void begin(int lines, bool follow) {
        const auto last = tail_.last_lines(lines);
        if (!last.ok() && !follow) {
            writer_->finish(to_grpc(last.status()));
            return;
        }
        if (last.ok()) send(*last);
        if (follow) {
            go_on();
        } else {
            writer_->finish(grpc::Status::OK);
        }
    }
    void end() {
        timer_.cancel();
        writer_->finish(grpc::Status::CANCELLED);
    }

private:
    void go_on() {
        timer_.after(kFollowPause, [self = shared_from_this()] {
            // What a slow reader has not taken stays in the file.
            while (self->writer_->drained()) {
                const std::string text = self->tail_.read_new();
                if (text.empty()) break;
                self->send(text);
            }
            self->go_on();
        });
    }

    void send(std::string_view text) {
        std::string all = std::exchange(unfinished_, {}) + std::string(text);
        unfinished_ = all.substr(all.size() - unfinished_character(all));
        all.resize(all.size() - unfinished_.size());
        const std::string valid = valid_utf8(all);
        // Messages stay below gRPC's default limit of 4 MiB. Cut where a character begins.
        constexpr size_t kPiece = size_t{1} << 20;
        for (size_t begin = 0; begin < valid.size();) {
            size_t end = std::min(begin + kPiece, valid.size());
            end -= end < valid.size() ? unfinished_character(std::string_view(valid).substr(begin, end - begin)) : 0;
            v1::LogsResponse message;
            message.set_text(valid.substr(begin, end - begin));
            writer_->write(std::move(message));
            begin = end;
        }
    }

    LogTail tail_;
    std::shared_ptr<Writer> writer_;
    Timer timer_;
    std::string unfinished_;
};

} // namespace

grpc::ServerUnaryReactor * DeploymentsService::List(grpc::CallbackServerContext * context,
                                                    const v1::ListDeploymentsRequest * request,
                                                    v1::ListDeploymentsResponse * response) {
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    supervisor_.list(request->all(), [response, reactor](std::vector<v1::Deployment> deployments) {
        for (v1::Deployment & deployment : deployments) {
            deployment.set_last_error(valid_utf8(deployment.last_error()));
            *response->add_deployments() = std::move(deployment);
        }
        reactor->Finish(grpc::Status::OK);
    });
    return reactor;
}

grpc::ServerWriteReactor<v1::LoadProgress> * DeploymentsService::Start(grpc::CallbackServerContext *,
                                                                       const v1::StartDeploymentRequest * request) {
    const auto writer = StreamWriter<v1::LoadProgress>::make();
    auto observer = std::make_shared<StartObserver>();
    observer->progress = [writer](const v1::LoadProgress & progress) {
        if (progress.ready()) {
            writer->write(progress);
        } else {
            writer->progress(progress);
        }
    };
    observer->done = [writer](const absl::Status & status) { writer->finish(to_grpc(status)); };
    auto options = options_of(*request);
    if (!options.ok()) {
        writer->finish(to_grpc(options.status()));
        return writer.get();
    }
    const std::string & model = request->model();
    writer->on_cancel([this, writer, model, observer] {
        supervisor_.forget(model, observer);
        writer->finish(grpc::Status::CANCELLED);
    });
    supervisor_.start(model, *std::move(options), request->keep(), observer);
    return writer.get();
}

absl::StatusOr<std::optional<v1::ServeOptions>>
DeploymentsService::options_of(const v1::StartDeploymentRequest & request) const {
    std::optional<v1::ServeOptions> options;
    if (request.has_options()) options = request.options();
    if (request.nodes() == 0) return options;
    if (!options) options.emplace();
    STRATA_ASSIGN_OR_RETURN(const auto executors, choose_executors(membership_.nodes(), membership_.membership().name,
                                                                   STRATA_ENGINE_BUILD_STRING, request.nodes()));
    options->clear_on();
    for (const std::string & executor : executors) options->add_on(executor);
    options->set_tls(membership_.identity());
    return options;
}

grpc::ServerUnaryReactor * DeploymentsService::Stop(grpc::CallbackServerContext * context,
                                                    const v1::StopDeploymentRequest * request,
                                                    v1::StopDeploymentResponse * response) {
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    const milliseconds drain = request->drain_ms() > 0 ? milliseconds(request->drain_ms()) : kDefaultDrain;
    supervisor_.stop(request->model(), drain,
                     [response, reactor](const absl::StatusOr<v1::StopDeploymentResponse> & stopped) {
                         if (stopped.ok()) *response = *stopped;
                         reactor->Finish(to_grpc(stopped.status()));
                     });
    return reactor;
}

grpc::ServerWriteReactor<v1::LogsResponse> * DeploymentsService::Logs(grpc::CallbackServerContext *,
                                                                      const v1::LogsRequest * request) {
    const auto writer = StreamWriter<v1::LogsResponse>::make();
    std::filesystem::path path = home_.logs() / "stratad.log";
    if (!request->deployment().empty()) {
        const auto facts = catalog_.resolve(request->deployment());
        if (!facts.ok()) {
            writer->finish(to_grpc(facts.status()));
            return writer.get();
        }
        path = home_.logs() / engine_log_name(facts->full_name);
    }
    const int lines = std::clamp(request->lines() > 0 ? request->lines() : kDefaultLogLines, 1, limits::kLogLines);
    auto follower = std::make_shared<LogFollower>(loop_, writer, path);
    boost::asio::post(loop_, [follower, lines, follow = request->follow()] { follower->begin(lines, follow); });
    writer->on_cancel([&loop = loop_, follower] { boost::asio::post(loop, [follower] { follower->end(); }); });
    return writer.get();
}

grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> *
DeploymentsService::Serve(grpc::CallbackServerContext * context) {
    return ServeRelay::make(supervisor_, *context, false);
}

} // namespace strata::daemon
