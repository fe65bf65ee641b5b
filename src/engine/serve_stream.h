#pragma once

#include "engine/driver_slot.h"
#include "strata/v1/engine.grpc.pb.h"

#include <cstddef>

namespace strata::engine {

// Parts of an answer that wait for a slow reader; beyond it the request is cancelled.
constexpr size_t kMaxQueuedAnswerBytes = 8 << 20;

// The reactor of one Serve call: starts the request that the first message tells, and hands the parts of the answer to
// gRPC as fast as the other side reads them. Costs memory, no thread. Deletes itself; `slot` must outlive the server.
grpc::ServerBidiReactor<v1::ServeRequest, v1::ServeResponse> * new_serve_stream(DriverSlot & slot);

} // namespace strata::engine
