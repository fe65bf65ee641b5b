#include "mesh/lane_internal.h"
#include "mesh/limits.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::mesh {

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
        return std::ranges::any_of(bindings_,
                                   [&](const auto & binding) { return (lost_ & holder(binding.second)) != 0; });
    };
    if (waits) {
        options_.log(fmt::format("{}; its layers wait to be bound elsewhere", std::string(reason.message())));
        bindings_changed();
        if (!options_.runtime->wait_for(lock, rebound_, kLossPatience, [&] { return !failed_.ok() || !homeless(); }))
            return fail(reason);
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
    auto read = pending_.begin();
    const auto read_again = [&](size_t done) { // what comes later may write to where they read
        for (; read != pending_.end() && read->after <= done; ++read) start_read(read->range, read->to);
    };
    size_t done = 0;
    for (const Journal::Entry & entry : journal_.entries()) {
        read_again(done++);
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
    read_again(done);
    for (const auto & buffer : again) {
        directory_.remove(buffer.range);
        for (const auto & link : links_) link->add(wire::FreeBuffer{buffer.id});
    }
    return absl::OkStatus();
}

void Lane::flush() {
    for (const auto & link : links_) link->flush();
}

} // namespace strata::mesh
