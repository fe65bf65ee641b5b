#include "executor/executor.h"
#include "executor/session.h"

#include <fmt/format.h>

#include <algorithm>

// A session's commands for blobs and the weights in them.
namespace strata::executor {

absl::StatusOr<bool> Session::execute(const wire::OfferBlob & command) {
    if (offers_.size() >= kMaxOffers) return absl::ResourceExhaustedError("too many offers");
    if (command.bytes > kMaxAddressSpaceBytes) return absl::InvalidArgumentError("a blob that is too large");
    Offer & offer = offers_[command.digest];
    offers_held_bytes_ -= offer.held_bytes;
    offer = {command.bytes, command.parts.size() * sizeof(wire::BlobPart)};
    for (const std::string & source : command.sources) offer.held_bytes += sizeof(std::string) + source.size();
    offers_held_bytes_ += offer.held_bytes;
    if (offers_held_bytes_ > kMaxOffersBytes) return absl::ResourceExhaustedError("offers of too many parts");
    executor_.transfers().want(command, shared_from_this());
    return true;
}

absl::StatusOr<bool> Session::execute(const wire::BindWeight & command) {
    if (weights_.size() >= kMaxWeights) return absl::ResourceExhaustedError("too many weights");
    if (command.type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(command.type)) == 0) {
        return absl::InvalidArgumentError(fmt::format("a weight of unknown type {}", command.type));
    }
    const auto offer = offers_.find(command.blob);
    if (offer == offers_.end()) return absl::InvalidArgumentError("a weight of a blob that was not offered");
    if (command.offset % kWeightAlignment != 0) return absl::InvalidArgumentError("a weight that is not aligned");
    const auto type = static_cast<ggml_type>(command.type);
    __extension__ using Wide = unsigned __int128;
    Wide bytes = ggml_type_size(type);
    for (const int64_t n : command.ne) {
        if (n < 1 || n > INT32_MAX) return absl::InvalidArgumentError("a weight with a dimension out of range");
        bytes *= static_cast<Wide>(n);
        if (bytes > kMaxAddressSpaceBytes * 1024) return absl::InvalidArgumentError("a weight that is too large");
    }
    if (command.ne[0] % ggml_blck_size(type) != 0) return absl::InvalidArgumentError("a weight with half a block");
    bytes /= static_cast<Wide>(ggml_blck_size(type));
    if (command.offset > offer->second.bytes || bytes > offer->second.bytes - command.offset)
        return absl::OutOfRangeError("a weight beyond its blob");
    BoundWeight bound{command.blob, command.offset, command.type, command.ne, static_cast<uint64_t>(bytes), nullptr};
    STRATA_RETURN_IF_ERROR(memory_.check({command.address, bound.bytes}));
    const auto next = weights_.lower_bound(command.address);
    if ((next != weights_.end() && next->first < command.address + bound.bytes && next->first != command.address) ||
        (next != weights_.begin() && std::prev(next)->first + std::prev(next)->second.bytes > command.address)) {
        return absl::InvalidArgumentError("a weight that overlaps another one");
    }
    {
        const std::lock_guard lock(mutex_);
        // Or it arrived for another weight, and is forgotten there.
        if (!attach(bound)) bound.blob = executor_.blob_here(command.blob, offer->second.bytes);
        if (bound.blob != nullptr) {
            weights_bytes_ += bound.bytes;
            prepare_again_ = true;
        }
    }
    forget_parts();
    if (const auto before = weights_.find(command.address); before != weights_.end() && before->second.blob != nullptr)
        weights_bytes_ -= before->second.bytes;
    weights_[command.address] = std::move(bound);
    return true;
}

// mutex_ held. True when the weight's blob has arrived.
bool Session::attach(BoundWeight & bound) {
    const auto arrived = arrived_blobs_.find(bound.digest);
    if (arrived == arrived_blobs_.end() || arrived->second->bytes().size() < bound.offset + bound.bytes) return false;
    bound.blob = arrived->second;
    return true;
}

void Session::attach_arrived() {
    const std::lock_guard lock(mutex_);
    if (arrived_blobs_.empty()) return;
    for (auto & [address, bound] : weights_) {
        if (bound.blob != nullptr || !attach(bound)) continue;
        weights_bytes_ += bound.bytes;
        prepare_again_ = true;
    }
    arrived_blobs_.clear(); // the weights hold them
}

absl::StatusOr<bool> Session::execute(const wire::Prepare & command) {
    if (!graphs_.contains(command.hash)) return absl::InvalidArgumentError("a graph that was not defined");
    const bool there = std::ranges::find(preparing_, command.hash) != preparing_.end();
    if (command.wait) return !there;
    if (!there) preparing_.push_back(command.hash);
    prepare_again_ = true;
    return true;
}

// One weight of a graph that is to be prepared. False: nothing can be done until more arrives.
bool Session::prepare_one() {
    if (preparing_.empty() || failed_) return false;
    attach_arrived();
    if (!std::exchange(prepare_again_, false)) return false;
    bool ended = false; // somebody may wait for that
    for (auto graph = preparing_.begin(); graph != preparing_.end();) {
        const auto prepared = prepare(*graph);
        if (prepared.ok() && *prepared == PartGraph::Prepared::kOneMore) {
            prepare_again_ = true;
            return true;
        }
        if (prepared.ok() && *prepared == PartGraph::Prepared::kWaits) {
            ++graph;
            continue;
        }
        graph = preparing_.erase(graph); // all is there; or whoever runs it gets to know what is wrong
        ended = true;
    }
    prepare_again_ = ended;
    return ended;
}

absl::StatusOr<bool> Session::execute(const wire::UnbindWeight & command) {
    const auto bound = weights_.find(command.address);
    if (bound == weights_.end()) return absl::InvalidArgumentError("no weight is bound at this address");
    if (command.keep) {
        attach_arrived();
        if (bound->second.blob == nullptr) return false;
        STRATA_RETURN_IF_ERROR(memory_.write(command.address, bound->second.data()));
    }
    forget_parts();
    if (bound->second.blob != nullptr) weights_bytes_ -= bound->second.bytes;
    weights_.erase(bound);
    return true;
}

} // namespace strata::executor
