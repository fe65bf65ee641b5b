#pragma once

#include "mesh/directory.h"
#include "mesh/journal.h"
#include "mesh/kept_weights.h"
#include "mesh/link.h"
#include "mesh/model_layers.h"
#include "mesh/step.h"

#include <absl/container/flat_hash_map.h>
#include <absl/container/flat_hash_set.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace strata::mesh {

struct LaneOptions {
    std::vector<std::string> executors; // addresses
    // How many of the model's weight bytes each executor gets, relative to the others; none: the same for all.
    std::vector<double> split;
    // Instead of one part for each executor: this many cuts, the executors taking turns. For measurements.
    size_t cuts = 0;
    // Every node of every graph on an executor chosen at random: for tests.
    std::optional<uint64_t> scatter_seed;
    // Every few graphs some layers move to an executor chosen at random: for tests.
    std::optional<uint64_t> rebind_seed;
    std::string build;
    std::string name; // for people who look at the executors
    // What happens when an executor is lost. kRebind: the others take its layers; kWait: its layers wait for move().
    // All since the beginning is done again then, with equal results. That takes a journal, and a copy in `folder` of
    // the weights that no layers are known for.
    enum class OnLoss { kFail, kRebind, kWait } on_loss = OnLoss::kFail;
    std::string folder = "/var/tmp";
    // Where the model's weights lie; nullptr: unknown, they are hashed when they are set.
    std::shared_ptr<const ModelLayers> model;
    // Weights that the executors have, while they are brought there.
    std::function<void(uint64_t done, uint64_t total)> progress;
    std::function<void(const std::string &)> log = [](const std::string &) {};
    Runtime * runtime = &Runtime::real();
};

// What a buffer holds, as ggml's usage says; looked up anew for each graph, since ggml changes it without a word.
enum class Usage { kState, kWeights, kCompute };

// Weights on their way: all are there; an answer is waited for; a link is full; something was sent just now.
enum class Delivering { kDone, kWaits, kFull, kSent };

// One ggml device: an address space that the executors of a mesh hold together, and the graphs that run in it where
// their layers are bound. Commands go out in order and nobody waits for them; only what is read is waited for.
// Thread-safe: one call at a time goes on.
//
// When an executor is lost and its part can't be done again elsewhere, each further call fails, or does nothing where
// libllama takes no answer: status() is why.
class Lane {
public:
    static absl::StatusOr<std::unique_ptr<Lane>> open(wire::Network & network, LaneOptions options);
    ~Lane();
    // Ends all connections: whatever is asked for after it fails.
    void close();

    absl::Status status() const; // waits for what the lane does
    bool failed() const { return has_failed_; }
    uint64_t free_bytes() const;
    uint64_t total_bytes() const;
    uint32_t alignment() const;
    std::string description() const;

    // A buffer, zero everywhere. `usage` is asked while the buffer lives.
    struct Buffer {
        uint32_t id = 0;
        Segment range;
        std::function<Usage()> usage;
    };
    const Buffer & allocate(uint64_t bytes);
    void set_usage(const Buffer & buffer, std::function<Usage()> usage);
    void free(const Buffer & buffer);
    // A tensor of the model, or one of its state, lies at this place.
    void place(const ggml_tensor & tensor);

    void set(Segment range, const void * data);
    // `data` is not looked at when options.model knows the tensor.
    void set_weight(const ggml_tensor & tensor, const void * data);
    bool has_weight(std::string_view name) const;
    // While a model is loaded its graphs are not run, which llama.cpp does with one to warm up: their weights are
    // brought to where they will run, and made ready there. Then options.progress is not called any more.
    void begin_loading();
    void end_loading();
    void fill(Segment range, uint8_t value);
    void copy(uint64_t to, Segment from);
    // `to` is filled when synchronize() returns.
    void read(Segment range, void * to);
    absl::Status synchronize();

    absl::Status compute(const ggml_cgraph & graph);

    // From the next graph on these layers run elsewhere: their weights and their state follow. When they were lost with
    // their executor, all is done again there first.
    absl::Status bind(int32_t first_layer, int32_t last_layer, size_t executor);
    // The same from another thread, while the lane works: the weights are brought to the executor at `address`, which
    // may be a new one, between steps; then the layers' state goes there, and former owners give their memory back.
    // last_layer: the tail counts as one more than the last block.
    absl::Status move(int32_t first_layer, int32_t last_layer, const std::string & address);
    // One more executor, to which nothing is bound yet; its number.
    absl::StatusOr<size_t> add_executor(const std::string & address);

    struct PartStatus {
        std::string executor;
        int32_t first_layer = 0, last_layer = 0; // the tail counts as one more than the last block
        uint64_t weights_bytes = 0;
        bool lost = false;       // the executor; the next step finds another one
        Link::Counters counters; // of the link to the executor, whatever its number of parts
    };
    std::vector<PartStatus> parts() const; // does not wait for what the lane does

private:
    struct Placed {
        std::string name;
        uint64_t bytes = 0;
        int32_t layer = 0;
        bool weight = false; // of the model's file, by its name
    };
    struct Pending {
        Segment range;
        void * to;
        size_t after; // how many of the journal's entries
    };
    struct Source {
        wire::OfferBlob offer;
        std::function<absl::StatusOr<MappedBytes>()> open; // none: the driver does not have it
    };
    struct Wanted {
        uint64_t weight; // address
        size_t executor;
    };
    struct Delivery { // of a blob to an executor
        size_t executor = 0;
        Digest blob;
        uint64_t bytes = 0;
        MappedBytes mapped; // empty: the driver does not have it
        bool done = false;
        uint64_t sent = 0;
    };
    struct Captured {
        std::shared_ptr<const CapturedGraph> graph;
        Plan plan;
        uint64_t bindings = 0; // the version of the bindings that the plan is for; 0: none yet
    };

    Lane(wire::Network & network, LaneOptions options);

    absl::StatusOr<std::shared_ptr<Link>> open_link(const std::string & address) const;
    absl::StatusOr<size_t> adopt(const std::shared_ptr<Link> & link);
    std::optional<size_t> executor_at(const std::string & address) const;
    int32_t tail_number() const;
    void leave_only(uint64_t address, uint64_t bytes, size_t executor);
    absl::Status status_locked() const;
    absl::Status fail(const absl::Status & reason);
    void bind_by_size();
    absl::Status hand_over(const std::function<bool(int32_t)> & moves, size_t executor,
                           std::unique_lock<std::mutex> * lock);
    absl::Status rebind_at_random();
    size_t random_executor();
    void bindings_changed();
    size_t executor_of(int32_t layer) const;
    size_t anchor(const CapturedGraph::Tensor & tensor) const;
    void learn_state_layers(const CapturedGraph & graph);
    const Buffer * buffer_at(uint64_t address) const;
    absl::StatusOr<Captured *> captured(const ggml_cgraph & graph);
    std::vector<size_t> scatter(const CapturedGraph & graph);
    Plan plan_for(const CapturedGraph & graph);
    size_t any_executor() const;
    void put(Segment range, Bytes bytes);
    void put_fill(Segment range, uint8_t value);
    void put_copy(uint64_t to, Segment from);
    void start_read(Segment range, void * to);
    absl::Status run(const Plan & plan);
    void name_graph(const Part & part);
    absl::Status rehearse(const CapturedGraph & graph, Plan plan, std::unique_lock<std::mutex> & lock);
    bool reads_came();
    std::optional<std::vector<Segment>> rows_of(const RowWrite & write) const;
    absl::Status mend(std::unique_lock<std::mutex> & lock);
    absl::Status mend_once(std::unique_lock<std::mutex> & lock);
    absl::Status note_losses();
    void sound_out();
    void forget(size_t executor, const absl::Status & reason);
    void collect_partings(size_t executor);
    absl::Status replay();
    void bring(const std::vector<Segment> & ranges, size_t executor);
    absl::Status bring_weights(const std::vector<Wanted> & wanted, std::unique_lock<std::mutex> * lock = nullptr);
    absl::Status await(std::vector<Delivery> & deliveries, std::unique_lock<std::mutex> * lock);
    Delivery offer(const Digest & blob, size_t executor);
    std::vector<Delivery> offer_and_bind(const std::vector<Wanted> & wanted);
    absl::StatusOr<Delivering> deliver(std::vector<Delivery> & deliveries);
    void give_up(const std::vector<Delivery> & deliveries);
    bool send_piece(Delivery & delivery);
    void make_plain(Segment range); // weights in it become ordinary memory
    void flush();

    const LaneOptions options_;
    wire::Network & network_;
    const std::shared_ptr<LinkSignal> signal_ = std::make_shared<LinkSignal>(*options_.runtime);
    std::vector<std::shared_ptr<Link>> links_; // lost ones keep their place

    mutable std::mutex mutex_;
    std::condition_variable rebound_;
    std::function<void(uint64_t done, uint64_t total)> progress_;
    bool loading_ = false;
    absl::Status failed_; // set by fail()
    std::atomic<bool> has_failed_ = false;
    uint64_t next_address_ = uint64_t{1} << 40;
    uint32_t next_buffer_ = 1;
    std::map<uint64_t, Buffer> buffers_; // by address
    std::map<uint64_t, Placed> placed_;
    Weights weights_;
    std::map<Digest, Source> blobs_; // that weights lie in
    absl::flat_hash_set<std::string> weight_names_;
    Directory directory_;
    std::map<int32_t, size_t> bindings_;
    uint64_t bindings_version_ = 1; // also of the weights' places
    mutable std::mutex parts_mutex_;
    std::vector<std::pair<PartStatus, std::shared_ptr<Link>>> parts_;
    uint64_t next_tag_ = 1;
    absl::flat_hash_map<uint64_t, Captured> captured_; // by ggml's number
    Captured unnamed_;
    std::vector<absl::flat_hash_set<wire::GraphHash>> named_graphs_; // at each executor
    std::mt19937_64 random_;
    uint64_t steps_ = 0;
    std::vector<Pending> pending_; // reads that synchronize() waits for
    Holders lost_ = 0;
    absl::Status loss_;   // the last one
    bool broken_ = false; // something is lost: all is to be done again before anything else is
    std::vector<std::pair<size_t, size_t>> parting_; // executors that lost their way to each other now
    std::set<std::pair<size_t, size_t>> parted_;     // or before, and went on
    Journal journal_;
    KeptWeights kept_;
    std::vector<Segment> freed_; // buffers that the journal still writes to
};

} // namespace strata::mesh
