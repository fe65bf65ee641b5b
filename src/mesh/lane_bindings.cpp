#include "mesh/lane_internal.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace strata::mesh {

namespace {

// How many times the tail's bytes cost less than a block's. For one generated token they cost the same; but that costs
// the same whatever the split is, unless all lanes are busy, while a prompt goes as fast as the slowest part.
constexpr uint64_t kTailShare = 8;

} // namespace

int32_t layer_of(std::string_view name) {
    if (name.starts_with("blk.")) {
        int32_t layer = kNoLayer;
        const auto number = name.substr(4);
        std::from_chars(number.data(), number.data() + number.size(), layer);
        return layer;
    }
    // A tied head is the embedding's tensor; the embedding itself stays with the driver.
    if (name.starts_with("output") || name.starts_with("token_embd") || name.starts_with("cls")) return kTail;
    return kNoLayer;
}

// Runs of layers of about equal bytes, in order; of equal counts when there is to be a number of cuts.
void Lane::bind_by_size() {
    std::map<int32_t, uint64_t> sizes;
    for (const auto & [address, placed] : placed_) {
        if (placed.layer != kNoLayer) sizes[placed.layer] += placed.bytes;
    }
    // A prompt's tokens go through every block, only its last one through the tail.
    if (const auto tail = sizes.find(kTail); tail != sizes.end()) tail->second /= kTailShare;
    for (auto & [layer, bytes] : sizes) bytes = options_.cuts > 0 ? 1 : bytes;
    std::vector<size_t> turns; // of those that are left
    std::vector<double> shares;
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) != 0) continue;
        turns.push_back(i);
        shares.push_back(i < options_.split.size() ? options_.split[i] : 1.0);
    }
    if (turns.empty()) turns = {0}; // it waits for move()
    if (options_.cuts > 0 || shares.empty()) shares.assign(options_.cuts + 1, 1.0);
    double all_shares = 0, all_bytes = 0;
    for (const double share : shares) all_shares += share;
    for (const auto & [layer, bytes] : sizes) all_bytes += static_cast<double>(bytes);
    size_t part = 0;
    double done = 0, until = shares[0] / all_shares * all_bytes;
    for (const auto & [layer, bytes] : sizes) {
        // A layer belongs to the part in which its middle lies.
        while (part + 1 < shares.size() && done + static_cast<double>(bytes) / 2 > until) {
            until += shares[++part] / all_shares * all_bytes;
        }
        bindings_[layer] = turns[part % turns.size()];
        done += static_cast<double>(bytes);
    }
    bindings_changed();
}

size_t Lane::executor_of(int32_t layer) const {
    const auto binding = bindings_.find(layer);
    return binding == bindings_.end() ? any_executor() : binding->second;
}

absl::Status Lane::bind(int32_t first_layer, int32_t last_layer, size_t executor) {
    const std::lock_guard lock(mutex_);
    if (executor >= links_.size() || (lost_ & holder(executor)) != 0) {
        return absl::InvalidArgumentError(fmt::format("there is no executor {}", executor));
    }
    for (auto & [layer, bound] : bindings_) {
        if (layer >= first_layer && layer <= last_layer) bound = executor;
    }
    bindings_changed();
    return absl::OkStatus();
}

absl::Status Lane::move(int32_t first_layer, int32_t last_layer, const std::string & address) {
    // A step holds the lock for as long as it takes; what takes longer happens between steps.
    std::unique_lock lock(mutex_);
    std::optional<size_t> executor = executor_at(address);
    if (!executor) {
        lock.unlock();
        STRATA_ASSIGN_OR_RETURN(const auto link, open_link(address));
        lock.lock();
        STRATA_ASSIGN_OR_RETURN(executor, adopt(link));
    }
    STRATA_RETURN_IF_ERROR(note_losses());
    const auto moves = [&](int32_t layer) {
        const int32_t number = layer == kTail ? tail_number() : layer;
        return layer != kNoLayer && number >= first_layer && number <= last_layer;
    };
    if (std::ranges::none_of(bindings_, [&](const auto & binding) { return moves(binding.first); })) {
        return absl::NotFoundError(
            fmt::format("there are no layers {} to {}, only 0 to {}", first_layer, last_layer, tail_number()));
    }
    STRATA_RETURN_IF_ERROR(hand_over(moves, *executor, &lock));
    rebound_.notify_all();
    return absl::OkStatus();
}

// Layers run at an executor from now on: their weights and their state go there.
absl::Status Lane::hand_over(const std::function<bool(int32_t)> & moves, size_t executor,
                             std::unique_lock<std::mutex> * lock) {
    std::vector<Wanted> wanted;
    for (const auto & [at, weight] : weights_) {
        if (moves(weight.layer) && (weight.bound & holder(executor)) == 0) wanted.push_back({at, executor});
    }
    STRATA_RETURN_IF_ERROR(bring_weights(wanted, lock));
    STRATA_RETURN_IF_ERROR(links_[executor]->status());
    for (auto & [layer, bound] : bindings_) {
        if (moves(layer)) bound = executor;
    }
    for (const auto & [at, placed] : placed_) {
        if (moves(placed.layer)) leave_only(at, placed.bytes, executor);
    }
    flush();
    bindings_changed();
    return absl::OkStatus();
}

// Up to a third of the layers, one after another.
absl::Status Lane::rebind_at_random() {
    std::set<int32_t> chosen;
    auto at = std::next(bindings_.begin(), static_cast<ptrdiff_t>(random_() % bindings_.size()));
    for (size_t left = 1 + random_() % (bindings_.size() / 3 + 1); left > 0 && at != bindings_.end(); --left, ++at)
        chosen.insert(at->first);
    return hand_over([&](int32_t layer) { return chosen.contains(layer); }, random_executor(), nullptr);
}

size_t Lane::random_executor() {
    size_t executor = 0;
    do executor = random_() % links_.size();
    while ((lost_ & holder(executor)) != 0);
    return executor;
}

// What others hold of a weight or of state goes to one executor, and they give its memory back.
void Lane::leave_only(uint64_t address, uint64_t bytes, size_t executor) {
    if (const auto weight = weights_.find(address); weight != weights_.end()) {
        for (size_t i = 0; i < links_.size(); ++i) {
            if (i == executor || (weight->second.bound & ~lost_ & holder(i)) == 0) continue;
            links_[i]->add(wire::UnbindWeight{address, false});
        }
        weight->second.bound &= holder(executor);
        return;
    }
    const Segment range{address, bytes};
    bring({range}, executor);
    std::vector<std::pair<Segment, Holders>> held;
    directory_.visit(range, [&](Segment piece, const Directory::Entry & entry) {
        if (entry.holders != kEverybody && (entry.holders & holder(executor)) != 0)
            held.emplace_back(piece, entry.holders);
    });
    for (const auto & [piece, holders] : held) {
        for (size_t i = 0; i < links_.size(); ++i) {
            if (i != executor && (holders & ~lost_ & holder(i)) != 0) links_[i]->add(wire::DropBytes{piece});
        }
        directory_.wrote(piece, holder(executor));
    }
}

std::optional<size_t> Lane::executor_at(const std::string & address) const {
    for (size_t i = 0; i < links_.size(); ++i) {
        if (links_[i]->address() == address && (lost_ & holder(i)) == 0 && links_[i]->status().ok()) return i;
    }
    return std::nullopt;
}

// The tail counts as one more than the last block.
int32_t Lane::tail_number() const {
    int32_t last = -1;
    for (const auto & [layer, executor] : bindings_) last = layer == kTail ? last : std::max(last, layer);
    return last + 1;
}

size_t Lane::anchor(const CapturedGraph::Tensor & tensor) const {
    if (const auto weight = weight_at(weights_, tensor.wire.address); weight != weights_.end()) {
        return weight->second.layer == kNoLayer ? kAnywhere : executor_of(weight->second.layer);
    }
    auto placed = placed_.upper_bound(tensor.wire.address);
    if (placed == placed_.begin()) return kAnywhere;
    --placed;
    if (tensor.wire.address - placed->first >= placed->second.bytes || placed->second.layer == kNoLayer)
        return kAnywhere;
    return executor_of(placed->second.layer);
}

// State belongs to the layer whose weights were used before it.
void Lane::learn_state_layers(const CapturedGraph & graph) {
    int32_t layer = kNoLayer;
    const auto look = [&](const CapturedGraph::Tensor & tensor) {
        if (const auto weight = weight_at(weights_, tensor.wire.address); weight != weights_.end()) {
            if (weight->second.layer != kNoLayer) layer = weight->second.layer;
            return;
        }
        auto placed = placed_.upper_bound(tensor.wire.address);
        if (placed == placed_.begin()) return;
        --placed;
        const bool inside = tensor.wire.address - placed->first < placed->second.bytes;
        if (inside && placed->second.layer == kNoLayer) placed->second.layer = layer;
    };
    for (const auto & tensor : graph.tensors) {
        if (tensor.wire.op == 0) continue;
        for (const uint32_t source : tensor.wire.sources) {
            if (source != wire::GraphTensor::kNone) look(graph.tensors[source]);
        }
        look(tensor);
    }
}

void Lane::bindings_changed() {
    ++bindings_version_;
    for (const auto & link : links_) link->set_epoch(bindings_version_);
    std::map<int32_t, uint64_t> sizes;
    for (const auto & [address, placed] : placed_) {
        if (placed.weight) sizes[placed.layer] += placed.bytes;
    }
    const std::lock_guard lock(parts_mutex_);
    parts_.clear();
    int32_t layer = 0;
    for (const auto & [key, executor] : bindings_) {
        layer = key == kTail ? layer + 1 : key;
        if (parts_.empty() || parts_.back().second != links_[executor]) {
            PartStatus part;
            part.executor = links_[executor]->address();
            part.first_layer = layer;
            parts_.emplace_back(std::move(part), links_[executor]);
        }
        parts_.back().first.last_layer = layer;
        parts_.back().first.weights_bytes += sizes[key];
    }
}

std::vector<Lane::PartStatus> Lane::parts() const {
    const std::lock_guard lock(parts_mutex_);
    std::vector<PartStatus> parts;
    for (const auto & [part, link] : parts_) {
        parts.push_back(part);
        parts.back().lost = !link->status().ok();
        parts.back().counters = link->counters();
    }
    return parts;
}

} // namespace strata::mesh
