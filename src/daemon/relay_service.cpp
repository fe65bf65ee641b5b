#include "daemon/relay_service.h"

#include "daemon/serve_relay.h"

namespace strata::daemon {

namespace {

class Refusal final : public grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> {
public:
    explicit Refusal(const absl::Status & why) { Finish(to_grpc(why)); }
    void OnDone() override { delete this; }
};

} // namespace

grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> *
RelayService::Serve(grpc::CallbackServerContext * context) {
    const absl::Status known = membership_.check_caller(*context);
    if (!known.ok()) return new Refusal(known);
    return ServeRelay::make(supervisor_, *context, true);
}

} // namespace strata::daemon
