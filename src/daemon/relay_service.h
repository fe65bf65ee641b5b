#pragma once

#include "daemon/membership.h"
#include "daemon/supervisor.h"
#include "strata/v1/deployments.grpc.pb.h"

namespace strata::daemon {

// What the other nodes may ask of this node's models: to answer a request. Their list, their start and their end are
// for the node's own people.
class RelayService final : public v1::Deployments::CallbackService {
public:
    RelayService(const Membership & membership, Supervisor & supervisor)
        : membership_(membership)
        , supervisor_(supervisor) {}

    grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> *
    Serve(grpc::CallbackServerContext * context) override;

private:
    const Membership & membership_;
    Supervisor & supervisor_;
};

} // namespace strata::daemon
