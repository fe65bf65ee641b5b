#include "mesh/lane.h"

#include "base/check.h"
#include "base/text.h"
#include "mesh/limits.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ggml-impl.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace strata::mesh {
namespace {

constexpr int32_t kNoLayer = -1;
constexpr int32_t kTail = INT32_MAX;
constexpr uint64_t kBufferAlignment = 4096;

// The layer that a tensor of a model's file belongs to.
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

uint64_t address_of(const ggml_tensor & tensor) {
    return reinterpret_cast<uint64_t>(tensor.data);
}

// Pieces of at most kPieceBytes.
std::vector<std::vector<Segment>> in_pieces(const std::vector<Segment> & segments) {
    std::vector<std::vector<Segment>> pieces(1);
    uint64_t room = kPieceBytes;
    for (Segment segment : segments) {
        while (segment.bytes > 0) {
            const uint64_t bytes = std::min(room, segment.bytes);
            pieces.back().push_back({segment.address, bytes});
            segment = {segment.address + bytes, segment.bytes - bytes};
            room -= bytes;
            if (room == 0) {
                pieces.emplace_back();
                room = kPieceBytes;
            }
        }
    }
    if (pieces.back().empty()) pieces.pop_back();
    return pieces;
}

std::chrono::milliseconds pause_after(Delivering progress) {
    return progress == Delivering::kFull ? kFullLinkPause : kIdlePause;
}

void append(std::vector<Segment> & segments, Segment segment) {
    if (!segments.empty() && segments.back().end() == segment.address)
        segments.back().bytes += segment.bytes;
    else
        segments.push_back(segment);
}

} // namespace

absl::StatusOr<std::unique_ptr<Lane>> Lane::open(wire::Network & network, LaneOptions options) {
    if (options.executors.empty() || options.executors.size() > kMaxExecutors) {
        return absl::InvalidArgumentError(
            fmt::format("a mesh has 1 to {} executors, not {}", kMaxExecutors, options.executors.size()));
    }
    if (!options.split.empty() && options.split.size() != options.executors.size()) {
        return absl::InvalidArgumentError(
            fmt::format("a split names {} shares for {} executors", options.split.size(), options.executors.size()));
    }
    std::unique_ptr<Lane> lane(new Lane(network, std::move(options)));
    for (const std::string & address : lane->options_.executors)
        STRATA_RETURN_IF_ERROR(lane->add_executor(address).status());
    return lane;
}

Lane::Lane(wire::Network & network, LaneOptions options)
    : options_(std::move(options))
    , network_(network)
    , progress_(options_.progress)
    , random_(options_.scatter_seed.value_or(0))
    , journal_(options_.on_loss != LaneOptions::OnLoss::kFail ? kMaxJournalBytes : 0)
    , kept_(options_.folder) {}

Lane::~Lane() {
    close();
}

void Lane::close() {
    const std::lock_guard lock(mutex_);
    for (const auto & link : links_) link->close();
    fail(absl::CancelledError("the lane was closed")).IgnoreError();
    rebound_.notify_all();
}

absl::StatusOr<std::shared_ptr<Link>> Lane::open_link(const std::string & address) const {
    wire::Hello hello;
    hello.build = options_.build;
    hello.name = options_.name;
    auto link = std::make_shared<Link>(signal_, address);
    STRATA_RETURN_IF_ERROR(link->open(network_, hello));
    return link;
}

// Tells one more executor all buffers, and it and the others of each other. Its number.
absl::StatusOr<size_t> Lane::adopt(const std::shared_ptr<Link> & link) {
    if (links_.size() >= kMaxExecutors) return absl::ResourceExhaustedError("too many executors");
    for (const auto & [begin, buffer] : buffers_) link->add(wire::NewBuffer{buffer.id, buffer.range});
    const auto number = static_cast<uint16_t>(links_.size());
    for (uint16_t other = 0; other < number; ++other) {
        links_[other]->add(wire::SetPeer{number, link->address(), link->token()});
        link->add(wire::SetPeer{other, links_[other]->address(), links_[other]->token()});
    }
    links_.push_back(link);
    named_graphs_.emplace_back();
    return number;
}

absl::StatusOr<size_t> Lane::add_executor(const std::string & address) {
    STRATA_ASSIGN_OR_RETURN(const auto link, open_link(address));
    const std::lock_guard lock(mutex_);
    return adopt(link);
}

absl::Status Lane::status() const {
    const std::lock_guard lock(mutex_);
    return status_locked();
}

absl::Status Lane::status_locked() const {
    if (!failed_.ok()) return failed_;
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) == 0) STRATA_RETURN_IF_ERROR(links_[i]->status());
    }
    return absl::OkStatus();
}

// From now on nothing works any more; the first reason counts.
absl::Status Lane::fail(const absl::Status & reason) {
    if (failed_.ok()) failed_ = reason;
    has_failed_ = true;
    return failed_;
}

uint64_t Lane::free_bytes() const {
    uint64_t bytes = 0;
    for (const auto & link : links_) bytes += link->welcome().devices[0].free_bytes;
    return bytes;
}

uint64_t Lane::total_bytes() const {
    uint64_t bytes = 0;
    for (const auto & link : links_) bytes += link->welcome().devices[0].memory_bytes;
    return bytes;
}

uint32_t Lane::alignment() const {
    uint32_t alignment = 1;
    for (const auto & link : links_) alignment = std::max(alignment, link->welcome().devices[0].alignment);
    return alignment;
}

std::string Lane::description() const {
    return fmt::format("mesh of {}", fmt::join(options_.executors, ", "));
}

// -------------------- memory

const Lane::Buffer & Lane::allocate(uint64_t bytes) {
    const std::lock_guard lock(mutex_);
    // Addresses are never used twice, so that nothing at an executor can be taken for something else.
    const Segment range{next_address_, std::max<uint64_t>(bytes, 1)};
    next_address_ += (range.bytes / kBufferAlignment + 2) * kBufferAlignment;
    Buffer & buffer = buffers_[range.address];
    buffer = {next_buffer_++, range, [] { return Usage::kState; }};
    directory_.add(range);
    for (const auto & link : links_) link->add(wire::NewBuffer{buffer.id, range});
    return buffer;
}

void Lane::set_usage(const Buffer & buffer, std::function<Usage()> usage) {
    const std::lock_guard lock(mutex_);
    buffers_.at(buffer.range.address).usage = std::move(usage);
}

void Lane::free(const Buffer & buffer) {
    const std::lock_guard lock(mutex_);
    const Segment range = buffer.range;
    directory_.remove(range);
    for (auto at = weights_.lower_bound(range.address); at != weights_.end() && at->first < range.end();) {
        for (size_t i = 0; i < links_.size(); ++i) {
            if ((at->second.bound & holder(i)) != 0) links_[i]->add(wire::UnbindWeight{at->first, false});
        }
        at = weights_.erase(at);
        journal_.give_up();
    }
    placed_.erase(placed_.lower_bound(range.address), placed_.lower_bound(range.end()));
    for (const auto & link : links_) link->add(wire::FreeBuffer{buffer.id});
    buffers_.erase(range.address);
    if (journal_.complete()) freed_.push_back(range);
    ++bindings_version_;
}

const Lane::Buffer * Lane::buffer_at(uint64_t address) const {
    auto at = buffers_.upper_bound(address);
    if (at == buffers_.begin()) return nullptr;
    --at;
    return address < at->second.range.end() ? &at->second : nullptr;
}

void Lane::place(const ggml_tensor & tensor) {
    if (tensor.op != GGML_OP_NONE || tensor.view_src != nullptr || tensor.name[0] == 0) return;
    const std::lock_guard lock(mutex_);
    const Buffer * buffer = buffer_at(address_of(tensor));
    if (buffer == nullptr || buffer->usage() == Usage::kCompute) return;
    placed_[address_of(tensor)] = {tensor.name, ggml_nbytes(&tensor), layer_of(tensor.name)};
}

void Lane::set(Segment range, const void * data) {
    const std::lock_guard lock(mutex_);
    const auto * bytes = static_cast<const uint8_t *>(data);
    put(range, std::make_shared<const std::vector<uint8_t>>(bytes, bytes + range.bytes));
}

void Lane::put(Segment range, Bytes bytes) {
    make_plain(range);
    journal_.add(Journal::Set{range, bytes});
    directory_.wrote(range, std::move(bytes));
}

void Lane::set_weight(const ggml_tensor & tensor, const void * data) {
    const std::lock_guard lock(mutex_);
    if (!status_locked().ok()) return;
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
            source->second.offer = {layer.digest, layer.bytes, true, true, layer.tensors, {}};
            source->second.open = [model = options_.model, number] { return model->open(number); };
            return;
        }
    }
    // Whoever gives no digests gives bytes, now or never.
    weight.blob = Digest::of(std::as_bytes(bytes));
    Source & source = blobs_[weight.blob];
    source.offer = {weight.blob, weight.bytes, true, false, {}, {}};
    source.open = [bytes] { return MappedBytes{bytes, nullptr}; };
    const absl::Status sent = bring_weights({{address, executor_of(weight.layer)}});
    absl::Status kept;
    source.open = nullptr;
    if (options_.on_loss != LaneOptions::OnLoss::kFail) {
        kept = kept_.add(weight.blob, bytes);
        source.open = [this, digest = weight.blob] { return kept_.get(digest); };
    }
    const bool mendable = source.open != nullptr && !status_locked().ok();
    if (!kept.ok() || (!sent.ok() && !mendable)) fail(kept.ok() ? sent : kept).IgnoreError();
}

bool Lane::has_weight(std::string_view name) const {
    const std::lock_guard lock(mutex_);
    return weight_names_.contains(std::string(name));
}

void Lane::end_progress() {
    const std::lock_guard lock(mutex_);
    progress_ = nullptr;
}

void Lane::make_plain(Segment range) {
    auto at = weights_.upper_bound(range.address);
    if (at != weights_.begin()) --at;
    while (at != weights_.end() && at->first < range.end()) {
        if (at->first + at->second.bytes <= range.address) {
            ++at;
            continue;
        }
        for (size_t i = 0; i < links_.size(); ++i) {
            if ((at->second.bound & holder(i)) != 0) links_[i]->add(wire::UnbindWeight{at->first, true});
        }
        directory_.wrote({at->first, at->second.bytes}, at->second.bound);
        at = weights_.erase(at);
        journal_.give_up();
        ++bindings_version_;
    }
}

void Lane::fill(Segment range, uint8_t value) {
    const std::lock_guard lock(mutex_);
    make_plain(range);
    journal_.add(Journal::Fill{range, value});
    put_fill(range, value);
}

void Lane::put_fill(Segment range, uint8_t value) {
    directory_.wrote(range, kEverybody);
    for (const auto & link : links_) link->add(wire::FillBytes{range, value});
}

void Lane::copy(uint64_t to, Segment from) {
    const std::lock_guard lock(mutex_);
    make_plain({to, from.bytes});
    make_plain(from);
    journal_.add(Journal::Copy{to, from});
    put_copy(to, from);
}

void Lane::put_copy(uint64_t to, Segment from) {
    struct Piece {
        Segment from;
        Directory::Entry entry;
    };
    std::vector<Piece> pieces;
    directory_.visit(from, [&](Segment segment, const Directory::Entry & entry) {
        pieces.push_back({segment, entry});
    });
    for (const Piece & piece : pieces) {
        const Segment target{to + (piece.from.address - from.address), piece.from.bytes};
        if (piece.entry.bytes != nullptr) {
            const auto * begin = piece.entry.bytes->data() + (piece.from.address - piece.entry.bytes_address);
            directory_.wrote(target, std::make_shared<const std::vector<uint8_t>>(begin, begin + piece.from.bytes));
            continue;
        }
        for (size_t i = 0; i < links_.size(); ++i) {
            if ((piece.entry.holders & holder(i)) != 0) links_[i]->add(wire::CopyBytes{target.address, piece.from});
        }
        directory_.wrote(target, piece.entry.holders);
    }
}

void Lane::read(Segment range, void * to) {
    const std::lock_guard lock(mutex_);
    pending_.push_back({range, to});
    if (failed_.ok()) start_read(range, to);
}

void Lane::start_read(Segment range, void * to) {
    auto * const out = static_cast<uint8_t *>(to);
    const auto target = [&](Segment piece) {
        return std::span<uint8_t>(out + (piece.address - range.address), piece.bytes);
    };
    std::map<size_t, std::vector<Segment>> wanted; // by executor
    if (const auto weight = weight_at(weights_, range.address); weight != weights_.end()) {
        if (weight->second.bound == 0) {
            const absl::Status brought = bring_weights({{weight->first, any_executor()}});
            if (!brought.ok() && status_locked().ok()) fail(brought).IgnoreError();
            if (!brought.ok()) return; // after a loss it is read again
        }
        wanted[static_cast<size_t>(std::countr_zero(weight->second.bound))].push_back(range);
    } else {
        directory_.visit(range, [&](Segment piece, const Directory::Entry & entry) {
            if (entry.bytes != nullptr) {
                std::copy_n(entry.bytes->data() + (piece.address - entry.bytes_address), piece.bytes,
                            target(piece).data());
            } else if (entry.holders == 0) {
                std::ranges::fill(target(piece), 0);
            } else { // kEverybody: any of them
                append(wanted[static_cast<size_t>(std::countr_zero(entry.holders & ~lost_))], piece);
            }
        });
    }
    for (const auto & [executor, segments] : wanted) {
        for (const auto & piece : in_pieces(segments)) {
            std::vector<std::span<uint8_t>> targets;
            for (const Segment & segment : piece) targets.push_back(target(segment));
            links_[executor]->add_read(piece, std::move(targets));
        }
        links_[executor]->flush();
    }
}

absl::Status Lane::synchronize() {
    std::unique_lock lock(mutex_);
    while (true) {
        bool lost = !failed_.ok();
        if (!lost) {
            std::unique_lock signal_lock(signal_->mutex);
            signal_->changed.wait(signal_lock, [&] {
                bool waits = false;
                for (size_t i = 0; i < links_.size(); ++i) {
                    if ((lost_ & holder(i)) != 0) continue;
                    lost = lost || !links_[i]->status_locked().ok();
                    waits = waits || links_[i]->reads_pending();
                }
                return lost || !waits;
            });
        }
        if (!lost) {
            pending_.clear();
            return absl::OkStatus();
        }
        absl::Status mended = mend(lock);
        if (!mended.ok()) {
            for (const Pending & read : pending_) std::memset(read.to, 0, read.range.bytes);
            pending_.clear();
            return mended;
        }
    }
}

// -------------------- bindings

// Runs of layers of about equal bytes, in order; of equal counts when there is to be a number of cuts.
void Lane::bind_by_size() {
    std::map<int32_t, uint64_t> sizes;
    for (const auto & [address, placed] : placed_) {
        if (placed.layer != kNoLayer) sizes[placed.layer] += placed.bytes;
    }
    // A prompt's tokens go through every block, only its last one through the tail; a generated one through both.
    if (const auto tail = sizes.find(kTail); tail != sizes.end()) tail->second /= 4;
    for (auto & [layer, bytes] : sizes) bytes = options_.cuts > 0 ? 1 : bytes;
    const size_t parts = options_.cuts > 0 ? options_.cuts + 1 : links_.size();
    std::vector<double> shares = options_.split;
    if (shares.empty() || options_.cuts > 0) shares.assign(parts, 1.0);
    double all_shares = 0, all_bytes = 0;
    for (const double share : shares) all_shares += share;
    for (const auto & [layer, bytes] : sizes) all_bytes += static_cast<double>(bytes);
    size_t part = 0;
    double done = 0, until = shares[0] / all_shares * all_bytes;
    for (const auto & [layer, bytes] : sizes) {
        // A layer belongs to the part in which its middle lies.
        while (part + 1 < parts && done + static_cast<double>(bytes) / 2 > until) {
            until += shares[++part] / all_shares * all_bytes;
        }
        bindings_[layer] = part % links_.size();
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
    if (!failed_.ok()) return failed_;
    const auto moves = [&](int32_t layer) {
        const int32_t number = layer == kTail ? tail_number() : layer;
        return layer != kNoLayer && number >= first_layer && number <= last_layer;
    };
    if (std::ranges::none_of(bindings_, [&](const auto & binding) { return moves(binding.first); })) {
        return absl::NotFoundError(fmt::format("there are no layers {} to {}, only 0 to {}", first_layer, last_layer, tail_number()));
    }
    std::vector<Wanted> wanted;
    for (const auto & [at, weight] : weights_) {
        if (moves(weight.layer) && (weight.bound & holder(*executor)) == 0) wanted.push_back({at, *executor});
    }
    std::vector<Delivery> deliveries = offer_and_bind(wanted);
    while (true) {
        const uint64_t changes = signal_->seen();
        const auto progress = deliver(deliveries);
        if (!progress.ok()) {
            give_up(deliveries);
            return progress.status();
        }
        if (*progress == Delivering::kDone) break;
        lock.unlock();
        if (*progress != Delivering::kSent) signal_->wait_for_change(changes, pause_after(*progress));
        lock.lock();
    }
    for (auto & [layer, bound] : bindings_) {
        if (moves(layer)) bound = *executor;
    }
    for (const auto & [at, placed] : placed_) {
        if (moves(placed.layer)) leave_only(at, placed.bytes, *executor);
    }
    flush();
    bindings_changed();
    rebound_.notify_all();
    return absl::OkStatus();
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
        if (entry.holders != kEverybody && (entry.holders & holder(executor)) != 0) held.emplace_back(piece, entry.holders);
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
    std::map<int32_t, uint64_t> sizes;
    for (const auto & [address, placed] : placed_) sizes[placed.layer] += placed.bytes;
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

// -------------------- graphs

absl::StatusOr<Lane::Captured *> Lane::captured(const ggml_cgraph & graph) {
    const auto is_ours = [&](const ggml_tensor & tensor) { return buffer_at(address_of(tensor)) != nullptr; };
    Captured * captured = &unnamed_;
    if (graph.uid != 0) {
        const auto found = captured_.find(graph.uid);
        if (found != captured_.end()) return &found->second;
        if (captured_.size() >= kMaxCapturedGraphs) captured_.clear();
        captured = &captured_[graph.uid];
    }
    auto made = CapturedGraph::capture(graph, is_ours);
    if (!made.ok()) {
        captured_.erase(graph.uid);
        return made.status();
    }
    *captured = {*std::move(made), {}, 0};
    return captured;
}

std::vector<size_t> Lane::scatter(const CapturedGraph & graph) {
    std::vector<size_t> executors(graph.tensors.size());
    for (size_t & executor : executors) {
        do executor = random_() % links_.size();
        while ((lost_ & holder(executor)) != 0);
    }
    return executors;
}

Plan Lane::plan_for(const CapturedGraph & graph) {
    const auto anchored = [&](const CapturedGraph::Tensor & tensor) { return anchor(tensor); };
    const auto executors = options_.scatter_seed.has_value() ? scatter(graph) : assign(graph, anchored, any_executor());
    return make_plan(graph, executors, weights_);
}

// Of those that are left.
size_t Lane::any_executor() const {
    return static_cast<size_t>(std::countr_one(lost_));
}

absl::Status Lane::compute(const ggml_cgraph & graph) {
    std::unique_lock lock(mutex_);
    if (!status_locked().ok()) STRATA_RETURN_IF_ERROR(mend(lock));
    STRATA_ASSIGN_OR_RETURN(Captured * const captured, this->captured(graph));
    if (bindings_.empty()) bind_by_size();
    if (captured->bindings != bindings_version_ || options_.scatter_seed.has_value()) {
        // Weights that a graph writes are weights no more. (Whatever sets one makes a new version.)
        for (const auto & tensor : captured->graph->tensors) {
            if (tensor.wire.op != 0) make_plain(tensor.range());
        }
        learn_state_layers(*captured->graph);
        captured->plan = plan_for(*captured->graph);
        captured->bindings = bindings_version_;
    }
    journal_.add(Journal::Graph{captured->graph});
    const absl::Status ran = run(captured->plan);
    if (ran.ok() || !failed_.ok()) return ran;
    return status_locked().ok() ? fail(ran) : mend(lock);
}

absl::Status Lane::run(const Plan & plan) {
    std::vector<Wanted> wanted;
    for (const Part & part : plan.parts) {
        for (const uint64_t weight : part.weights) {
            if ((weights_.at(weight).bound & holder(part.executor)) == 0) wanted.push_back({weight, part.executor});
        }
    }
    if (!wanted.empty()) STRATA_RETURN_IF_ERROR(bring_weights(wanted));
    for (const Part & part : plan.parts) {
        Link & link = *links_[part.executor];
        bring(part.reads, part.executor);
        std::vector<Segment> rows;
        for (const RowWrite & write : part.row_writes) {
            const auto known = rows_of(write);
            if (!known) bring({write.to}, part.executor);
            const std::vector<Segment> written = known.value_or(std::vector{write.to});
            rows.insert(rows.end(), written.begin(), written.end());
        }
        auto & named = named_graphs_[part.executor];
        if (named.size() >= kMaxNamedGraphs) {
            link.add(wire::ForgetGraphs{});
            named.clear();
        }
        if (named.insert(part.hash).second) link.add(wire::DefineGraph{part.hash, part.graph});
        link.add(wire::Compute{part.hash});
        for (const Segment & range : part.writes) directory_.wrote(range, holder(part.executor));
        for (const Segment & range : rows) directory_.wrote(range, holder(part.executor));
    }
    flush();
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) == 0) STRATA_RETURN_IF_ERROR(links_[i]->wait_for_credit());
    }
    return absl::OkStatus();
}

// The rows that a node writes, when the driver has its indices; in runs of neighbours.
std::optional<std::vector<Segment>> Lane::rows_of(const RowWrite & write) const {
    const uint64_t index_bytes = write.wide ? sizeof(int64_t) : sizeof(int32_t);
    const uint64_t rows = write.to.bytes / write.row_bytes;
    std::vector<uint64_t> numbers;
    bool known = true;
    directory_.visit(write.indices, [&](Segment piece, const Directory::Entry & entry) {
        known = known && entry.bytes != nullptr && piece.bytes % index_bytes == 0;
        if (!known) return;
        const uint8_t * at = entry.bytes->data() + (piece.address - entry.bytes_address);
        for (uint64_t done = 0; done < piece.bytes; done += index_bytes) {
            int64_t wide = 0;
            int32_t narrow = 0;
            std::memcpy(write.wide ? static_cast<void *>(&wide) : &narrow, at + done, index_bytes);
            numbers.push_back(static_cast<uint64_t>(write.wide ? wide : narrow)); // a negative one is too large
        }
    });
    if (!known) return std::nullopt;
    std::ranges::sort(numbers);
    const auto repeats = std::ranges::unique(numbers);
    numbers.erase(repeats.begin(), repeats.end());
    std::vector<Segment> segments;
    for (const uint64_t number : numbers) {
        if (number >= rows || segments.size() > kMaxRowRuns) return std::nullopt;
        append(segments, {write.to.address + number * write.row_bytes, write.row_bytes});
    }
    return segments;
}

// Sees to it that an executor has valid bytes in all of the ranges when it comes to what is added to its link next.
void Lane::bring(const std::vector<Segment> & ranges, size_t executor) {
    struct Own {
        Segment range;
        Directory::Entry entry;
    };
    std::vector<Own> own;
    std::map<size_t, std::vector<Segment>> others;
    for (const Segment & range : ranges) {
        directory_.visit(range, [&](Segment piece, const Directory::Entry & entry) {
            if ((entry.holders & holder(executor)) != 0) return;
            if (entry.bytes != nullptr)
                own.push_back({piece, entry});
            else if ((entry.holders & ~lost_) != 0) // what is lost is made again
                append(others[static_cast<size_t>(std::countr_zero(entry.holders & ~lost_))], piece);
        });
    }
    for (const Own & piece : own) {
        std::span<const uint8_t> bytes(*piece.entry.bytes);
        bytes = bytes.subspan(piece.range.address - piece.entry.bytes_address, piece.range.bytes);
        for (size_t at = 0; at < bytes.size(); at += kPieceBytes) {
            links_[executor]->add(
                wire::SetBytes{piece.range.address + at, bytes.subspan(at, std::min(kPieceBytes, bytes.size() - at))});
        }
        directory_.has(piece.range, holder(executor));
        // Inputs go to several executors; state is too large to be kept, and has one place.
        if (buffer_at(piece.range.address)->usage() != Usage::kCompute) directory_.forget_bytes(piece.range);
    }
    for (const auto & [from, segments] : others) {
        for (auto & piece : in_pieces(segments)) {
            const uint64_t tag = next_tag_++;
            links_[from]->add(wire::Push{static_cast<uint16_t>(executor), tag, piece});
            links_[executor]->add(wire::Expect{tag, piece});
        }
        for (const Segment & segment : segments) directory_.has(segment, holder(executor));
    }
}

// -------------------- weights

// A blob on its way to an executor.
struct Lane::Delivery {
    size_t executor;
    Digest blob;
    uint64_t bytes;
    MappedBytes mapped; // empty: the driver does not have it
    bool done = false;
    uint64_t sent = 0;
};

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
            if ((these & holder(i)) != 0) offer.sources.push_back(links_[i]->address());
        }
    }
    links_[executor]->offer(offer);
    return delivery;
}

// Binds weights at executors, and sees to it that these have them: out of their stores, from here, or from others. All
// executors at once.
absl::Status Lane::bring_weights(const std::vector<Wanted> & wanted) {
    std::vector<Delivery> deliveries = offer_and_bind(wanted);
    while (true) {
        const uint64_t changes = signal_->seen();
        const auto progress = deliver(deliveries);
        if (!progress.ok()) {
            give_up(deliveries);
            return progress.status();
        }
        if (*progress == Delivering::kDone) return absl::OkStatus();
        if (*progress != Delivering::kSent) signal_->wait_for_change(changes, pause_after(*progress));
    }
}

std::vector<Lane::Delivery> Lane::offer_and_bind(const std::vector<Wanted> & wanted) {
    std::vector<Delivery> deliveries;
    absl::flat_hash_set<std::pair<size_t, Digest>> offered;
    for (const Wanted & item : wanted) {
        const WeightInfo & weight = weights_.at(item.weight);
        if (offered.insert({item.executor, weight.blob}).second) deliveries.push_back(offer(weight.blob, item.executor));
    }
    for (const Wanted & item : wanted) {
        WeightInfo & weight = weights_.at(item.weight);
        links_[item.executor]->add(wire::BindWeight{item.weight, weight.blob, weight.offset, weight.type, weight.ne});
        weight.bound |= holder(item.executor);
    }
    flush();
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
                return absl::NotFoundError(fmt::format("executor {}: {}", link.address(), printable(answer->reason)));
            }
            delivery.done = answer.has_value() && answer->state == wire::BlobState::kHave;
            news = news || delivery.done;
            const bool needed = answer.has_value() && answer->state == wire::BlobState::kNeed;
            if (!delivery.done) progress = std::max(progress, Delivering::kWaits);
            if (needed && (sending & holder(delivery.executor)) == 0 && delivery.sent < delivery.bytes) {
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
    const auto piece = delivery.mapped.bytes.subspan(delivery.sent, std::min(kPieceBytes, delivery.bytes - delivery.sent));
    link.send_blob({delivery.blob, delivery.sent, delivery.bytes}, piece);
    delivery.sent += piece.size();
    return true;
}

// -------------------- loss

// Until it works with those that are left, or nothing can be done.
absl::Status Lane::mend(std::unique_lock<std::mutex> & lock) {
    absl::Status status = status_locked();
    while (failed_.ok() && !status.ok()) {
        status = mend_once(lock);
        if (status.ok())
            status = status_locked();
        else if (status_locked().ok())
            return fail(status); // nobody else was lost: trying again won't help
    }
    return status;
}

absl::Status Lane::mend_once(std::unique_lock<std::mutex> & lock) {
    absl::Status reason;
    std::vector<size_t> left;
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) != 0) continue;
        if (const absl::Status status = links_[i]->status(); !status.ok()) {
            reason.Update(status);
            lost_ |= holder(i);
        } else {
            left.push_back(i);
        }
        links_[i]->give_up_reads(); // replay() asks again
    }
    const bool waits = options_.on_loss == LaneOptions::OnLoss::kWait;
    if (options_.on_loss == LaneOptions::OnLoss::kFail || (left.empty() && !waits)) {
        return fail(reason);
    }
    if (!journal_.complete()) {
        return fail(
            absl::UnavailableError(fmt::format("{}; the journal has no room for all since the beginning, so it can't "
                                               "be done again elsewhere",
                                               std::string(reason.message()))));
    }
    for (const size_t i : left) links_[i]->skip_pushes(next_tag_);
    for (auto & [address, weight] : weights_) weight.bound &= ~lost_;
    const auto homeless = [&] {
        return std::ranges::any_of(bindings_, [&](const auto & binding) { return (lost_ & holder(binding.second)) != 0; });
    };
    if (waits) {
        options_.log(fmt::format("{}; its layers wait to be bound elsewhere", std::string(reason.message())));
        bindings_changed();
        if (!rebound_.wait_for(lock, kLossPatience, [&] { return !failed_.ok() || !homeless(); })) return fail(reason);
        if (!failed_.ok()) return failed_;
    } else {
        size_t heir = left.front();
        for (auto & [layer, executor] : bindings_) { // in order: a layer goes where the one before it is
            if ((lost_ & holder(executor)) != 0) executor = heir;
            heir = executor;
        }
        options_.log(fmt::format("{}; its layers go on elsewhere", std::string(reason.message())));
    }
    bindings_changed();
    return replay();
}

// Does everything in the journal again, from zeros.
absl::Status Lane::replay() {
    std::vector<wire::NewBuffer> again; // the journal writes to buffers that are gone
    for (const Segment & range : freed_) again.push_back({next_buffer_++, range});
    for (const auto & link : links_) {
        for (const auto & buffer : again) link->add(wire::NewBuffer{buffer.id, buffer.range});
    }
    for (const auto & buffer : again) directory_.add(buffer.range);
    for (const auto & [begin, buffer] : buffers_) put_fill(buffer.range, 0);
    absl::flat_hash_map<const CapturedGraph *, Plan> plans;
    for (const Journal::Entry & entry : journal_.entries()) {
        if (const auto * set = std::get_if<Journal::Set>(&entry)) {
            directory_.wrote(set->range, set->bytes);
        } else if (const auto * fill = std::get_if<Journal::Fill>(&entry)) {
            put_fill(fill->range, fill->value);
        } else if (const auto * copy = std::get_if<Journal::Copy>(&entry)) {
            put_copy(copy->to, copy->from);
        } else {
            const CapturedGraph & graph = *std::get<Journal::Graph>(entry).graph;
            auto [plan, inserted] = plans.try_emplace(&graph);
            if (inserted || options_.scatter_seed.has_value()) plan->second = plan_for(graph);
            STRATA_RETURN_IF_ERROR(run(plan->second));
        }
    }
    for (const auto & buffer : again) {
        directory_.remove(buffer.range);
        for (const auto & link : links_) link->add(wire::FreeBuffer{buffer.id});
    }
    for (const Pending & read : pending_) start_read(read.range, read.to);
    return absl::OkStatus();
}

void Lane::flush() {
    for (const auto & link : links_) link->flush();
}

} // namespace strata::mesh
