#include "mesh/lane_internal.h"
#include "mesh/limits.h"

#include <ggml-impl.h>

#include <algorithm>
#include <cstring>

namespace strata::mesh {

namespace {

// Of options.rebind_seed.
constexpr uint64_t kStepsPerRebind = 3;

} // namespace

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
    for (size_t & executor : executors) executor = random_executor();
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
    STRATA_RETURN_IF_ERROR(mend(lock));
    STRATA_ASSIGN_OR_RETURN(Captured * const captured, this->captured(graph));
    if (bindings_.empty()) bind_by_size();
    if (options_.rebind_seed.has_value() && ++steps_ % kStepsPerRebind == 0) STRATA_RETURN_IF_ERROR(rebind_at_random());
    if (captured->bindings != bindings_version_ || options_.scatter_seed.has_value()) {
        // Weights that a graph writes are weights no more. (Whatever sets one makes a new version.)
        for (const auto & tensor : captured->graph->tensors) {
            if (tensor.wire.op != 0) make_plain(tensor.range());
        }
        learn_state_layers(*captured->graph);
        captured->plan = plan_for(*captured->graph);
        captured->bindings = bindings_version_;
    }
    if (loading_) {
        const auto graph = captured->graph; // mend() may let others in, who capture more
        return rehearse(*graph, captured->plan, lock);
    }
    journal_.add(Journal::Graph{captured->graph});
    absl::Status ran = run(captured->plan);
    if (ran.ok() || !failed_.ok()) return ran;
    return broken_ || !status_locked().ok() ? mend(lock) : fail(ran);
}

// Until all weights of the graph are ready at executors that live.
absl::Status Lane::rehearse(const CapturedGraph & graph, Plan plan, std::unique_lock<std::mutex> & lock) {
    std::vector<uint8_t> answers; // of which nothing but their coming is of interest
    while (true) {
        const absl::Status ran = run(plan);
        if (ran.ok()) {
            answers.resize(plan.parts.size());
            for (size_t i = 0; i < answers.size(); ++i) {
                const Part & part = plan.parts[i];
                Link & link = *links_[part.executor];
                name_graph(part); // again, when all were forgotten since
                link.add(wire::Prepare{part.hash, false});
                link.add(wire::Prepare{part.hash, true});
                link.add_read({{buffers_.begin()->first, 1}}, {{&answers[i], 1}});
            }
            flush();
            if (reads_came()) return absl::OkStatus();
        } else if (!broken_ && status_locked().ok()) {
            return fail(ran);
        }
        STRATA_RETURN_IF_ERROR(mend(lock)); // nobody writes to the answers after it
        plan = plan_for(graph);
    }
}

void Lane::name_graph(const Part & part) {
    Link & link = *links_[part.executor];
    auto & named = named_graphs_[part.executor];
    if (named.size() >= kMaxNamedGraphs) {
        link.add(wire::ForgetGraphs{});
        named.clear();
    }
    if (named.insert(part.hash).second) link.add(wire::DefineGraph{part.hash, part.graph});
}

absl::Status Lane::run(const Plan & plan) {
    std::vector<Wanted> wanted;
    for (const Part & part : plan.parts) {
        if ((lost_ & holder(part.executor)) != 0) {
            broken_ = true;
            return absl::UnavailableError("a layer is bound to an executor that is lost");
        }
        for (const uint64_t weight : part.weights) {
            if ((weights_.at(weight).bound & holder(part.executor)) == 0) wanted.push_back({weight, part.executor});
        }
    }
    if (!wanted.empty() || loading_) {
        std::vector<Delivery> deliveries = offer_and_bind(wanted);
        for (const Part & part : plan.parts) { // weights are made ready while others are on their way
            name_graph(part);
            links_[part.executor]->add(wire::Prepare{part.hash, false});
        }
        flush();
        STRATA_RETURN_IF_ERROR(await(deliveries, nullptr));
    }
    if (loading_) return absl::OkStatus();
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
        name_graph(part);
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
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
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

} // namespace strata::mesh
