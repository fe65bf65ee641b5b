#include "daemon/membership.h"

#include "base/text.h"
#include "base/unique_fd.h"
#include "cluster/certificate.h"
#include "cluster/credentials.h"
#include "cluster/first_contact.h"
#include "cluster/join_token.h"
#include "cluster/seal.h"
#include "daemon/engine_client.h"
#include "daemon/limits.h"

#include <fmt/format.h>
#include <grpc/grpc_security_constants.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_credentials_options.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <netdb.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <utility>

namespace strata::daemon {

using std::chrono::milliseconds;

namespace {

constexpr milliseconds kFirstContact{10'000}, kAnswer{5'000};
constexpr milliseconds kRefusedPause{10'000}; // of heartbeats that nobody wants
constexpr int kMessageBytes = 1 << 20;        // no file passes here
constexpr int kThreads = 16;                  // of all calls of other daemons
// Of strangers and members alike.
constexpr size_t kServerBytes = size_t{512} << 20;
constexpr int kCallsOfConnection = 1024;
constexpr milliseconds kHandshake{10'000}, kIdle{300'000}, kOldest{3'600'000}, kGrace{600'000}, kRefusalPause{1000};
constexpr std::chrono::minutes kRenewalPause{5};

std::string host_name() {
    std::array<char, 256> name{};
    return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "node";
}

// What comes after a call that failed: a sentence about the other daemon.
absl::Status answer_of(const std::string & address, const grpc::Status & status) {
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE ||
        status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
        return absl::UnavailableError(fmt::format("{} does not answer: {}", address, status.error_message()));
    }
    return from_grpc(status);
}

// Whether others can be told of the address, and nobody listens there yet.
absl::Status check_free(const Address & address) {
    if (address.host == "0.0.0.0" || address.host == "::") {
        return absl::InvalidArgumentError(
            fmt::format("{} is no address that other nodes can reach: name one of this machine", address.host));
    }
    addrinfo hints{};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    addrinfo * found = nullptr;
    const int error = ::getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found);
    if (error != 0) {
        return absl::InvalidArgumentError(
            fmt::format("cannot listen on {}: {}", address.to_string(), gai_strerror(error)));
    }
    const UniqueFd fd(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    const bool bound = ::bind(fd.get(), found->ai_addr, found->ai_addrlen) == 0;
    const int reason = errno;
    ::freeaddrinfo(found);
    if (bound) return absl::OkStatus();
    const absl::Status status = errno_status(reason, "listen on", address.to_string());
    return {reason == EADDRINUSE ? absl::StatusCode::kAlreadyExists : status.code(), status.message()};
}

absl::StatusOr<cluster::Subject> peer_of(const grpc::ServerContextBase & context) {
    const auto auth = context.auth_context();
    const auto certificate =
        auth == nullptr ? std::vector<grpc::string_ref>{} : auth->FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME);
    if (auth == nullptr || !auth->IsPeerAuthenticated() || certificate.empty()) {
        return absl::UnauthenticatedError("only nodes of the cluster may ask this, with their certificates");
    }
    STRATA_ASSIGN_OR_RETURN(const auto facts,
                            cluster::read_certificate({certificate[0].data(), certificate[0].size()}));
    // A connection may be older than that.
    if (Clock::real().wall() > facts.validity.until) return absl::UnauthenticatedError("the certificate has expired");
    return facts.subject;
}

// Refusals are for people to see, not for strangers to fill the disk with.
bool may_log_refusal() {
    static std::mutex mutex;
    static std::chrono::steady_clock::time_point next;
    const std::lock_guard lock(mutex);
    const auto now = std::chrono::steady_clock::now();
    if (now < next) return false;
    next = now + kRefusalPause;
    return true;
}

absl::Status check_ports(const Address & address) {
    if (address.port != 0 && address.port != UINT16_MAX) return absl::OkStatus();
    return absl::InvalidArgumentError(
        fmt::format("port {} can't be used: name one from 1 to 65534; the next one is the executor's", address.port));
}

} // namespace

grpc::ChannelArguments to_a_node(int message_bytes) {
    grpc::ChannelArguments arguments;
    arguments.SetSslTargetNameOverride(cluster::kServerName);
    arguments.SetMaxReceiveMessageSize(message_bytes);
    arguments.SetMaxSendMessageSize(message_bytes);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
    // A machine that is cut off says nothing: after this it is given up.
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5000);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    // A connection shows the certificates of the cluster that it was made in.
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    return arguments;
}

Address executor_address(const Address & daemon) {
    return {daemon.host, static_cast<uint16_t>(daemon.port + 1)};
}

// What the other daemons ask. Its few threads wait for the store, or for the leader.
class Membership::Service final : public v1::Membership::Service {
public:
    explicit Service(Membership & membership)
        : membership_(membership) {}

    grpc::Status Admit(grpc::ServerContext *, const v1::AdmitRequest * request, v1::AdmitResponse * response) override {
        if (!membership_.authority_) { // whoever is asked, the leader decides
            const auto token = cluster::JoinToken::parse(request->token());
            if (!token.ok()) return to_grpc(token.status());
            return to_grpc(membership_.ask_leader(
                [&](auto * context) { return membership_.leader_->Admit(context, *request, response); }));
        }
        const auto admission =
            membership_.authority_->admit(request->token(), request->signing_request(), request->name());
        if (!admission.ok()) {
            if (may_log_refusal()) {
                spdlog::warn("{} is not let in: {}", printable(request->name()),
                             std::string(admission.status().message()));
            }
            return to_grpc(admission.status());
        }
        spdlog::info("{} joins the cluster", admission->name);
        response->set_name(admission->name);
        response->set_certificate(admission->certificate);
        response->set_cluster(membership_.authority_->cluster());
        response->set_leader(membership_.membership().address);
        return grpc::Status::OK;
    }

    grpc::Status Heartbeat(grpc::ServerContext * context, const v1::HeartbeatRequest * request,
                           v1::HeartbeatResponse * response) override {
        return to_grpc(heartbeat(*context, *request, *response));
    }

    grpc::Status Renew(grpc::ServerContext * context, const v1::RenewRequest * request,
                       v1::RenewResponse * response) override {
        const auto renew = [&]() -> absl::Status {
            STRATA_ASSIGN_OR_RETURN(const cluster::Subject peer, peer_of(*context));
            STRATA_ASSIGN_OR_RETURN(cluster::Authority * authority, membership_.authority());
            STRATA_ASSIGN_OR_RETURN(*response->mutable_certificate(),
                                    authority->renew(peer, request->signing_request()));
            return absl::OkStatus();
        };
        return to_grpc(renew());
    }

private:
    absl::Status heartbeat(const grpc::ServerContext & context, const v1::HeartbeatRequest & request,
                           v1::HeartbeatResponse & response) {
        STRATA_ASSIGN_OR_RETURN(const cluster::Subject peer, peer_of(context));
        STRATA_ASSIGN_OR_RETURN(cluster::Authority * authority, membership_.authority());
        STRATA_RETURN_IF_ERROR(authority->check_member(peer));
        if (request.node().name() != peer.name) {
            return absl::InvalidArgumentError(
                fmt::format("{} says that it is {}", peer.name, printable(request.node().name())));
        }
        STRATA_RETURN_IF_ERROR(membership_.members_->heard(request.node()));
        STRATA_RETURN_IF_ERROR(membership_.learn_from_store(&response)); // who has the state knows it first
        response.set_pause_ms(cluster::Members::kHeartbeat.count());
        return absl::OkStatus();
    }

    Membership & membership_;
};

Membership::Membership(Home home, StateStore & state, Runtime & runtime, Peers & peers, Events events)
    : home_(std::move(home))
    , state_(state)
    , runtime_(runtime)
    , peers_(peers)
    , events_(std::move(events))
    , identity_(home_.cluster() / "identity") {}

Membership::~Membership() {
    stop();
}

void Membership::stop() {
    {
        const std::lock_guard lock(mutex_);
        stopping_ = true;
        for (grpc::ClientContext * context : asking_) context->TryCancel();
    }
    const std::lock_guard joining(joining_);
    end();
}

absl::Status Membership::start(std::string_view listen, std::string_view name) {
    const std::lock_guard joining(joining_);
    STRATA_RETURN_IF_ERROR(check_stopping());
    STRATA_ASSIGN_OR_RETURN(const SavedMembership saved, state_.membership());
    if (!saved.cluster.empty()) {
        if (saved.leader.empty()) STRATA_RETURN_IF_ERROR(open_state());
        return enter(saved);
    }
    if (listen.empty()) return absl::OkStatus();
    STRATA_ASSIGN_OR_RETURN(const Address address, Address::parse(listen, kClusterPort));
    STRATA_RETURN_IF_ERROR(check_ports(address));
    return found(address, name);
}

absl::Status Membership::open_state() {
    std::error_code failed;
    std::filesystem::create_directories(home_.cluster(), failed);
    if (failed) return errno_status(failed.value(), "make the folder", home_.cluster().native());
    STRATA_ASSIGN_OR_RETURN(const cluster::Seal seal, cluster::Seal::open(home_.cluster() / "seal.key"));
    STRATA_ASSIGN_OR_RETURN(store_, cluster::SqliteStore::open(home_.cluster() / "cluster.db", runtime_));
    STRATA_ASSIGN_OR_RETURN(authority_, cluster::Authority::open(*store_, seal, runtime_));
    members_ = std::make_unique<cluster::Members>(*store_, runtime_);
    return absl::OkStatus();
}

absl::Status Membership::found(const Address & listen, std::string_view name) {
    STRATA_RETURN_IF_ERROR(check_free(listen));
    STRATA_RETURN_IF_ERROR(open_state());
    // The state may be an older one that was put back, or its daemon may have been killed right here.
    if (const auto had = identity_.read(); had.ok()) {
        const auto facts = cluster::read_certificate(had->certificate);
        if (facts.ok() && authority_->check_member(facts->subject).ok()) {
            const SavedMembership same{authority_->cluster(), facts->subject.name, listen.to_string(), ""};
            STRATA_RETURN_IF_ERROR(state_.save(same));
            return enter(same);
        }
    }
    cluster::IdentityFiles files;
    files.ca = authority_->ca_certificate();
    STRATA_ASSIGN_OR_RETURN(files.key, cluster::make_key());
    STRATA_ASSIGN_OR_RETURN(const std::string request, cluster::make_request(files.key));
    STRATA_ASSIGN_OR_RETURN(
        const auto admission,
        authority_->admit_self(request, name.empty() ? cluster::node_name_like(host_name()) : name));
    files.certificate = admission.certificate;
    STRATA_RETURN_IF_ERROR(identity_.write(files));
    const SavedMembership membership{authority_->cluster(), admission.name, listen.to_string(), ""};
    STRATA_RETURN_IF_ERROR(state_.save(membership));
    spdlog::info("this is the first node of cluster {}", membership.cluster);
    return enter(membership);
}

absl::Status Membership::join(const v1::JoinRequest & request) {
    const std::lock_guard joining(joining_);
    STRATA_RETURN_IF_ERROR(check_stopping());
    STRATA_RETURN_IF_ERROR(may_join());
    STRATA_ASSIGN_OR_RETURN(const cluster::JoinToken token, cluster::JoinToken::parse(request.token()));
    STRATA_ASSIGN_OR_RETURN(const Address asked, Address::parse(request.address(), kClusterPort));
    const std::string name = request.name().empty() ? cluster::node_name_like(host_name()) : request.name();
    STRATA_RETURN_IF_ERROR(cluster::check_node_name(name));
    STRATA_RETURN_IF_ERROR(check_ports(asked));
    STRATA_ASSIGN_OR_RETURN(const auto contact, cluster::fetch_ca(asked, token.pin, kFirstContact));
    Address listen{contact.own_address, kClusterPort};
    if (!request.listen().empty()) {
        STRATA_ASSIGN_OR_RETURN(listen, Address::parse(request.listen(), kClusterPort));
        STRATA_RETURN_IF_ERROR(check_ports(listen));
    }
    end();                                      // of a cluster that has removed this node
    STRATA_RETURN_IF_ERROR(check_free(listen)); // before anybody is told

    cluster::IdentityFiles files;
    files.ca = contact.ca_certificate;
    STRATA_ASSIGN_OR_RETURN(files.key, cluster::make_key());
    v1::AdmitRequest wish;
    wish.set_token(request.token());
    wish.set_name(name);
    STRATA_ASSIGN_OR_RETURN(*wish.mutable_signing_request(), cluster::make_request(files.key));
    const auto stub = v1::Membership::NewStub(grpc::CreateCustomChannel(
        asked.to_string(),
        grpc::SslCredentials({.pem_root_certs = files.ca, .pem_private_key = "", .pem_cert_chain = ""}),
        to_a_node(kMessageBytes)));
    v1::AdmitResponse admitted;
    STRATA_RETURN_IF_ERROR(
        ask(asked.to_string(), kFirstContact, [&](auto * context) { return stub->Admit(context, wish, &admitted); }));
    files.certificate = admitted.certificate();
    STRATA_RETURN_IF_ERROR(cluster::check_identity(files.ca, files.certificate, files.key));
    STRATA_RETURN_IF_ERROR(identity_.write(files));
    const SavedMembership membership{admitted.cluster(), admitted.name(), listen.to_string(), admitted.leader()};
    STRATA_RETURN_IF_ERROR(state_.save(membership));
    spdlog::info("joined cluster {} as {}", membership.cluster, membership.name);
    return enter(membership);
}

absl::Status Membership::check_stopping() const {
    const std::lock_guard lock(mutex_);
    return stopping_ ? absl::CancelledError("the daemon is stopping") : absl::OkStatus();
}

// A node that its cluster has removed, or whose certificate has run out, may join one again.
absl::Status Membership::may_join() const {
    const std::lock_guard lock(mutex_);
    if (membership_.cluster.empty() || removed_ || expired_) return absl::OkStatus();
    return absl::AlreadyExistsError(fmt::format("this node is {} of cluster {} already; `strata leave` takes it out",
                                                membership_.name, membership_.cluster));
}

absl::StatusOr<std::string> Membership::leave() {
    const std::lock_guard joining(joining_);
    STRATA_RETURN_IF_ERROR(check_stopping());
    const SavedMembership now = membership();
    if (now.cluster.empty()) return absl::FailedPreconditionError("this node is in no cluster");
    if (now.leader.empty()) {
        return absl::FailedPreconditionError(fmt::format("this node has the state of cluster {} and its CA: without it "
                                                         "there is no cluster. To end the cluster, stop "
                                                         "the daemon and remove {}",
                                                         now.cluster, home_.root.native()));
    }
    end(); // else a heartbeat may write it down again
    if (absl::Status status = state_.save(SavedMembership{}); !status.ok()) {
        enter(now).IgnoreError();
        return status;
    }
    {
        const std::lock_guard lock(mutex_);
        membership_ = {};
        removed_ = expired_ = false;
        nodes_.clear();
    }
    peers_.become("", nullptr);
    events_.left();
    STRATA_RETURN_IF_ERROR(identity_.remove());
    spdlog::info("left cluster {}", now.cluster);
    return now.name;
}

void Membership::end() {
    heart_.reset();
    if (server_) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
    leader_.reset();
}

absl::Status Membership::enter(const SavedMembership & membership) {
    {
        const std::lock_guard lock(mutex_);
        membership_ = membership;
        removed_ = expired_ = false;
        nodes_.clear();
    }
    const auto credentials = cluster::channel_credentials(identity_.path());
    peers_.become(membership.name, credentials);
    if (!membership.leader.empty()) {
        leader_ = v1::Membership::NewStub(
            grpc::CreateCustomChannel(membership.leader, credentials, to_a_node(kMessageBytes)));
    }
    // This machine may have another address today: what needs no other node goes on.
    if (const absl::Status status = serve(); !status.ok()) {
        spdlog::error(
            "{}; the other nodes can't reach this one until that address is back, or it joins with another one "
            "(`strata leave`, `strata join`)",
            std::string(status.message()));
    }
    events_.joined(membership, identity_.path());
    heart_ = runtime_.start([this] { return beat(); });
    heart_->wake();
    return absl::OkStatus();
}

absl::Status Membership::serve() {
    const std::string address = membership().address;
    grpc::experimental::TlsServerCredentialsOptions options(cluster::certificate_provider(identity_.path()));
    options.watch_root_certs();
    options.watch_identity_key_cert_pairs();
    // Who joins has none yet; everything else asks for one.
    options.set_cert_request_type(GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY);
    service_ = std::make_unique<Service>(*this);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort(address, grpc::experimental::TlsServerCredentials(options), &port);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0); // else two daemons would share the port
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 4000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, static_cast<int>(kHandshake.count()));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kCallsOfConnection);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, static_cast<int>(kIdle.count()));
    // Certificates are looked at when a connection begins.
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, static_cast<int>(kOldest.count()));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, static_cast<int>(kGrace.count()));
    builder.SetMaxReceiveMessageSize(limits::kMessageBytes);
    builder.SetMaxSendMessageSize(limits::kMessageBytes);
    builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
    builder.SetResourceQuota(grpc::ResourceQuota("membership").SetMaxThreads(kThreads).Resize(kServerBytes));
    builder.RegisterService(service_.get());
    for (grpc::Service * service : services_) builder.RegisterService(service);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port == 0) {
        server_.reset();
        return absl::UnavailableError(fmt::format("cannot listen on {} for the nodes of the cluster", address));
    }
    return absl::OkStatus();
}

// -------------------- heartbeats

v1::Node Membership::self() const {
    v1::Node node = events_.describe_self();
    const std::lock_guard lock(mutex_);
    node.set_name(membership_.name);
    node.set_cluster(membership_.cluster);
    node.set_cluster_address(membership_.address);
    return node;
}

std::chrono::nanoseconds Membership::beat() {
    const absl::Status status = beat_once();
    const std::string complaint(status.message());
    bool news = false;
    std::string leader;
    {
        const std::lock_guard lock(mutex_);
        news = complaint_ != complaint;
        complaint_ = complaint;
        removed_ = absl::IsUnauthenticated(status);
        if (!status.ok()) {
            for (v1::Node & node : nodes_) {
                if (node.name() == membership_.name) continue;
                node.set_state(v1::Node::STATE_SILENT);
                if (node.cluster_address() == membership_.leader) leader = node.name();
            }
        }
    }
    // Whether the others are there, nobody says now; requests to them may go on.
    if (!leader.empty()) peers_.lost(leader);
    if (news && !status.ok() && !absl::IsCancelled(status)) spdlog::warn("the cluster can't be reached: {}", complaint);
    if (news && status.ok()) spdlog::info("the cluster is reached");
    return absl::IsUnauthenticated(status) ? kRefusedPause : cluster::Members::kHeartbeat;
}

template <typename Call>
absl::Status Membership::ask(const std::string & address, milliseconds timeout, Call call) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    {
        const std::lock_guard lock(mutex_);
        if (stopping_) return absl::CancelledError("the daemon is stopping");
        asking_.insert(&context);
    }
    const grpc::Status status = call(&context);
    const std::lock_guard lock(mutex_);
    asking_.erase(&context);
    return status.ok() ? absl::OkStatus() : answer_of(address, status);
}

template <typename Call>
absl::Status Membership::ask_leader(Call call) {
    return ask(membership().leader, kAnswer, call);
}

absl::Status Membership::beat_once() {
    renew_when_due();
    if (members_) {
        STRATA_RETURN_IF_ERROR(members_->heard(self()));
        return learn_from_store(nullptr);
    }
    v1::HeartbeatRequest request;
    *request.mutable_node() = self();
    v1::HeartbeatResponse response;
    STRATA_RETURN_IF_ERROR(ask_leader([&](auto * context) { return leader_->Heartbeat(context, request, &response); }));
    learn({response.nodes().begin(), response.nodes().end()}, {response.removed().begin(), response.removed().end()});
    return absl::OkStatus();
}

absl::Status Membership::learn_from_store(v1::HeartbeatResponse * response) {
    const std::lock_guard learning(learning_);
    STRATA_ASSIGN_OR_RETURN(auto nodes, members_->list());
    STRATA_ASSIGN_OR_RETURN(auto removed, authority_->removed());
    if (response != nullptr) {
        for (const v1::Node & node : nodes) *response->add_nodes() = node;
        for (const std::string & admission : removed) response->add_removed(admission);
    }
    learn(std::move(nodes), std::move(removed));
    return absl::OkStatus();
}

void Membership::learn(std::vector<v1::Node> nodes, std::vector<std::string> removed) {
    peers_.update(nodes);
    SavedMembership changed;
    {
        const std::lock_guard lock(mutex_);
        nodes_ = std::move(nodes);
        if (membership_.removed == removed) return;
        membership_.removed = std::move(removed);
        changed = membership_;
    }
    // A daemon that starts while the leader is away must know it as well.
    if (const absl::Status status = state_.save(changed); !status.ok()) {
        spdlog::error("which nodes were removed is not remembered: {}", std::string(status.message()));
    }
}

// A third of a certificate's time is left for it, so that a failure is not the end of anything yet.
void Membership::renew_when_due() {
    if (runtime_.clock().now() < next_renewal_) return;
    const auto files = identity_.read();
    const auto facts = files.ok() ? cluster::read_certificate(files->certificate)
                                  : absl::StatusOr<cluster::CertificateFacts>(files.status());
    absl::Status status = facts.status();
    if (facts.ok()) {
        const auto now = runtime_.clock().wall();
        const auto due = facts->validity.from + (facts->validity.until - facts->validity.from) / 3 * 2;
        {
            const std::lock_guard lock(mutex_);
            expired_ = now > facts->validity.until;
        }
        if (now < due) return;
        status = renew(*files, facts->subject);
    }
    if (status.ok()) {
        spdlog::info("this node's certificate was renewed");
        return;
    }
    next_renewal_ = runtime_.clock().now() + kRenewalPause;
    spdlog::error("this node's certificate can't be renewed: {}", std::string(status.message()));
}

absl::Status Membership::renew(cluster::IdentityFiles files, const cluster::Subject & subject) {
    STRATA_ASSIGN_OR_RETURN(files.key, cluster::make_key());
    STRATA_ASSIGN_OR_RETURN(const std::string request, cluster::make_request(files.key));
    if (authority_) {
        STRATA_ASSIGN_OR_RETURN(files.certificate, authority_->renew(subject, request));
    } else {
        STRATA_ASSIGN_OR_RETURN(files.certificate, ask_for_certificate(request));
    }
    STRATA_RETURN_IF_ERROR(cluster::check_identity(files.ca, files.certificate, files.key));
    return identity_.write(files);
}

absl::StatusOr<std::string> Membership::ask_for_certificate(const std::string & request) {
    v1::RenewRequest wish;
    wish.set_signing_request(request);
    v1::RenewResponse renewed;
    STRATA_RETURN_IF_ERROR(ask_leader([&](auto * context) { return leader_->Renew(context, wish, &renewed); }));
    return renewed.certificate();
}

// -------------------- what is known

void Membership::hurry() {
    const std::unique_lock joining(joining_, std::try_to_lock); // else a heartbeat comes soon anyway
    if (joining.owns_lock() && heart_) heart_->wake();
}

absl::Status Membership::check_caller(const grpc::ServerContextBase & context) const {
    STRATA_ASSIGN_OR_RETURN(const cluster::Subject peer, peer_of(context));
    const std::lock_guard lock(mutex_);
    if (peer.cluster == membership_.cluster && peer.role == "node" &&
        std::find(membership_.removed.begin(), membership_.removed.end(), peer.admission) ==
            membership_.removed.end()) {
        return absl::OkStatus();
    }
    return absl::UnauthenticatedError(fmt::format("\"{}\" is no node of this cluster", printable(peer.name)));
}

std::vector<v1::Node> Membership::nodes() const {
    const std::lock_guard lock(mutex_);
    return nodes_;
}

absl::StatusOr<std::vector<v1::Node>> Membership::list_nodes() {
    if (authority().ok()) return members_->list();
    return nodes();
}

absl::Status Membership::remove_node(std::string_view name) {
    STRATA_ASSIGN_OR_RETURN(cluster::Authority * authority, this->authority());
    if (name == membership().name) {
        return absl::FailedPreconditionError(
            "this node has the cluster's state and its CA: without it there is no cluster");
    }
    STRATA_RETURN_IF_ERROR(authority->remove_node(name));
    const std::lock_guard joining(joining_);
    if (heart_) heart_->wake(); // this node knows it at once
    return absl::OkStatus();
}

SavedMembership Membership::membership() const {
    const std::lock_guard lock(mutex_);
    return membership_;
}

absl::StatusOr<cluster::Authority *> Membership::authority() const {
    const SavedMembership now = membership();
    if (now.cluster.empty()) {
        return absl::FailedPreconditionError("this node is in no cluster; `strata serve --cluster ADDRESS` begins one, "
                                             "`strata join` takes it into one");
    }
    if (!now.leader.empty()) {
        return absl::FailedPreconditionError(
            fmt::format("the cluster's CA is on the node at {}; run this there", now.leader));
    }
    return authority_.get();
}

} // namespace strata::daemon
