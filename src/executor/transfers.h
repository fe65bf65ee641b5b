#pragma once

#include "base/runtime.h"
#include "executor/blobs.h"

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace strata::executor {

// Gets the blobs that sessions want: out of the store, from the driver that offers them, or from other executors, one
// source after the other; each once, whoever waits for it. What takes long happens on a thread of its own.
// Thread-safe.
class Transfers {
public:
    // Who wants blobs. Calls come from any thread.
    class Waiter {
    public:
        virtual ~Waiter() = default;
        // Its driver is to send the blob.
        virtual void ask_driver(const wire::OfferBlob & offer) = 0;
        // The blob, or why nobody gave it. offer: the waiter's last one of the blob.
        virtual void arrived(const wire::OfferBlob & offer, const absl::StatusOr<std::shared_ptr<Blob>> & blob) = 0;
    };
    // Asks another executor for the piece of a blob that begins at an offset.
    using AskPeer = std::function<absl::Status(const std::string & address, const Digest & digest, uint64_t offset)>;
    using Log = std::function<void(const std::string & line)>;

    // Blobs that are to be kept go to `kept`, the others to `unnamed`.
    Transfers(Runtime & runtime, BlobCache & cache, BlobStore & kept, BlobStore & unnamed, AskPeer ask_peer, Log log);

    void want(const wire::OfferBlob & offer, const std::shared_ptr<Waiter> & waiter);
    // It wants nothing any more, and its driver is gone.
    void leave(const Waiter & waiter);

    // Pieces that arrived. What nobody asked for, or not any more, is dropped.
    void add_from_driver(const Waiter & from, const wire::BlobHead & head, std::span<const uint8_t> data);
    void add_from_peer(const std::string & address, const wire::BlobHead & head, std::span<const uint8_t> data);
    void peer_lost(const std::string & address, const absl::Status & reason);

    // Calls `found` with a blob that is here, or with nullptr, now or later.
    void find(const Digest & digest, std::function<void(std::shared_ptr<Blob>)> found);

private:
    // Digests with one size: who offers a blob with a wrong one disturbs nobody else.
    using Key = std::pair<Digest, uint64_t>;
    struct Claim {
        std::weak_ptr<Waiter> waiter;
        const Waiter * id = nullptr;
        wire::OfferBlob offer;
        bool driver_asked = false;
    };
    struct Transfer {
        std::vector<Claim> claims;
        std::set<std::string> peers_asked;
        uint64_t attempt = 0;            // counts sources
        const Waiter * driver = nullptr; // the source now, or
        std::string peer;
        wire::OfferBlob offer;                       // that names the source
        std::chrono::steady_clock::time_point asked; // the source
        bool begun = false;                          // its first piece came
        std::unique_ptr<BlobReceiver> receiver;      // nullptr before that, while bytes are taken, and after the last
        absl::Status failed;                         // why the sources did not give it
    };
    using Actions = std::vector<std::function<void()>>; // to be run when mutex_ is free

    void post(std::function<void()> task); // mutex_ held
    std::chrono::nanoseconds work_once();
    std::chrono::nanoseconds give_up_silent_sources();
    static bool has_other_source(const Transfer & transfer);
    void look_in_store(const Key & key);
    void next_source(const Key & key, const absl::Status & failed, Actions & actions);
    absl::StatusOr<std::unique_ptr<BlobReceiver>> take_receiver(Transfer & transfer) const;
    void take(const Key & key, uint64_t attempt, std::unique_ptr<BlobReceiver> receiver, uint64_t offset,
              std::span<const uint8_t> data);
    void finish(const Key & key, uint64_t attempt, BlobReceiver & receiver);
    void source_failed(const Key & key, uint64_t attempt, const absl::Status & reason);
    void deliver(const Key & key, const std::shared_ptr<Blob> & blob);

    using Source = std::pair<const Waiter *, std::string>; // a driver, or an executor's address

    const Clock & clock_;
    BlobCache & cache_;
    BlobStore & kept_;
    BlobStore & unnamed_;
    const AskPeer ask_peer_;
    const Log log_;

    std::mutex mutex_;
    std::map<Key, Transfer> transfers_;
    std::map<Source, std::chrono::steady_clock::time_point> heard_; // when it last sent a piece
    std::deque<std::function<void()>> tasks_;
    const std::unique_ptr<Runtime::Worker> worker_; // uses all of the above
};

} // namespace strata::executor
