#pragma once

#include "gateway/backend.h"

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace google::protobuf {
class MethodDescriptor;
}
namespace grpc {
class Channel;
}

namespace strata::gateway {

// The control plane's gRPC services as JSON over HTTP, by the Connect protocol (connectrpc.com/docs/protocol): unary
// calls as "application/json", server streams as "application/connect+json". Made from the descriptors. Left out are
// calls that stream from the client, and the services that only processes of one node use. Thread-safe; no call holds a
// thread.
class ConnectBridge {
public:
    struct Method {
        const google::protobuf::MethodDescriptor * descriptor;
        std::string path; // "/strata.v1.Models/List"
        bool streaming;   // from the server

        // What a request's Content-Type must be.
        const char * content_type() const { return streaming ? "application/connect+json" : "application/json"; }
    };

    explicit ConnectBridge(std::shared_ptr<grpc::Channel> channel);
    ~ConnectBridge();

    static bool is_connect_path(std::string_view path) { return path.starts_with("/strata.v1."); }
    // Null when there is none.
    const Method * find(std::string_view path) const;

    // Starts a call; what comes of it, errors included, goes to the sink.
    std::shared_ptr<ApiCall> call(const Method & method, std::string_view body,
                                  std::optional<std::chrono::milliseconds> timeout, std::shared_ptr<ResponseSink> sink);

    // {"code":"not_found","message":…}
    static std::string error_body(absl::StatusCode code, std::string_view message);

private:
    std::shared_ptr<grpc::Channel> channel_;
    std::map<std::string, Method, std::less<>> methods_;
};

} // namespace strata::gateway
