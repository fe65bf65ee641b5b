#pragma once

#include "daemon/serve_call.h"
#include "daemon/timer.h"

#include <boost/asio/io_context.hpp>

#include <chrono>
#include <map>
#include <memory>
#include <string>

namespace strata::daemon {

// Requests that other nodes answer. Used on the loop only.
class RemoteCalls final : public CallOwner {
public:
    explicit RemoteCalls(boost::asio::io_context & loop)
        : drain_timer_(loop) {}

    void run(const std::shared_ptr<ServeCall> & call, const std::shared_ptr<const NodeClient> & node);
    // Cuts off what has not ended by then.
    void drain(std::chrono::milliseconds time);

private:
    void on_waiting_cancelled(const std::shared_ptr<ServeCall> &) override {} // none waits
    void on_call_done(const std::shared_ptr<ServeCall> & call, const absl::Status & status) override;

    std::map<std::shared_ptr<ServeCall>, std::shared_ptr<const NodeClient>> running_;
    Timer drain_timer_;
};

} // namespace strata::daemon
