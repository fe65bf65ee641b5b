#include "mesh/lane_internal.h"
#include "mesh/limits.h"

#include <fmt/format.h>

#include <algorithm>

namespace strata::mesh {

// Until it works with those that are left, or nothing can be done.
absl::Status Lane::mend(std::unique_lock<std::mutex> & lock) {
    while (failed_.ok() && (broken_ || !status_locked().ok())) {
        const absl::Status mended = mend_once(lock);
        if (!mended.ok() && status_locked().ok()) return fail(mended); // nothing new is lost: trying again won't help
    }
    return failed_;
}

absl::Status Lane::mend_once(std::unique_lock<std::mutex> & lock) {
    STRATA_RETURN_IF_ERROR(note_losses());
    const auto homeless = [&] {
        return std::ranges::any_of(bindings_,
                                   [&](const auto & binding) { return (lost_ & holder(binding.second)) != 0; });
    };
    if (options_.on_loss == LaneOptions::OnLoss::kWait && homeless()) {
        options_.log(fmt::format("{}; its layers wait to be bound elsewhere", std::string(loss_.message())));
        if (!options_.runtime->wait_for(lock, rebound_, kLossPatience, [&] { return !failed_.ok() || !homeless(); }))
            return fail(loss_);
        if (!failed_.ok()) return failed_;
    } else if (options_.on_loss == LaneOptions::OnLoss::kRebind && homeless()) {
        if (any_executor() == links_.size()) return fail(loss_);
        size_t heir = any_executor();
        for (auto & [layer, executor] : bindings_) { // in order: a layer goes where the one before it is
            if ((lost_ & holder(executor)) != 0) executor = heir;
            heir = executor;
        }
        options_.log(fmt::format("{}; its layers go on elsewhere", std::string(loss_.message())));
        bindings_changed();
    }
    STRATA_RETURN_IF_ERROR(status_locked()); // before much is done
    return replay();
}

// Executors that are gone, and pushes between those that are not. Nobody waits for anything of theirs any more.
absl::Status Lane::note_losses() {
    const absl::Status status = status_locked();
    if (!failed_.ok() || status.ok()) return failed_;
    loss_ = status;
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) != 0) continue;
        bool gone = !links_[i]->status().ok();
        for (const wire::PeerLost & lost : links_[i]->take_lost_peers()) {
            const auto peer = std::ranges::find(links_, lost.token, [](const auto & link) { return link->token(); });
            // Once is an accident. Two that can't talk to each other can't both be in a lane.
            const bool known = peer == links_.end() || !(*peer)->status().ok();
            gone = gone || (!known && !parted_.emplace(i, static_cast<size_t>(peer - links_.begin())).second);
        }
        if (!gone) continue;
        links_[i]->close();
        lost_ |= holder(i);
    }
    if (options_.on_loss == LaneOptions::OnLoss::kFail) return fail(loss_);
    if (!journal_.complete()) {
        return fail(
            absl::UnavailableError(fmt::format("{}; the journal has no room for all since the beginning, so it can't "
                                               "be done again elsewhere",
                                               std::string(loss_.message()))));
    }
    broken_ = true;
    for (size_t i = 0; i < links_.size(); ++i) {
        links_[i]->give_up_reads(); // replay() asks again
        if ((lost_ & holder(i)) != 0) continue;
        for (size_t other = 0; other < links_.size(); ++other) {
            if ((lost_ & holder(other)) != 0) links_[i]->forget_peer(*links_[other]);
        }
        links_[i]->skip_pushes(next_tag_);
    }
    for (auto & [address, weight] : weights_) weight.bound &= ~lost_;
    bindings_changed();
    return absl::OkStatus();
}

// Does everything in the journal again, from zeros.
absl::Status Lane::replay() {
    broken_ = false;                    // but for what is lost from now on
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
