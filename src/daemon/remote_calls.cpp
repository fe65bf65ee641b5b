#include "daemon/remote_calls.h"

#include "gateway/api_error.h"

#include <fmt/format.h>

#include <utility>

namespace strata::daemon {

void RemoteCalls::run(const std::shared_ptr<ServeCall> & call, const std::shared_ptr<const NodeClient> & node) {
    running_.emplace(call, node);
    call->set_owner(this);
    call->start(*node);
}

void RemoteCalls::drain(std::chrono::milliseconds time) {
    drain_timer_.after(time, [this] {
        for (const auto & [call, node] : running_) call->cut(503, "the daemon is shutting down");
    });
}

void RemoteCalls::on_call_done(const std::shared_ptr<ServeCall> & call, const absl::Status & status) {
    const auto found = running_.find(call);
    const std::string name = found->second->name();
    running_.erase(found);
    if (status.ok()) return;
    if (status.code() == absl::StatusCode::kUnavailable) {
        call->fail(503, fmt::format("node {}, which answers for this model, was lost: {}", name,
                                    std::string(status.message())));
    } else {
        call->fail(gateway::http_status_of(status.code()),
                   fmt::format("node {}: {}", name, std::string(status.message())));
    }
}

} // namespace strata::daemon
