#include "executor/layer_job.h"

#include "executor/limits.h"
#include "layers/quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace strata::executor {
namespace {

void tell(wire::Channel & channel, const wire::JobState & state) {
    wire::FrameHeader header;
    header.type = wire::FrameType::kJobState;
    channel.send(header, wire::encode(state));
}

void tell_failed(wire::Channel & channel, uint32_t number, const absl::Status & status) {
    tell(channel, {number, wire::JobPhase::kFailed, 0, 0, {}, status.code(), std::string(status.message())});
}

} // namespace

// One layer: opened and written by the thread of LayerJobs, made by the device's.
class LayerJobs::Job : public Work, public std::enable_shared_from_this<Job> {
public:
    Job(LayerJobs & jobs, const wire::LayerJob & order, const std::shared_ptr<wire::Channel> & channel)
        : jobs_(jobs)
        , order_(order)
        , operator_(channel.get())
        , channel_(channel) {}

    const wire::Channel * operator_channel() const { return operator_; }
    uint32_t number() const { return order_.number; }
    bool background() const override { return true; }

    // Makes some of the new layer.
    Outcome work() override {
        {
            const std::lock_guard lock(mutex_);
            if (ended_ || !failed_.ok() || whole_ || unwritten_bytes_ >= kMaxUnwrittenBytes) return Outcome::kWaits;
        }
        std::vector<uint8_t> made;
        absl::Status failed;
        bool whole = false;
        const auto end = jobs_.clock_.now() + kJobTurn;
        do {
            const auto piece = quantizer_->next();
            failed = piece.status();
            if (!failed.ok()) break;
            whole = piece->empty();
            made.insert(made.end(), piece->begin(), piece->end());
        } while (!whole && made.size() < kJobTurnBytes && jobs_.clock_.now() < end);
        {
            const std::lock_guard lock(mutex_);
            failed_ = failed;
            whole_ = whole;
            unwritten_bytes_ += made.size();
            unwritten_.push_back(std::move(made));
        }
        jobs_.to_disk(shared_from_this());
        return failed.ok() && !whole ? Outcome::kMore : Outcome::kWaits;
    }

    // What is to be done with the disk now.
    void use_disk() {
        const absl::Status status = writer_ == nullptr ? open() : write();
        if (status.ok()) return;
        writer_.reset(); // its file goes with it
        const auto channel = channel_.lock();
        if (!end() || channel == nullptr) return;
        jobs_.log_(fmt::format("{}: layer job {} on {}: {}", channel->peer(), order_.number, order_.layer.to_string(),
                               std::string(status.message())));
        tell_failed(*channel, order_.number, status);
    }

    // False: it was over before.
    bool end() {
        {
            const std::lock_guard lock(mutex_);
            if (std::exchange(ended_, true)) return false;
        }
        jobs_.forget(*this);
        return true;
    }

private:
    absl::Status open() {
        if (over()) return absl::OkStatus();
        if (order_.type >= GGML_TYPE_COUNT)
            return absl::InvalidArgumentError(fmt::format("unknown type {}", order_.type));
        const auto type = static_cast<ggml_type>(order_.type);
        STRATA_RETURN_IF_ERROR(layers::check_quantized_type(type)); // before a large blob is hashed
        STRATA_ASSIGN_OR_RETURN(MappedBytes layer, jobs_.store_->open(order_.layer, 0));
        STRATA_ASSIGN_OR_RETURN(quantizer_,
                                layers::LayerQuantizer::make(order_.layer.to_string(), std::move(layer), type));
        STRATA_ASSIGN_OR_RETURN(writer_, jobs_.store_->create(std::nullopt, quantizer_->bytes()));
        tell_progress();
        jobs_.device_.add(shared_from_this());
        jobs_.device_.ready(this);
        if (over()) jobs_.device_.remove(this); // it was cancelled meanwhile
        return absl::OkStatus();
    }

    absl::Status write() {
        while (true) {
            std::vector<uint8_t> bytes;
            {
                const std::lock_guard lock(mutex_);
                if (ended_) return absl::CancelledError("the operator left");
                STRATA_RETURN_IF_ERROR(failed_);
                if (unwritten_.empty() && !whole_) return absl::OkStatus();
                if (unwritten_.empty()) break;
                bytes = std::move(unwritten_.front());
                unwritten_.pop_front();
            }
            STRATA_RETURN_IF_ERROR(writer_->append(bytes));
            written_bytes_ += bytes.size();
            {
                const std::lock_guard lock(mutex_);
                unwritten_bytes_ -= bytes.size();
            }
            jobs_.device_.ready(this);
            tell_progress();
        }
        STRATA_RETURN_IF_ERROR(writer_->finish().status());
        const Digest made = writer_->digest();
        writer_.reset();
        const auto channel = channel_.lock();
        if (!end() || channel == nullptr) return absl::OkStatus();
        jobs_.log_(fmt::format("{}: {} quantized as {}: {}", channel->peer(), order_.layer.to_string(),
                               layers::type_name(static_cast<ggml_type>(order_.type)), made.to_string()));
        tell(*channel,
             {order_.number, wire::JobPhase::kDone, written_bytes_, written_bytes_, made, absl::StatusCode::kOk, ""});
        return absl::OkStatus();
    }

    void tell_progress() {
        const auto now = jobs_.clock_.now();
        if (told_ && now - *told_ < kJobStateInterval) return;
        told_ = now;
        if (const auto channel = channel_.lock()) {
            tell(*channel, {order_.number,
                            wire::JobPhase::kRuns,
                            written_bytes_,
                            quantizer_->bytes(),
                            {},
                            absl::StatusCode::kOk,
                            ""});
        }
    }

    bool over() {
        const std::lock_guard lock(mutex_);
        return ended_;
    }

    LayerJobs & jobs_;
    const wire::LayerJob order_;
    const wire::Channel * const operator_;
    const std::weak_ptr<wire::Channel> channel_; // which keeps the executor

    std::optional<layers::LayerQuantizer> quantizer_; // the device's, once it has the job

    // Of the thread of LayerJobs.
    std::unique_ptr<BlobStore::Writer> writer_;
    uint64_t written_bytes_ = 0;
    std::optional<std::chrono::steady_clock::time_point> told_;

    std::mutex mutex_;
    std::deque<std::vector<uint8_t>> unwritten_;
    size_t unwritten_bytes_ = 0;
    bool whole_ = false; // all is made
    absl::Status failed_;
    bool ended_ = false;
};

LayerJobs::LayerJobs(Runtime & runtime, BlobStore * store, Device & device, Log log)
    : clock_(runtime.clock())
    , store_(store)
    , device_(device)
    , log_(std::move(log))
    , worker_(runtime.start([this] { return work_once(); })) {}

LayerJobs::~LayerJobs() = default;

std::chrono::nanoseconds LayerJobs::work_once() {
    std::shared_ptr<Job> job;
    {
        const std::lock_guard lock(mutex_);
        if (disk_queue_.empty()) return Runtime::kUntilWoken;
        job = std::move(disk_queue_.front());
        disk_queue_.pop_front();
    }
    job->use_disk();
    return Runtime::kMore;
}

void LayerJobs::to_disk(std::shared_ptr<Job> job) {
    const std::lock_guard lock(mutex_);
    disk_queue_.push_back(std::move(job));
    worker_->wake();
}

void LayerJobs::forget(const Job & job) {
    device_.remove(&job);
    const std::lock_guard lock(mutex_);
    std::erase_if(jobs_, [&](const auto & other) { return other.get() == &job; });
}

absl::Status LayerJobs::start(const wire::LayerJob & order, const std::shared_ptr<wire::Channel> & operator_channel) {
    if (store_ == nullptr) {
        tell_failed(*operator_channel, order.number, absl::FailedPreconditionError("this executor has no store"));
        return absl::OkStatus();
    }
    auto job = std::make_shared<Job>(*this, order, operator_channel);
    {
        const std::lock_guard lock(mutex_);
        size_t own = 0;
        for (const auto & other : jobs_) {
            if (other->operator_channel() != operator_channel.get()) continue;
            if (other->number() == order.number)
                return absl::InvalidArgumentError(fmt::format("layer job {} runs already", order.number));
            ++own;
        }
        if (own < kMaxJobsOfOperator && jobs_.size() < kMaxJobs) {
            jobs_.push_back(job);
            disk_queue_.push_back(std::move(job));
            worker_->wake();
            return absl::OkStatus();
        }
    }
    tell_failed(*operator_channel, order.number,
                absl::ResourceExhaustedError(fmt::format("an executor runs {} layer jobs at once, {} of one operator: "
                                                         "ask again when one of them ended",
                                                         kMaxJobs, kMaxJobsOfOperator)));
    return absl::OkStatus();
}

void LayerJobs::leave(const wire::Channel & operator_channel) {
    std::vector<std::shared_ptr<Job>> gone;
    {
        const std::lock_guard lock(mutex_);
        std::ranges::copy_if(jobs_, std::back_inserter(gone),
                             [&](const auto & job) { return job->operator_channel() == &operator_channel; });
    }
    for (const auto & job : gone) {
        job->end();
        to_disk(job); // removes its file
    }
}

} // namespace strata::executor
