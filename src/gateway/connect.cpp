#include "gateway/connect.h"

#include "gateway/api_error.h"

#include <fmt/format.h>
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <nlohmann/json.hpp>
#include <strata/v1/cluster.pb.h>
#include <strata/v1/deployments.pb.h>
#include <strata/v1/models.pb.h>

namespace strata::gateway {

namespace {

namespace pb = google::protobuf;
using Stub = grpc::TemplatedGenericStub<pb::Message, pb::Message>;
using ErrorJson = nlohmann::ordered_json;

constexpr uint8_t kEndStream = 0x02; // flag of an envelope
constexpr uint8_t kCompressed = 0x01;
constexpr size_t kEnvelopeBytes = 5;

// https://connectrpc.com/docs/protocol#error-codes
const char * code_name(absl::StatusCode code) {
    switch (code) {
    case absl::StatusCode::kCancelled:
        return "canceled";
    case absl::StatusCode::kInvalidArgument:
        return "invalid_argument";
    case absl::StatusCode::kDeadlineExceeded:
        return "deadline_exceeded";
    case absl::StatusCode::kNotFound:
        return "not_found";
    case absl::StatusCode::kAlreadyExists:
        return "already_exists";
    case absl::StatusCode::kPermissionDenied:
        return "permission_denied";
    case absl::StatusCode::kResourceExhausted:
        return "resource_exhausted";
    case absl::StatusCode::kFailedPrecondition:
        return "failed_precondition";
    case absl::StatusCode::kAborted:
        return "aborted";
    case absl::StatusCode::kOutOfRange:
        return "out_of_range";
    case absl::StatusCode::kUnimplemented:
        return "unimplemented";
    case absl::StatusCode::kInternal:
        return "internal";
    case absl::StatusCode::kUnavailable:
        return "unavailable";
    case absl::StatusCode::kDataLoss:
        return "data_loss";
    case absl::StatusCode::kUnauthenticated:
        return "unauthenticated";
    default:
        return "unknown";
    }
}

ErrorJson error_json(absl::StatusCode code, std::string_view message) {
    return {{"code", code_name(code)}, {"message", message}};
}

std::string dump(const ErrorJson & json) {
    return json.dump(-1, ' ', false, ErrorJson::error_handler_t::replace);
}

absl::StatusCode absl_code(const grpc::Status & status) {
    return static_cast<absl::StatusCode>(status.error_code()); // the same numbers by definition
}

std::string envelope(uint8_t flags, std::string_view json) {
    const auto size = static_cast<uint32_t>(json.size());
    std::string out;
    out.reserve(kEnvelopeBytes + json.size());
    out += static_cast<char>(flags);
    for (const int shift : {24, 16, 8, 0}) out += static_cast<char>(size >> shift & 0xff);
    out += json;
    return out;
}

// The JSON in a body that holds one enveloped message.
absl::StatusOr<std::string_view> open_envelope(std::string_view body) {
    if (body.size() < kEnvelopeBytes) return absl::InvalidArgumentError("the body has no enveloped message");
    if (body[0] & kCompressed) return absl::UnimplementedError("compressed messages are not supported");
    uint32_t size = 0;
    for (size_t i = 1; i < kEnvelopeBytes; ++i) size = size << 8 | static_cast<unsigned char>(body[i]);
    if (size != body.size() - kEnvelopeBytes) {
        return absl::InvalidArgumentError(
            fmt::format("the envelope says {} bytes, the body has {}", size, body.size() - kEnvelopeBytes));
    }
    return body.substr(kEnvelopeBytes);
}

std::unique_ptr<pb::Message> new_message(const pb::Descriptor * type) {
    return std::unique_ptr<pb::Message>(pb::MessageFactory::generated_factory()->GetPrototype(type)->New());
}

absl::StatusOr<std::unique_ptr<pb::Message>> parse(std::string_view json, const pb::Descriptor * type) {
    auto message = new_message(type);
    // An empty body stands for the message without any field set, as in "curl -X POST".
    if (json.empty()) return message;
    const auto status = pb::util::JsonStringToMessage(pb::StringPiece(json.data(), json.size()), message.get());
    if (!status.ok()) {
        return absl::InvalidArgumentError(
            fmt::format("not a {}: {}", type->full_name(), std::string(status.message())));
    }
    return message;
}

absl::StatusOr<std::string> to_json(const pb::Message & message) {
    std::string json;
    const auto status = pb::util::MessageToJsonString(message, &json);
    if (!status.ok()) return absl::InternalError(std::string(status.message()));
    return json;
}

// What every call holds: its messages, its way to gRPC, and who takes the answer.
class Call : public ApiCall {
public:
    Call(std::shared_ptr<grpc::Channel> channel, std::unique_ptr<pb::Message> request,
         const ConnectBridge::Method & method, std::shared_ptr<ResponseSink> sink)
        : stub_(std::move(channel))
        , request_(std::move(request))
        , response_(new_message(method.descriptor->output_type()))
        , path_(method.path)
        , sink_(std::move(sink)) {}

    void cancel() override { context_.TryCancel(); }

protected:
    void set_timeout(std::optional<std::chrono::milliseconds> timeout) {
        if (timeout) context_.set_deadline(std::chrono::system_clock::now() + *timeout);
    }

    Stub stub_;
    grpc::ClientContext context_;
    std::unique_ptr<pb::Message> request_;
    std::unique_ptr<pb::Message> response_;
    std::string path_;
    std::shared_ptr<ResponseSink> sink_;
};

// Calls keep themselves alive until gRPC is done with them.
class UnaryCall final : public Call, public std::enable_shared_from_this<UnaryCall> {
public:
    using Call::Call;

    void start(std::optional<std::chrono::milliseconds> timeout) {
        set_timeout(timeout);
        stub_.UnaryCall(&context_, path_, {}, request_.get(), response_.get(),
                        [self = shared_from_this()](const grpc::Status & status) { self->done(status); });
    }

private:
    void done(const grpc::Status & status) {
        absl::StatusOr<std::string> json =
            status.ok() ? to_json(*response_) : absl::Status(absl_code(status), status.error_message());
        if (json.ok()) {
            sink_->on_head(200, "application/json");
            sink_->on_data(*std::move(json));
        } else {
            const absl::StatusCode code = json.status().code();
            sink_->on_head(http_status_of(code), "application/json");
            sink_->on_data(ConnectBridge::error_body(code, std::string(json.status().message())));
        }
        sink_->on_end(0, 0);
    }
};

class StreamCall final : public Call,
                         public grpc::ClientBidiReactor<pb::Message, pb::Message>,
                         public std::enable_shared_from_this<StreamCall> {
public:
    using Call::Call;

    void start(std::optional<std::chrono::milliseconds> timeout) {
        self_ = shared_from_this();
        set_timeout(timeout);
        sink_->on_head(200, "application/connect+json");
        stub_.PrepareBidiStreamingCall(&context_, path_, {}, this);
        StartWriteLast(request_.get(), {});
        StartRead(response_.get());
        StartCall();
    }

    void OnReadDone(bool ok) override {
        if (!ok) return; // OnDone follows
        const auto json = to_json(*response_);
        if (!json.ok()) {
            broken_ = json.status();
            context_.TryCancel();
            return;
        }
        sink_->on_data(envelope(0, *json));
        StartRead(response_.get());
    }

    void OnDone(const grpc::Status & status) override {
        absl::Status result = status.ok() ? absl::OkStatus() : absl::Status(absl_code(status), status.error_message());
        if (!broken_.ok()) result = broken_;
        ErrorJson end = ErrorJson::object();
        if (!result.ok()) end["error"] = error_json(result.code(), std::string(result.message()));
        sink_->on_data(envelope(kEndStream, dump(end)));
        sink_->on_end(0, 0);
        self_.reset(); // the last owner, unless the connection still looks at the call
    }

private:
    std::shared_ptr<StreamCall> self_;
    absl::Status broken_;
};

// A call that was over before it began.
class NoCall final : public ApiCall {
public:
    void cancel() override {}
};

void refuse(const ConnectBridge::Method & method, const absl::Status & status, ResponseSink & sink) {
    const std::string message(status.message());
    if (method.streaming) {
        sink.on_head(200, "application/connect+json"); // a stream's errors are in its last message
        sink.on_data(envelope(kEndStream, dump({{"error", error_json(status.code(), message)}})));
    } else {
        sink.on_head(http_status_of(status.code()), "application/json");
        sink.on_data(ConnectBridge::error_body(status.code(), message));
    }
    sink.on_end(0, 0);
}

// Whoever reaches this port on the machine may use its models, but who belongs to its cluster is decided by those who
// may open the daemon's socket, and by its nodes among each other.
bool belongs_here(const pb::MethodDescriptor & method) {
    if (method.service()->name() == "Membership") return false;
    return method.service()->name() != "Cluster" || method.name() == "ListNodes";
}

} // namespace

ConnectBridge::ConnectBridge(std::shared_ptr<grpc::Channel> channel)
    : channel_(std::move(channel)) {
    // One message of each file leads to its services, and makes the linker keep the file's descriptors.
    for (const pb::Descriptor * anchor :
         {v1::ListNodesRequest::descriptor(), v1::ListModelsRequest::descriptor(), v1::Deployment::descriptor()}) {
        const pb::FileDescriptor * file = anchor->file();
        for (int s = 0; s < file->service_count(); ++s) {
            const pb::ServiceDescriptor * service = file->service(s);
            for (int m = 0; m < service->method_count(); ++m) {
                const pb::MethodDescriptor * method = service->method(m);
                if (method->client_streaming() || !belongs_here(*method)) continue;
                const std::string path = fmt::format("/{}/{}", service->full_name(), method->name());
                methods_.emplace(path, Method{method, path, method->server_streaming()});
            }
        }
    }
}

ConnectBridge::~ConnectBridge() = default;

const ConnectBridge::Method * ConnectBridge::find(std::string_view path) const {
    const auto found = methods_.find(path);
    return found == methods_.end() ? nullptr : &found->second;
}

std::string ConnectBridge::error_body(absl::StatusCode code, std::string_view message) {
    return dump(error_json(code, message));
}

std::shared_ptr<ApiCall> ConnectBridge::call(const Method & method, std::string_view body,
                                             std::optional<std::chrono::milliseconds> timeout,
                                             std::shared_ptr<ResponseSink> sink) {
    absl::StatusOr<std::string_view> json = body;
    if (method.streaming) json = open_envelope(body);
    absl::StatusOr<std::unique_ptr<pb::Message>> request = nullptr;
    if (json.ok()) {
        request = parse(*json, method.descriptor->input_type());
    } else {
        request = json.status();
    }
    if (!request.ok()) {
        refuse(method, request.status(), *sink);
        return std::make_shared<NoCall>();
    }
    if (method.streaming) {
        auto call = std::make_shared<StreamCall>(channel_, *std::move(request), method, std::move(sink));
        call->start(timeout);
        return call;
    }
    auto call = std::make_shared<UnaryCall>(channel_, *std::move(request), method, std::move(sink));
    call->start(timeout);
    return call;
}

} // namespace strata::gateway
