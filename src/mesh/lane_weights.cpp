#include "base/text.h"
#include "mesh/lane_internal.h"
#include "mesh/limits.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::mesh {

void Lane::set_weight(const ggml_tensor & tensor, const void * data) {
    const std::lock_guard lock(mutex_);
    if (!failed_.ok()) return;
    const uint64_t address = address_of(tensor);
    const std::span<const uint8_t> bytes(static_cast<const uint8_t *>(data), ggml_nbytes(&tensor));
    make_plain({address, bytes.size()});
    if (bindings_.empty()) bind_by_size();
    WeightInfo & weight = weights_[address];
    weight.name = tensor.name;
    weight.layer = layer_of(tensor.name);
    weight.type = tensor.type;
    std::copy_n(tensor.ne, weight.ne.size(), weight.ne.begin());
    weight.bytes = bytes.size();
    weight_names_.insert(weight.name);
    ++bindings_version_;
    if (options_.model != nullptr) {
        const auto place = options_.model->tensors.find(weight.name);
        if (place != options_.model->tensors.end() && place->second.bytes == weight.bytes) {
            const size_t number = place->second.layer;
            const ModelLayers::Layer & layer = options_.model->layers[number];
            weight.blob = layer.digest;
            weight.offset = place->second.offset;
            auto [source, inserted] = blobs_.try_emplace(weight.blob);
            if (!inserted) return;
            source->second.offer = {0, layer.digest, layer.bytes, true, true, layer.tensors, {}};
            source->second.open = [model = options_.model, number] { return model->open(number); };
            return;
        }
    }
    // Whoever gives no digests gives bytes, now or never.
    weight.blob = Digest::of(std::as_bytes(bytes));
    Source & source = blobs_[weight.blob];
    source.offer = {0, weight.blob, weight.bytes, true, false, {}, {}};
    source.open = [bytes] { return MappedBytes{bytes, nullptr}; };
    const size_t executor = executor_of(weight.layer);
    const absl::Status sent = bring_weights({{address, executor}});
    absl::Status kept;
    source.open = nullptr;
    if (options_.on_loss != LaneOptions::OnLoss::kFail) {
        kept = kept_.add(weight.blob, bytes);
        source.open = [this, digest = weight.blob] { return kept_.get(digest); };
    }
    const bool lost = (lost_ & holder(executor)) != 0 || !status_locked().ok();
    const bool mendable = source.open != nullptr && lost;
    if (!kept.ok() || (!sent.ok() && !mendable)) fail(kept.ok() ? sent : kept).IgnoreError();
}

bool Lane::has_weight(std::string_view name) const {
    const std::lock_guard lock(mutex_);
    return weight_names_.contains(std::string(name));
}

void Lane::begin_loading() {
    const std::lock_guard lock(mutex_);
    loading_ = true;
}

void Lane::end_loading() {
    const std::lock_guard lock(mutex_);
    loading_ = false;
    progress_ = nullptr;
}

// Says to an executor where it can have a blob.
Lane::Delivery Lane::offer(const Digest & blob, size_t executor) {
    const Source & source = blobs_.at(blob);
    Delivery delivery{executor, blob, source.offer.bytes, {}};
    if (source.open) {
        auto mapped = source.open();
        if (mapped.ok() && mapped->bytes.size() == delivery.bytes) {
            delivery.mapped = *std::move(mapped);
        } else if (!absl::IsNotFound(mapped.status())) {
            options_.log(fmt::format("blob {} can't be used: {}", blob.to_string(),
                                     mapped.ok() ? "it has another size" : std::string(mapped.status().message())));
        }
    }
    wire::OfferBlob offer = source.offer;
    offer.from_driver = !delivery.mapped.bytes.empty();
    Holders holders = 0;
    for (const auto & [address, weight] : weights_) {
        if (weight.blob == blob) holders |= weight.bound;
    }
    // Those that have it bound, then those that may have it in their stores.
    const Holders others = ~(lost_ | holder(executor));
    for (const Holders these : {holders & others, ~holders & others}) {
        for (size_t i = 0; i < links_.size(); ++i) {
            const std::string & address = links_[i]->executor_address();
            if ((these & holder(i)) != 0 && address != links_[executor]->executor_address() &&
                std::ranges::find(offer.sources, address) == offer.sources.end()) {
                offer.sources.push_back(address);
            }
        }
    }
    links_[executor]->offer(offer);
    return delivery;
}

// Binds weights at executors, and sees to it that these have them: out of their stores, from here, or from others. All
// executors at once. With the lane's lock the lane goes on while there is something to wait for.
absl::Status Lane::bring_weights(const std::vector<Wanted> & wanted, std::unique_lock<std::mutex> * lock) {
    std::vector<Delivery> deliveries = offer_and_bind(wanted);
    flush();
    return await(deliveries, lock);
}

absl::Status Lane::await(std::vector<Delivery> & deliveries, std::unique_lock<std::mutex> * lock) {
    while (true) {
        const uint64_t changes = signal_->seen();
        const auto progress = deliver(deliveries);
        if (!progress.ok() && lock != nullptr && !status_locked().ok()) {
            STRATA_RETURN_IF_ERROR(note_losses()); // the lane makes up for them with its next step
            continue;
        }
        if (!progress.ok()) {
            give_up(deliveries);
            return progress.status();
        }
        if (*progress == Delivering::kDone) return absl::OkStatus();
        if (lock != nullptr) lock->unlock();
        if (*progress != Delivering::kSent) {
            signal_->wait_for_change(changes, *progress == Delivering::kFull ? kFullLinkPause : kIdlePause);
        }
        if (lock != nullptr) lock->lock();
    }
}

std::vector<Lane::Delivery> Lane::offer_and_bind(const std::vector<Wanted> & wanted) {
    std::vector<Delivery> deliveries;
    absl::flat_hash_set<std::pair<size_t, Digest>> offered;
    for (const Wanted & item : wanted) {
        const WeightInfo & weight = weights_.at(item.weight);
        if (offered.insert({item.executor, weight.blob}).second)
            deliveries.push_back(offer(weight.blob, item.executor));
    }
    for (const Wanted & item : wanted) {
        WeightInfo & weight = weights_.at(item.weight);
        links_[item.executor]->add(wire::BindWeight{item.weight, weight.blob, weight.offset, weight.type, weight.ne});
        weight.bound |= holder(item.executor);
    }
    return deliveries;
}

// They are offered and bound again when somebody wants them.
void Lane::give_up(const std::vector<Delivery> & deliveries) {
    for (const Delivery & delivery : deliveries) {
        if (delivery.done) continue;
        for (auto & [address, weight] : weights_) {
            if (weight.blob == delivery.blob) weight.bound &= ~holder(delivery.executor);
        }
    }
}

// Looks at all answers once, and sends what there is room for.
absl::StatusOr<Delivering> Lane::deliver(std::vector<Delivery> & deliveries) {
    auto progress = Delivering::kDone;
    // What an executor waits for may be lost elsewhere.
    STRATA_RETURN_IF_ERROR(status_locked());
    uint64_t done = 0, total = 0;
    bool news = false;
    Holders sending = 0; // one blob at a time to each
    for (Delivery & delivery : deliveries) {
        total += delivery.bytes;
        if (!delivery.done) {
            const Link & link = *links_[delivery.executor];
            STRATA_RETURN_IF_ERROR(link.status());
            const auto answer = link.answer(delivery.blob);
            if (answer.has_value() && answer->state == wire::BlobState::kMissing) {
                return absl::NotFoundError(
                    fmt::format("executor {}: {}", link.address(), printable(answer->reason, 1000)));
            }
            delivery.done = answer.has_value() && answer->state == wire::BlobState::kHave;
            news = news || delivery.done;
            const bool needed = answer.has_value() && answer->state == wire::BlobState::kNeed;
            if (!delivery.done) progress = std::max(progress, Delivering::kWaits);
            if (needed && !delivery.mapped.bytes.empty() && (sending & holder(delivery.executor)) == 0 &&
                delivery.sent < delivery.bytes) {
                sending |= holder(delivery.executor);
                progress = std::max(progress, send_piece(delivery) ? Delivering::kSent : Delivering::kFull);
            }
        }
        if (delivery.done) done += delivery.bytes;
    }
    if (news && progress_) progress_(done, total);
    return progress;
}

// False when there is no room.
bool Lane::send_piece(Delivery & delivery) {
    Link & link = *links_[delivery.executor];
    if (!link.has_room()) return false;
    const auto piece =
        delivery.mapped.bytes.subspan(delivery.sent, std::min(kPieceBytes, delivery.bytes - delivery.sent));
    link.send_blob({delivery.blob, delivery.sent, delivery.bytes}, {piece, delivery.mapped.owner});
    delivery.sent += piece.size();
    return true;
}

} // namespace strata::mesh
