#include "daemon/cluster_service.h"

#include "base/clock.h"
#include "base/version.h"
#include "daemon/engine_client.h"

#include <boost/asio/post.hpp>
#include <unistd.h>

#include <array>
#include <thread>

namespace strata::daemon {

ClusterService::ClusterService(const Home & home, const layers::Store & store, boost::asio::io_context & loop,
                               boost::asio::thread_pool & workers)
    : store_(store)
    , loop_(loop)
    , workers_(workers) {
    std::array<char, 256> name{};
    if (::gethostname(name.data(), name.size() - 1) != 0) name = {"localhost"};
    self_.set_name(name.data());
    self_.set_version(STRATA_VERSION_STRING);
    self_.set_engine_build(STRATA_ENGINE_BUILD_STRING);
    self_.set_started_unix_ms(unix_ms(Clock::real().wall()));
    self_.set_home(home.root);
    self_.set_cpus(static_cast<int32_t>(std::thread::hardware_concurrency()));
    self_.set_memory_bytes(int64_t{::sysconf(_SC_PHYS_PAGES)} * ::sysconf(_SC_PAGESIZE));
    self_.set_pid(::getpid());
}

grpc::ServerUnaryReactor * ClusterService::ListNodes(grpc::CallbackServerContext * context,
                                                     const v1::ListNodesRequest *, v1::ListNodesResponse * response) {
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    const auto answer = [this, response, reactor] {
        const auto bytes = store_.size_bytes();
        if (!bytes.ok()) {
            reactor->Finish(to_grpc(bytes.status()));
            return;
        }
        v1::Node & node = *response->add_nodes();
        node = self_;
        node.set_store_bytes(static_cast<int64_t>(*bytes));
        reactor->Finish(grpc::Status::OK);
    };
    boost::asio::post(loop_, [this, answer] { boost::asio::post(workers_, answer); });
    return reactor;
}

} // namespace strata::daemon
