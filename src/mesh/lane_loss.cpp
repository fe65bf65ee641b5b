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
    sound_out();
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
    if (options_.on_loss == LaneOptions::OnLoss::kFail) return fail(loss_);
    if (!journal_.complete()) {
        return fail(
            absl::UnavailableError(fmt::format("{}; the journal has no room for all since the beginning, so it can't "
                                               "be done again elsewhere",
                                               std::string(loss_.message()))));
    }
    broken_ = true;
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) != 0) continue;
        links_[i]->give_up_reads(); // replay() asks again
        collect_partings(i);
        if (const absl::Status gone = links_[i]->status(); !gone.ok()) forget(i, gone);
    }
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) == 0) links_[i]->skip_pushes(next_tag_);
    }
    bindings_changed();
    return absl::OkStatus();
}

void Lane::collect_partings(size_t executor) {
    for (const wire::PeerLost & lost : links_[executor]->take_lost_peers()) {
        const auto peer = std::ranges::find(links_, lost.token, [](const auto & link) { return link->token(); });
        if (peer != links_.end()) parting_.emplace_back(executor, static_cast<size_t>(peer - links_.begin()));
    }
}

void Lane::forget(size_t executor, const absl::Status & reason) {
    loss_ = reason;
    lost_ |= holder(executor);
    links_[executor]->close();
    for (const auto & link : links_) link->forget_peer(*links_[executor]);
    for (auto & [address, weight] : weights_) weight.bound &= ~lost_;
}

// Waits until those that are left have answered: an executor may know of another one's end before we do, and what was
// lost on the way between two is known then.
void Lane::sound_out() {
    const auto answers = [&](size_t i) { return (lost_ & holder(i)) != 0 || links_[i]->skipped_locked(next_tag_); };
    const auto all_answer = [&] {
        for (size_t i = 0; i < links_.size(); ++i) {
            if (!answers(i)) return false;
        }
        return true;
    };
    for (size_t i = 0; i < links_.size(); ++i) { // again: move() may have gone on since the loss was noted
        if ((lost_ & holder(i)) == 0) links_[i]->skip_pushes(next_tag_);
    }
    std::vector<size_t> silent;
    {
        std::unique_lock lock(signal_->mutex);
        signal_->runtime.wait_for(lock, signal_->changed, kAnswerTimeout, all_answer);
        for (size_t i = 0; i < links_.size(); ++i) {
            if (!answers(i)) silent.push_back(i);
        }
    }
    for (const size_t i : silent)
        forget(i, absl::DeadlineExceededError(fmt::format("{} does not answer", links_[i]->address())));
    for (size_t i = 0; i < links_.size(); ++i) {
        if ((lost_ & holder(i)) != 0) continue;
        if (const absl::Status gone = links_[i]->status(); !gone.ok())
            forget(i, gone);
        else
            collect_partings(i);
    }
    // Once is an accident. Two that can't talk to each other can't both stay.
    const std::set<std::pair<size_t, size_t>> parting(parting_.begin(), parting_.end());
    parting_.clear();
    for (const auto & [executor, peer] : parting) {
        if ((lost_ & (holder(executor) | holder(peer))) != 0 || parted_.emplace(executor, peer).second) continue;
        forget(executor, absl::UnavailableError(
                             fmt::format("{} can't reach {}", links_[executor]->address(), links_[peer]->address())));
    }
    bindings_changed();
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
