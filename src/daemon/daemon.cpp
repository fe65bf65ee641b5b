#include "daemon/daemon.h"

#include "base/version.h"
#include "daemon/catalog.h"
#include "daemon/cluster_service.h"
#include "daemon/deployments_service.h"
#include "daemon/executor_keeper.h"
#include "daemon/home_lock.h"
#include "daemon/jobs.h"
#include "daemon/limits.h"
#include "daemon/membership.h"
#include "daemon/metrics.h"
#include "daemon/models_service.h"
#include "daemon/peers.h"
#include "daemon/relay_service.h"
#include "daemon/serve_relay.h"
#include "daemon/state.h"
#include "daemon/supervisor.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/thread_pool.hpp>
#include <fmt/format.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <prometheus/registry.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <future>
#include <thread>

namespace strata::daemon {

using std::chrono::milliseconds;

namespace {

constexpr size_t kStoreThreads = 2;
constexpr milliseconds kLastAnswers{3000}; // for what is queued in the servers when all engines have ended
constexpr milliseconds kEndOfRelays{5};

} // namespace

class Daemon::Impl {
public:
    explicit Impl(const DaemonOptions & options)
        : options_(options) {}
    ~Impl() { end(); }

    absl::Status start() {
        if (::access(options_.engine_program.c_str(), X_OK) != 0) {
            return errno_status(errno, "run the engine", options_.engine_program.native());
        }
        STRATA_ASSIGN_OR_RETURN(lock_, take_home(options_.home));
        STRATA_ASSIGN_OR_RETURN(state_, open_sqlite_state(options_.home.state_db()));
        STRATA_ASSIGN_OR_RETURN(store_, layers::Store::open(options_.home.store()));
        catalog_ = std::make_unique<Catalog>(*store_);
        metrics_ = std::make_unique<Metrics>(*registry_);
        workers_ = std::make_unique<boost::asio::thread_pool>(kStoreThreads);
        SupervisorOptions supervision;
        supervision.engine_program = options_.engine_program;
        supervision.engine_build = STRATA_ENGINE_BUILD_STRING;
        supervision.idle_timeout = options_.idle_timeout;
        supervision.max_loaded = options_.max_loaded;
        supervisor_ = std::make_unique<Supervisor>(loop_, *workers_, supervision, options_.home, *store_, *catalog_,
                                                   *state_, peers_, *metrics_);
        jobs_ = std::make_unique<JobRunner>(loop_, options_.engine_program, *metrics_);
        executor_ =
            std::make_unique<ExecutorKeeper>(loop_, options_.home, options_.engine_program, STRATA_ENGINE_BUILD_STRING,
                                             *state_, [this] { membership_->hurry(); });
        membership_ = std::make_unique<Membership>(
            options_.home, *state_, Runtime::real(), peers_,
            Membership::Events{
                .joined = [this](const auto & joined, const auto & identity) { keep_executor(joined, identity); },
                .left = [this] { boost::asio::post(loop_, [this] { executor_->end([] {}); }); },
                .describe_self = [this] { return describe_self(); }});
        relay_ = std::make_unique<RelayService>(*membership_, *supervisor_);
        membership_->answer_with(*relay_);
        cluster_ = std::make_unique<ClusterService>(options_.home, *store_, *membership_, loop_, *workers_);
        models_ = std::make_unique<ModelsService>(options_.home, *store_, *catalog_, *supervisor_, *jobs_, *workers_);
        deployments_ =
            std::make_unique<DeploymentsService>(options_.home, *catalog_, *supervisor_, *membership_, loop_);

        // What comes in before the loop runs waits for it, so that engines are adopted before the first request is
        // routed; and a port that is taken is found before an engine is touched.
        STRATA_RETURN_IF_ERROR(start_grpc());
        STRATA_ASSIGN_OR_RETURN(http_, gateway::Server::start(options_.http, *supervisor_, *registry_,
                                                              grpc_->InProcessChannel(grpc::ChannelArguments())));
        cluster_->set_http_address(http_->url());
        STRATA_RETURN_IF_ERROR(membership_->start(options_.cluster, options_.node_name));
        if (membership_->membership().cluster.empty()) {
            boost::asio::post(loop_, [this] { executor_->end_leftover(); });
        }
        STRATA_RETURN_IF_ERROR(supervisor_->restore());
        signals_.async_wait([this](const auto & error, int number) { on_signal(error, number); });
        loop_thread_ = std::thread([this] { loop_.run(); });
        started_ = true;
        return absl::OkStatus();
    }

    std::string url() const { return http_->url(); }

    std::string join_command() const {
        const auto authority = membership_->authority();
        if (!authority.ok()) return {};
        const auto token = (*authority)->create_token({});
        if (!token.ok()) return {};
        return fmt::format("strata join {} --token {}", membership_->membership().address, token->to_string());
    }

    void wait_for_signal() { signalled_.get_future().wait(); }

    void stop(milliseconds drain) {
        spdlog::info("stopping: running requests have {} s to end",
                     std::chrono::duration_cast<std::chrono::seconds>(drain).count());
        http_->drain();
        std::promise<void> engines_ended;
        std::promise<void> jobs_ended;
        std::promise<void> executor_ended;
        jobs_->shut_down([&] { jobs_ended.set_value(); });
        // This node's engines may work over its executor to the end.
        supervisor_->shut_down(drain, [&] {
            engines_ended.set_value();
            executor_->shut_down([&] { executor_ended.set_value(); });
        });
        const auto last = std::chrono::steady_clock::now() + drain + limits::kTermination + kLastAnswers;
        for (std::promise<void> * ended : {&engines_ended, &jobs_ended, &executor_ended}) {
            if (ended->get_future().wait_until(last) == std::future_status::ready) continue;
            spdlog::error("a process does not end, not even when killed; leaving it behind");
            spdlog::shutdown();
            std::_Exit(1);
        }
        const auto sent = std::chrono::steady_clock::now() + kLastAnswers;
        http_->wait_idle(kLastAnswers);
        while (ServeRelay::under_way() > 0 && std::chrono::steady_clock::now() < sent) {
            std::this_thread::sleep_for(kEndOfRelays);
        }
        end();
        spdlog::info("stopped");
    }

private:
    absl::Status start_grpc() {
        const std::filesystem::path socket = options_.home.daemon_socket();
        grpc::ServerBuilder builder;
        // The lock says that nobody listens on a socket that is there; gRPC replaces it.
        builder.AddListeningPort("unix:" + socket.native(), grpc::InsecureServerCredentials());
        builder.SetMaxReceiveMessageSize(limits::kMessageBytes);
        builder.SetMaxSendMessageSize(limits::kMessageBytes);
        builder.RegisterService(cluster_.get());
        builder.RegisterService(models_.get());
        builder.RegisterService(deployments_.get());
        grpc_ = builder.BuildAndStart();
        if (!grpc_) {
            return absl::InternalError(fmt::format("cannot listen on the socket {}", socket.native()));
        }
        if (::chmod(socket.c_str(), 0600) != 0) return errno_status(errno, "make private", socket.native());
        return absl::OkStatus();
    }

    void keep_executor(const SavedMembership & joined, const std::filesystem::path & identity) {
        const auto address = Address::parse(joined.address, kClusterPort);
        if (!address.ok()) return; // the membership listens there
        boost::asio::post(
            loop_, [this, wish = ExecutorKeeper::Wish{executor_address(*address).to_string(), joined.name, identity,
                                                      options_.executor_threads}] { executor_->keep(wish); });
    }

    v1::Node describe_self() const {
        v1::Node node = cluster_->self();
        const auto address = Address::parse(membership_->membership().address, kClusterPort);
        if (executor_->running() && address.ok()) {
            node.set_executor_address(executor_address(*address).to_string());
        }
        for (v1::ServedModel & model : supervisor_->serving()) *node.add_serving() = std::move(model);
        return node;
    }

    void on_signal(const boost::system::error_code & error, int number) {
        if (error) return;
        signals_.async_wait([this](const auto & again, int next) { on_signal(again, next); });
        if (!std::exchange(stopping_, true)) {
            spdlog::info("signal {} ({})", number, ::strsignal(number));
            signalled_.set_value();
            return;
        }
        spdlog::warn("signal {} again: ending at once", number);
        supervisor_->kill_all();
        jobs_->kill_all();
        executor_->kill_now();
        spdlog::shutdown();
        std::_Exit(1);
    }

    // Ends whatever start() began, in an order in which nothing calls what is gone. Idempotent.
    void end() {
        if (http_) http_->stop();
        if (!started_ && supervisor_) supervisor_->shut_down(milliseconds(0), [] {}); // what came in early is refused
        if (!started_ && executor_) boost::asio::post(loop_, [this] { executor_->shut_down([] {}); });
        // Calls that are still open are cancelled, and need the loop and the workers for their end.
        if ((grpc_ || membership_) && !loop_thread_.joinable()) loop_thread_ = std::thread([this] { loop_.run(); });
        if (membership_) membership_->stop();
        if (grpc_) grpc_->Shutdown(std::chrono::system_clock::now());
        if (workers_) workers_->join();
        grpc_.reset();
        boost::asio::post(loop_, [this] {
            signals_.cancel();
            work_.reset();
            loop_.stop();
        });
        if (loop_thread_.joinable()) loop_thread_.join();
    }

    const DaemonOptions options_;
    UniqueFd lock_;
    std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
    boost::asio::io_context loop_{1};
    boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{loop_.get_executor()};
    boost::asio::signal_set signals_{loop_, SIGTERM, SIGINT, SIGHUP};
    bool started_ = false;
    bool stopping_ = false; // on the loop
    std::promise<void> signalled_;

    std::unique_ptr<StateStore> state_;
    std::unique_ptr<layers::Store> store_;
    std::unique_ptr<Catalog> catalog_;
    std::unique_ptr<Metrics> metrics_;
    std::unique_ptr<boost::asio::thread_pool> workers_;
    Peers peers_;
    std::unique_ptr<Supervisor> supervisor_;
    std::unique_ptr<JobRunner> jobs_;
    std::unique_ptr<ExecutorKeeper> executor_;
    std::unique_ptr<RelayService> relay_;
    std::unique_ptr<Membership> membership_;
    std::unique_ptr<ClusterService> cluster_;
    std::unique_ptr<ModelsService> models_;
    std::unique_ptr<DeploymentsService> deployments_;
    std::unique_ptr<grpc::Server> grpc_;
    std::unique_ptr<gateway::Server> http_;
    std::thread loop_thread_;
};

Daemon::Daemon(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}
Daemon::~Daemon() = default;

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::start(const DaemonOptions & options) {
    auto impl = std::make_unique<Impl>(options);
    STRATA_RETURN_IF_ERROR(impl->start());
    return std::unique_ptr<Daemon>(new Daemon(std::move(impl)));
}

std::string Daemon::join_command() const {
    return impl_->join_command();
}
std::string Daemon::url() const {
    return impl_->url();
}
void Daemon::wait_for_signal() {
    impl_->wait_for_signal();
}
void Daemon::stop(milliseconds drain) {
    impl_->stop(drain);
}

} // namespace strata::daemon
