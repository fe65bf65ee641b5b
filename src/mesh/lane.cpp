#include "base/check.h"
#include "base/text.h"
#include "mesh/lane_internal.h"
#include "mesh/limits.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

namespace strata::mesh {

namespace {

constexpr uint64_t kBufferAlignment = 4096;

} // namespace

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

void append(std::vector<Segment> & segments, Segment segment) {
    if (!segments.empty() && segments.back().end() == segment.address)
        segments.back().bytes += segment.bytes;
    else
        segments.push_back(segment);
}

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
    , random_(options_.scatter_seed.value_or(options_.rebind_seed.value_or(0)))
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
        if ((lost_ & holder(other)) != 0) continue;
        links_[other]->set_peer(number, *link);
        link->set_peer(other, *links_[other]);
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
        if ((lost_ & holder(i)) == 0) STRATA_RETURN_IF_ERROR(links_[i]->health());
    }
    return absl::OkStatus();
}

// From now on nothing works any more; the first reason counts.
absl::Status Lane::fail(const absl::Status & reason) {
    if (failed_.ok()) failed_ = reason;
    has_failed_ = true;
    for (const auto & link : links_) link->give_up_reads(); // who asked may end with all that they fill
    return failed_;
}

uint64_t Lane::free_bytes() const {
    const std::lock_guard lock(mutex_);
    uint64_t bytes = 0;
    for (const auto & link : links_) bytes += link->device().free_bytes;
    return bytes;
}

uint64_t Lane::total_bytes() const {
    const std::lock_guard lock(mutex_);
    uint64_t bytes = 0;
    for (const auto & link : links_) bytes += link->device().memory_bytes;
    return bytes;
}

uint32_t Lane::alignment() const {
    const std::lock_guard lock(mutex_);
    uint32_t alignment = 1;
    for (const auto & link : links_) alignment = std::max(alignment, link->device().alignment);
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
    const int32_t layer = layer_of(tensor.name);
    placed_[address_of(tensor)] = {tensor.name, ggml_nbytes(&tensor), layer, layer != kNoLayer};
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
    pending_.push_back({range, to, journal_.entries().size()});
    if (failed_.ok() && !broken_) start_read(range, to);
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

// Waits for all that was asked of executors. False: one of them is lost.
bool Lane::reads_came() {
    bool lost = false;
    std::unique_lock lock(signal_->mutex);
    signal_->runtime.wait(lock, signal_->changed, [&] {
        bool waits = false;
        for (size_t i = 0; i < links_.size(); ++i) {
            if ((lost_ & holder(i)) != 0) continue;
            lost = lost || !links_[i]->health_locked().ok();
            waits = waits || links_[i]->reads_pending();
        }
        return lost || !waits;
    });
    return !lost;
}

absl::Status Lane::synchronize() {
    std::unique_lock lock(mutex_);
    while (true) {
        if (failed_.ok() && !broken_ && reads_came()) {
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

} // namespace strata::mesh
