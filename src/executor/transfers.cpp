#include "executor/transfers.h"

#include "executor/limits.h"

#include <absl/strings/str_cat.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace strata::executor {

Transfers::Transfers(Runtime & runtime, BlobCache & cache, BlobStore & kept, BlobStore & unnamed, AskPeer ask_peer,
                     Log log)
    : clock_(runtime.clock())
    , cache_(cache)
    , kept_(kept)
    , unnamed_(unnamed)
    , ask_peer_(std::move(ask_peer))
    , log_(std::move(log))
    , worker_(runtime.start([this] { return work_once(); })) {}

// -------------------- the thread for what takes long

void Transfers::post(std::function<void()> task) {
    tasks_.push_back(std::move(task));
    worker_->wake();
}

std::chrono::nanoseconds Transfers::work_once() {
    std::function<void()> task;
    {
        const std::lock_guard lock(mutex_);
        if (!tasks_.empty()) {
            task = std::move(tasks_.front());
            tasks_.pop_front();
        }
    }
    if (task == nullptr) return give_up_silent_sources();
    task();
    return Runtime::kMore;
}

void Transfers::look_in_store(const Key & key) {
    auto mapped = kept_.open(key.first, key.second);
    if (mapped.ok()) return deliver(key, cache_.add(key.first, *std::move(mapped)));
    const bool missing = absl::IsNotFound(mapped.status());
    if (!missing) log_(std::string(mapped.status().message()));
    source_failed(key, 0, missing ? absl::OkStatus() : mapped.status());
}

void Transfers::find(const Digest & digest, std::function<void(std::shared_ptr<Blob>)> found) {
    if (auto blob = cache_.find(digest)) return found(std::move(blob));
    {
        const std::lock_guard lock(mutex_);
        if (tasks_.size() < kMaxStoreTasks) {
            return post([this, digest, found = std::move(found)] {
                auto mapped = kept_.open(digest, 0);
                found(mapped.ok() ? cache_.add(digest, *std::move(mapped)) : nullptr);
            });
        }
    }
    found(nullptr);
}

// -------------------- who wants what

void Transfers::want(const wire::OfferBlob & offer, const std::shared_ptr<Waiter> & waiter) {
    if (const auto blob = cache_.find(offer.digest); blob != nullptr && blob->bytes().size() == offer.bytes) {
        return waiter->arrived(offer, blob);
    }
    const Key key{offer.digest, offer.bytes};
    Actions actions;
    {
        const std::lock_guard lock(mutex_);
        auto [found, inserted] = transfers_.try_emplace(key);
        Transfer & transfer = found->second;
        std::erase_if(transfer.claims, [&](const Claim & claim) { return claim.id == waiter.get(); });
        transfer.claims.push_back({waiter, waiter.get(), offer, false});
        if (inserted)
            post([this, key] { look_in_store(key); });
        else
            worker_->wake(); // there is somebody else to ask now
        if (transfer.driver == waiter.get()) next_source(key, absl::CancelledError("offered again"), actions);
    }
    for (const auto & action : actions) action();
}

void Transfers::leave(const Waiter & waiter) {
    Actions actions;
    {
        const std::lock_guard lock(mutex_);
        heard_.erase({&waiter, ""});
        for (auto at = transfers_.begin(); at != transfers_.end();) {
            auto & [key, transfer] = *at++; // next_source may remove it
            std::erase_if(transfer.claims, [&](const Claim & claim) { return claim.id == &waiter; });
            if (transfer.claims.empty() || transfer.driver == &waiter)
                next_source(key, absl::UnavailableError("the driver that sent it left"), actions);
        }
    }
    for (const auto & action : actions) action();
}

// -------------------- sources

// Only now that bytes come: many offers cost no files. nullptr: another thread has it. mutex_ held.
absl::StatusOr<std::unique_ptr<BlobReceiver>> Transfers::take_receiver(Transfer & transfer) const {
    if (std::exchange(transfer.begun, true)) return std::move(transfer.receiver);
    const wire::OfferBlob & offer = transfer.offer;
    STRATA_ASSIGN_OR_RETURN(auto writer, (offer.keep ? kept_ : unnamed_).create(offer.digest, offer.bytes));
    return std::make_unique<BlobReceiver>(std::move(writer), offer.bytes, offer.parts);
}

// Asks the next one that may have the blob; tells all who wait when there is none. mutex_ held; may remove the
// transfer.
void Transfers::next_source(const Key & key, const absl::Status & failed, Actions & actions) {
    const auto found = transfers_.find(key);
    if (found == transfers_.end()) return;
    Transfer & transfer = found->second;
    // That somebody does not have it is not what to tell when there was something else.
    if (transfer.failed.ok() || (absl::IsNotFound(transfer.failed) && !failed.ok()))
        transfer.failed = failed;
    else if (!failed.ok() && !absl::IsNotFound(failed))
        transfer.failed = absl::Status(failed.code(), absl::StrCat(transfer.failed.message(), "; ", failed.message()));
    ++transfer.attempt;
    transfer.receiver.reset();
    transfer.begun = false;
    transfer.driver = nullptr;
    transfer.peer.clear();
    transfer.asked = clock_.now();
    for (Claim & claim : transfer.claims) {
        const auto waiter = claim.waiter.lock();
        if (waiter == nullptr || !claim.offer.from_driver || std::exchange(claim.driver_asked, true)) continue;
        transfer.offer = claim.offer;
        transfer.driver = claim.id;
        actions.emplace_back([waiter, offer = claim.offer] { waiter->ask_driver(offer); });
        return;
    }
    for (Claim & claim : transfer.claims) {
        for (const std::string & address : claim.offer.sources) {
            if (!transfer.peers_asked.insert(address).second) continue;
            transfer.offer = claim.offer;
            transfer.peer = address;
            actions.emplace_back([this, key, address, attempt = transfer.attempt] {
                if (const absl::Status asked = ask_peer_(address, key.first, 0); !asked.ok())
                    source_failed(key, attempt, asked);
            });
            return;
        }
    }
    const absl::Status status =
        absl::NotFoundError(transfer.failed.ok() ? fmt::format("nobody has blob {}", key.first.to_string())
                                                 : fmt::format("nobody gave blob {}: {}", key.first.to_string(),
                                                               std::string(transfer.failed.message())));
    for (const Claim & claim : transfer.claims) {
        if (const auto waiter = claim.waiter.lock())
            actions.emplace_back([waiter, offer = claim.offer, status] { waiter->arrived(offer, status); });
    }
    transfers_.erase(found);
}

// attempt: of which source this is said. What is said of an earlier one means nothing.
void Transfers::source_failed(const Key & key, uint64_t attempt, const absl::Status & reason) {
    Actions actions;
    {
        const std::lock_guard lock(mutex_);
        const auto found = transfers_.find(key);
        if (found == transfers_.end() || found->second.attempt != attempt) return;
        const Transfer & transfer = found->second;
        if (!reason.ok() && attempt > 0) {
            log_(fmt::format("blob {} from {}: {}", key.first.to_string(),
                             transfer.peer.empty() ? "the driver" : transfer.peer, std::string(reason.message())));
        }
        next_source(key, reason, actions);
    }
    for (const auto & action : actions) action();
}

// Sources that sent nothing of any blob for long, where there is somebody else to ask. How long until there may be more
// of them.
std::chrono::nanoseconds Transfers::give_up_silent_sources() {
    std::vector<std::pair<Key, uint64_t>> silent;
    std::chrono::nanoseconds next = Runtime::kUntilWoken;
    {
        const std::lock_guard lock(mutex_);
        const auto now = clock_.now();
        for (auto & [key, transfer] : transfers_) {
            const Source source{transfer.driver, transfer.peer};
            if (source == Source{} || !has_other_source(transfer)) continue;
            const auto heard = heard_.find(source);
            const auto since = heard == heard_.end() ? transfer.asked : std::max(transfer.asked, heard->second);
            const std::chrono::nanoseconds left = since + kSourcePatience - now;
            if (left.count() <= 0)
                silent.emplace_back(key, transfer.attempt);
            else
                next = std::min(next, left);
        }
    }
    for (const auto & [key, attempt] : silent)
        source_failed(key, attempt, absl::DeadlineExceededError("it sent nothing for too long"));
    return silent.empty() ? next : Runtime::kMore;
}

bool Transfers::has_other_source(const Transfer & transfer) {
    return std::ranges::any_of(transfer.claims, [&](const Claim & claim) {
        return (claim.offer.from_driver && !claim.driver_asked) ||
               std::ranges::any_of(claim.offer.sources,
                                   [&](const auto & address) { return !transfer.peers_asked.contains(address); });
    });
}

void Transfers::peer_lost(const std::string & address, const absl::Status & reason) {
    std::vector<std::pair<Key, uint64_t>> lost;
    {
        const std::lock_guard lock(mutex_);
        heard_.erase({nullptr, address});
        for (const auto & [key, transfer] : transfers_) {
            if (transfer.peer == address) lost.emplace_back(key, transfer.attempt);
        }
    }
    for (const auto & [key, attempt] : lost) source_failed(key, attempt, reason);
}

// -------------------- bytes

void Transfers::add_from_driver(const Waiter & from, const wire::BlobHead & head, std::span<const uint8_t> data) {
    const Key key{head.digest, head.total_bytes};
    absl::StatusOr<std::unique_ptr<BlobReceiver>> receiver;
    uint64_t attempt = 0;
    {
        const std::lock_guard lock(mutex_);
        heard_[{&from, ""}] = clock_.now();
        const auto found = transfers_.find(key);
        if (found == transfers_.end() || found->second.driver != &from) return;
        receiver = take_receiver(found->second);
        attempt = found->second.attempt;
    }
    if (!receiver.ok()) return source_failed(key, attempt, receiver.status());
    if (*receiver != nullptr) take(key, attempt, *std::move(receiver), head.offset, data);
}

void Transfers::add_from_peer(const std::string & address, const wire::BlobHead & head, std::span<const uint8_t> data) {
    Key key;
    absl::StatusOr<std::unique_ptr<BlobReceiver>> receiver = nullptr;
    uint64_t attempt = 0;
    {
        const std::lock_guard lock(mutex_);
        heard_[{nullptr, address}] = clock_.now();
        auto found = transfers_.lower_bound({head.digest, 0});
        while (found != transfers_.end() && found->first.first == head.digest && found->second.peer != address) ++found;
        if (found == transfers_.end() || found->first.first != head.digest) return;
        key = found->first;
        attempt = found->second.attempt;
        if (head.total_bytes == key.second) receiver = take_receiver(found->second);
    }
    if (head.total_bytes == 0) return source_failed(key, attempt, absl::NotFoundError("it does not have the blob"));
    if (head.total_bytes != key.second) {
        return source_failed(
            key, attempt,
            absl::DataLossError(fmt::format("it has {} bytes instead of {}", head.total_bytes, key.second)));
    }
    if (!receiver.ok()) return source_failed(key, attempt, receiver.status());
    if (*receiver == nullptr) return;
    // The next piece comes while this one is hashed and written.
    if (const uint64_t next = head.offset + data.size(); !data.empty() && next < key.second) {
        if (const absl::Status asked = ask_peer_(address, key.first, next); !asked.ok())
            return source_failed(key, attempt, asked);
    }
    take(key, attempt, *std::move(receiver), head.offset, data);
}

void Transfers::take(const Key & key, uint64_t attempt, std::unique_ptr<BlobReceiver> receiver, uint64_t offset,
                     std::span<const uint8_t> data) {
    if (const absl::Status added = receiver->add(offset, data); !added.ok()) return source_failed(key, attempt, added);
    const std::lock_guard lock(mutex_);
    if (receiver->whole()) {
        std::shared_ptr<BlobReceiver> whole = std::move(receiver);
        return post([this, key, attempt, whole] { finish(key, attempt, *whole); });
    }
    const auto found = transfers_.find(key);
    if (found != transfers_.end() && found->second.attempt == attempt) found->second.receiver = std::move(receiver);
}

// Right bytes are welcome even when their source was given up meanwhile.
void Transfers::finish(const Key & key, uint64_t attempt, BlobReceiver & receiver) {
    auto mapped = receiver.finish();
    if (!mapped.ok()) return source_failed(key, attempt, mapped.status());
    deliver(key, cache_.add(key.first, *std::move(mapped)));
}

void Transfers::deliver(const Key & key, const std::shared_ptr<Blob> & blob) {
    std::vector<std::pair<std::shared_ptr<Waiter>, wire::OfferBlob>> waiters;
    {
        const std::lock_guard lock(mutex_);
        const auto found = transfers_.find(key);
        if (found == transfers_.end()) return;
        for (const Claim & claim : found->second.claims) {
            if (auto waiter = claim.waiter.lock()) waiters.emplace_back(std::move(waiter), claim.offer);
        }
        transfers_.erase(found);
    }
    for (const auto & [waiter, offer] : waiters) waiter->arrived(offer, blob);
}

} // namespace strata::executor
