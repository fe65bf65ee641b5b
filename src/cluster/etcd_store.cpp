#include "cluster/etcd_store.h"

#include "base/address.h"
#include "base/text.h"
#include "cluster/credentials.h"
#include "cluster/keys.h"
#include "cluster/limits.h"
#include "etcd/rpc.grpc.pb.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

namespace strata::cluster {

namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::system_clock;
namespace pb = etcdserverpb;

constexpr uint16_t kDefaultPort = 2379;
constexpr milliseconds kConnect{1000}, kAnswer{5000}, kPause{100};

// One member of the etcd cluster.
struct Member {
    std::string address;
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<pb::KV::Stub> kv;
    std::unique_ptr<pb::Lease::Stub> lease;
    std::unique_ptr<pb::Watch::Stub> watch;

    Member(std::string where, const std::shared_ptr<grpc::ChannelCredentials> & credentials)
        : address(std::move(where)) {
        grpc::ChannelArguments arguments;
        arguments.SetMaxReceiveMessageSize(-1); // a list of many keys
        arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
        arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
        arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
        arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
        arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
        arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
        arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
        channel = grpc::CreateCustomChannel(address, credentials, arguments);
        kv = pb::KV::NewStub(channel);
        lease = pb::Lease::NewStub(channel);
        watch = pb::Watch::NewStub(channel);
    }

    bool connected() const { return channel->WaitForConnected(system_clock::now() + kConnect); }
};

bool another_may_do(const grpc::Status & status) {
    return status.error_code() == grpc::StatusCode::UNAVAILABLE ||
           status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED;
}

class Etcd final : public Store {
public:
    explicit Etcd(const EtcdOptions & options)
        : prefix_(options.prefix)
        , patience_(options.patience) {
        std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
        if (!options.tls.empty()) {
            credentials = channel_credentials(options.tls);
        }
        for (const std::string & endpoint : options.endpoints) {
            members_.push_back(std::make_unique<Member>(endpoint, credentials));
        }
    }

    absl::StatusOr<std::optional<Entry>> get(std::string_view key) override {
        STRATA_RETURN_IF_ERROR(check_key(key));
        STRATA_ASSIGN_OR_RETURN(const auto found, range(prefix_ + std::string(key), ""));
        if (found.kvs().empty()) return std::nullopt;
        return entry_of(found.kvs(0));
    }

    absl::StatusOr<Listing> list(std::string_view prefix) override {
        const std::string all = prefix_ + std::string(prefix);
        STRATA_ASSIGN_OR_RETURN(const auto found, range(all, behind(all)));
        Listing listing;
        listing.revision = found.header().revision();
        for (const pb::KeyValue & pair : found.kvs()) listing.entries.push_back(entry_of(pair));
        return listing;
    }

    absl::StatusOr<int64_t> commit(const Transaction & transaction) override {
        STRATA_RETURN_IF_ERROR(check(transaction));
        pb::TxnRequest request;
        for (const auto & condition : transaction.conditions) {
            pb::Compare & compare = *request.add_compare();
            compare.set_target(pb::Compare::MOD); // 0 for a key that is not there
            compare.set_key(prefix_ + condition.key);
            compare.set_mod_revision(condition.revision);
        }
        for (const auto & put : transaction.puts) {
            pb::PutRequest & wish = *request.add_success()->mutable_request_put();
            wish.set_key(prefix_ + put.key);
            wish.set_value(put.value);
            wish.set_lease(put.lease);
        }
        for (const std::string & key : transaction.removals) {
            request.add_success()->mutable_request_delete_range()->set_key(prefix_ + key);
        }
        pb::TxnResponse response;
        STRATA_RETURN_IF_ERROR(write("commit to", [&](const Member & member, grpc::ClientContext & context) {
            return member.kv->Txn(&context, request, &response);
        }));
        if (!response.succeeded()) {
            return absl::AbortedError(fmt::format("{} was changed meanwhile", transaction.conditions.front().key));
        }
        return response.header().revision();
    }

    absl::StatusOr<int64_t> grant_lease(int64_t ttl_ms) override {
        STRATA_RETURN_IF_ERROR(check_lease_time(ttl_ms));
        pb::LeaseGrantRequest request;
        request.set_ttl((ttl_ms + 999) / 1000);
        pb::LeaseGrantResponse response;
        // One that was granted and not told of ends by itself.
        STRATA_RETURN_IF_ERROR(ask("get a lease from", [&](const Member & member, grpc::ClientContext & context) {
            return member.lease->LeaseGrant(&context, request, &response);
        }));
        if (!response.error().empty()) return absl::ResourceExhaustedError(response.error());
        return response.id();
    }

    absl::Status renew_lease(int64_t lease) override {
        pb::LeaseKeepAliveRequest request;
        request.set_id(lease);
        pb::LeaseKeepAliveResponse response;
        STRATA_RETURN_IF_ERROR(ask("renew a lease at", [&](const Member & member, grpc::ClientContext & context) {
            const auto stream = member.lease->LeaseKeepAlive(&context);
            const bool answered = stream->Write(request) && stream->WritesDone() && stream->Read(&response);
            context.TryCancel(); // one is enough
            const grpc::Status status = stream->Finish();
            return answered ? grpc::Status::OK : status;
        }));
        return response.ttl() > 0 ? absl::OkStatus() : absl::NotFoundError(fmt::format("lease {} has ended", lease));
    }

    absl::Status end_lease(int64_t lease) override {
        pb::LeaseRevokeRequest request;
        request.set_id(lease);
        pb::LeaseRevokeResponse response;
        return write("end a lease at", [&](const Member & member, grpc::ClientContext & context) {
            return member.lease->LeaseRevoke(&context, request, &response);
        });
    }

    absl::StatusOr<std::unique_ptr<Watch>> watch(std::string_view prefix, int64_t after, OnChanges changes,
                                                 OnEnd ended) override {
        auto watcher = std::make_unique<Watcher>(*this, prefix_ + std::string(prefix), after, std::move(changes),
                                                 std::move(ended));
        STRATA_RETURN_IF_ERROR(watcher->begin());
        return watcher;
    }

private:
    using Call = std::function<grpc::Status(const Member &, grpc::ClientContext &)>;

    // A thread that reads one stream after the other, each from where the last one broke.
    class Watcher final : public Watch {
    public:
        Watcher(Etcd & store, std::string prefix, int64_t after, OnChanges changes, OnEnd ended)
            : store_(store)
            , prefix_(std::move(prefix))
            , seen_(after)
            , changes_(std::move(changes))
            , ended_(std::move(ended)) {}

        // Returns when a member watches, or with the reason why none can.
        absl::Status begin() {
            thread_ = std::thread([this] { run(); });
            std::unique_lock lock(mutex_);
            changed_.wait_for(lock, kAnswer, [this] { return begun_ || over_; });
            return begun_ ? absl::OkStatus() : over_ ? why_ : absl::UnavailableError("etcd does not watch");
        }

        ~Watcher() override {
            {
                const std::lock_guard lock(mutex_);
                stopping_ = true;
                if (context_ != nullptr) context_->TryCancel();
            }
            changed_.notify_all();
            if (thread_.joinable()) thread_.join();
        }

    private:
        void run() {
            while (true) {
                const absl::Status broken = follow();
                std::unique_lock lock(mutex_);
                if (stopping_) return;
                if (absl::IsOutOfRange(broken)) {
                    over_ = true;
                    why_ = broken;
                    const bool told = !begun_; // begin() says it
                    lock.unlock();
                    changed_.notify_all();
                    if (!told) ended_(broken);
                    return;
                }
                store_.try_another();
                changed_.wait_for(lock, kPause, [this] { return stopping_; });
                if (stopping_) return;
            }
        }

        absl::Status follow() {
            const Member & member = store_.current();
            grpc::ClientContext context;
            {
                const std::lock_guard lock(mutex_);
                if (stopping_) return absl::OkStatus();
                context_ = &context;
            }
            absl::Status status = follow(member, context);
            const std::lock_guard lock(mutex_);
            context_ = nullptr;
            return status;
        }

        absl::Status follow(const Member & member, grpc::ClientContext & context) {
            const auto stream = member.watch->Watch(&context);
            pb::WatchRequest request;
            pb::WatchCreateRequest & wish = *request.mutable_create_request();
            wish.set_key(prefix_);
            wish.set_range_end(behind(prefix_));
            wish.set_start_revision(seen_ + 1);
            stream->Write(request);
            pb::WatchResponse response;
            while (stream->Read(&response)) {
                if (response.canceled()) {
                    context.TryCancel();
                    stream->Finish();
                    if (response.compact_revision() == 0) return absl::UnavailableError(response.cancel_reason());
                    return absl::OutOfRangeError(
                        fmt::format("what changed after revision {} is known from revision {} on only", seen_,
                                    response.compact_revision()));
                }
                if (response.created()) {
                    const std::lock_guard lock(mutex_);
                    begun_ = true;
                    changed_.notify_all();
                }
                tell(response);
            }
            return absl::UnavailableError(stream->Finish().error_message());
        }

        void tell(const pb::WatchResponse & response) {
            std::vector<Change> changes;
            for (int i = 0; i < response.events_size(); ++i) {
                const pb::Event & event = response.events(i);
                changes.push_back({store_.own_key(event.kv().key()),
                                   event.type() == pb::Event::PUT ? std::optional(event.kv().value()) : std::nullopt,
                                   event.kv().mod_revision()});
                const bool last = i + 1 == response.events_size() ||
                                  response.events(i + 1).kv().mod_revision() != event.kv().mod_revision();
                if (!last) continue;
                std::sort(changes.begin(), changes.end(), [](const auto & a, const auto & b) { return a.key < b.key; });
                changes_(changes);
                changes.clear();
                seen_ = event.kv().mod_revision();
            }
        }

        Etcd & store_;
        const std::string prefix_;
        int64_t seen_; // of the thread
        const OnChanges changes_;
        const OnEnd ended_;

        std::mutex mutex_;
        std::condition_variable changed_;
        grpc::ClientContext * context_ = nullptr;
        bool begun_ = false, over_ = false, stopping_ = false;
        absl::Status why_;
        std::thread thread_; // last: it uses the others
    };

    const Member & current() const { return *members_[current_ % members_.size()]; }
    void try_another() { ++current_; }

    std::string own_key(const std::string & key) const { return key.substr(prefix_.size()); }
    Entry entry_of(const pb::KeyValue & pair) const { return {own_key(pair.key()), pair.value(), pair.mod_revision()}; }

    absl::StatusOr<pb::RangeResponse> range(const std::string & key, const std::string & end) {
        pb::RangeRequest request;
        request.set_key(key);
        request.set_range_end(end);
        pb::RangeResponse response;
        STRATA_RETURN_IF_ERROR(ask("read from", [&](const Member & member, grpc::ClientContext & context) {
            return member.kv->Range(&context, request, &response);
        }));
        return response;
    }

    // A call that may be made twice: any member that answers will do.
    absl::Status ask(std::string_view what, const Call & call) {
        grpc::Status status;
        const auto until = std::chrono::steady_clock::now() + patience_;
        for (size_t i = 1;; ++i) {
            const Member & member = current();
            if (member.connected()) {
                grpc::ClientContext context;
                context.set_deadline(system_clock::now() + kAnswer);
                status = call(member, context);
                if (!another_may_do(status)) break;
            } else {
                status = {grpc::StatusCode::UNAVAILABLE, fmt::format("{} does not answer", member.address)};
            }
            if (std::chrono::steady_clock::now() >= until) break;
            try_another();
            if (i % members_.size() == 0) std::this_thread::sleep_for(kPause);
        }
        return result(what, status);
    }

    // A call that is made once: when the connection breaks during it, nobody knows whether it counted.
    absl::Status write(std::string_view what, const Call & call) {
        for (size_t i = 1; i < members_.size() && !current().connected(); ++i) try_another();
        grpc::ClientContext context;
        context.set_deadline(system_clock::now() + kAnswer);
        const grpc::Status status = call(current(), context);
        if (another_may_do(status)) try_another();
        return result(what, status);
    }

    absl::Status result(std::string_view what, const grpc::Status & status) const {
        if (status.ok()) return absl::OkStatus();
        if (another_may_do(status)) {
            std::vector<std::string> addresses;
            for (const auto & member : members_) addresses.push_back(member->address);
            return absl::UnavailableError(
                fmt::format("cannot {} etcd ({}): {}", what, fmt::join(addresses, ", "), status.error_message()));
        }
        return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                            fmt::format("cannot {} etcd: {}", what, status.error_message()));
    }

    const std::string prefix_;
    const milliseconds patience_;
    std::vector<std::unique_ptr<Member>> members_;
    std::atomic<size_t> current_{0};
};

} // namespace

absl::StatusOr<EtcdOptions> EtcdOptions::parse(std::string_view url) {
    constexpr std::string_view kScheme = "etcd://";
    if (!url.starts_with(kScheme)) {
        return absl::InvalidArgumentError(
            fmt::format("\"{}\" is no state store; write etcd://HOST:PORT,HOST:PORT[/PREFIX]", printable(url)));
    }
    url.remove_prefix(kScheme.size());
    EtcdOptions options;
    const size_t slash = url.find('/');
    const std::string_view prefix = slash == std::string_view::npos ? "strata" : url.substr(slash + 1);
    options.prefix = fmt::format("{}/", std::string(prefix));
    STRATA_RETURN_IF_ERROR(check_key(options.prefix));
    url = url.substr(0, slash);
    while (true) {
        const size_t comma = url.find(',');
        STRATA_ASSIGN_OR_RETURN(const Address address, Address::parse(url.substr(0, comma), kDefaultPort));
        options.endpoints.push_back(address.to_string());
        if (comma == std::string_view::npos) return options;
        url.remove_prefix(comma + 1);
    }
}

absl::StatusOr<std::unique_ptr<Store>> open_etcd_store(const EtcdOptions & options) {
    if (options.endpoints.empty()) return absl::InvalidArgumentError("etcd has at least one member");
    auto store = std::make_unique<Etcd>(options);
    STRATA_RETURN_IF_ERROR(store->list("none/").status()); // says what is wrong now, and not with the first request
    return store;
}

} // namespace strata::cluster
