#pragma once

#include "base/digest.h"
#include "wire/frame.h"

#include <array>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

// What the frames say. docs/protocol.md describes the bytes. decode() checks all that can be checked without knowing
// the connection's state: lengths, ranges that wrap, trailing bytes.
namespace strata::wire {

using Token = std::array<uint8_t, 16>;
// The first half of a SHA-256.
using GraphHash = std::array<uint8_t, 16>;

// Part of a lane's address space.
struct Segment {
    uint64_t address = 0;
    uint64_t bytes = 0;
    uint64_t end() const { return address + bytes; }
    bool operator==(const Segment &) const = default;
};

enum class Role : uint8_t { kDriver = 1, kPeer = 2, kOperator = 3 };

struct Hello {
    std::string build; // of the engine: a lane's driver and executors share one
    Role role = Role::kDriver;
    Token token{}; // of the session that a driver opens; peers name it in each push
    uint16_t device = 0;
    std::string name; // for people

    std::vector<uint8_t> encode() const;
    static absl::StatusOr<Hello> decode(std::span<const uint8_t> body);
};

struct DeviceInfo {
    std::string name;
    std::string description;
    uint64_t memory_bytes = 0;
    uint64_t free_bytes = 0;
    uint32_t alignment = 0; // of tensors
    uint16_t threads = 0;
};

struct Welcome {
    std::string build;
    std::string name;
    std::vector<DeviceInfo> devices;

    std::vector<uint8_t> encode() const;
    static absl::StatusOr<Welcome> decode(std::span<const uint8_t> body);
};

// -------------------- commands, executed in order; addresses are those that the driver invented

// A new range of the address space, filled with zeros.
struct NewBuffer {
    uint32_t id = 0;
    Segment range;
};
struct FreeBuffer {
    uint32_t id = 0;
};
struct SetBytes {
    uint64_t address = 0;
    std::span<const uint8_t> data;
};
struct FillBytes {
    Segment range;
    uint8_t value = 0;
};
struct CopyBytes {
    uint64_t to = 0;
    Segment from;
};
// The bytes of this range are not needed any more; they read as zeros.
struct DropBytes {
    Segment range;
};
// A range of a blob, and the hash of its bytes: says what is wrong with a blob that arrives with other bytes.
struct BlobPart {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    Digest digest;
    bool operator==(const BlobPart &) const = default;
};
// A blob that weights lie in: a layer of a model, or the content of one tensor alone. An executor that lacks it asks
// the driver for it, else one peer after the other.
struct OfferBlob {
    uint32_t number = 0; // the driver's, for the answers
    Digest digest;
    uint64_t bytes = 0;
    bool from_driver = false;         // the driver has it
    bool keep = false;                // in the executor's store, when it has one
    std::vector<BlobPart> parts;      // by offset, without overlaps
    std::vector<std::string> sources; // addresses of executors
};
// From now on a weight lies at the address: a contiguous tensor in an offered blob.
struct BindWeight {
    uint64_t address = 0;
    Digest blob;
    uint64_t offset = 0; // bytes from the start of the blob
    uint32_t type = 0;   // ggml_type
    std::array<int64_t, 4> ne{};
};
// The weight is not bound any more; with `keep` its bytes become ordinary memory.
struct UnbindWeight {
    uint64_t address = 0;
    bool keep = false;
};
// A graph to be named by its hash from now on.
struct DefineGraph {
    GraphHash hash{};
    std::span<const uint8_t> graph; // graph.h
};
struct ForgetGraphs {};
struct Compute {
    GraphHash hash{};
};
// Puts the weights of a defined graph where its first run would, as soon as their blobs are here and while there is
// nothing else to do. With `wait` what follows waits until all are there.
struct Prepare {
    GraphHash hash{};
    bool wait = false;
};
// Sends bytes to the lane's session at a peer, where an Expect of the same tag waits for them.
struct Push {
    uint16_t peer = 0;
    uint64_t tag = 0;
    std::vector<Segment> from;
};
struct Expect {
    uint64_t tag = 0;
    std::vector<Segment> to;
};
// Answered by a Result frame.
struct Read {
    uint64_t id = 0;
    std::vector<Segment> from;
};
// Where a peer is, and the lane's session there.
struct SetPeer {
    uint16_t index = 0;
    std::string address;
    Token token{};
};

using Command = std::variant<NewBuffer, FreeBuffer, SetBytes, FillBytes, CopyBytes, DropBytes, BindWeight, UnbindWeight,
                             DefineGraph, ForgetGraphs, Compute, Push, Expect, Read, SetPeer, OfferBlob, Prepare>;

// Appends a command to the body of a frame.
void encode(Writer & writer, const Command & command);
// The commands of a frame; spans point into `body`.
absl::StatusOr<std::vector<Command>> decode_commands(std::span<const uint8_t> body);

// -------------------- answers

// Heads of frames whose payload follows.
struct ResultHead {
    static constexpr size_t kBytes = 24;
    uint64_t id = 0;
    uint64_t graphs = 0; // as in Progress
    uint64_t busy_ns = 0;
};
struct PushHead {
    static constexpr size_t kBytes = 24;
    Token token{};
    uint64_t tag = 0;
};
// A piece of a blob, from the driver or from a peer. No bytes at all: the peer does not have it.
struct BlobHead {
    static constexpr size_t kBytes = Digest::kBytes + 16;
    Digest digest;
    uint64_t offset = 0;
    uint64_t total_bytes = 0;
};
enum class BlobState : uint8_t { kHave = 1, kNeed = 2, kMissing = 3 };
// The answer to an offer: the executor has the blob, wants its bytes from the driver (and answers again when it has
// them), or got it from nobody.
struct BlobAnswer {
    uint32_t offer = 0; // its number
    Digest digest;
    BlobState state = BlobState::kHave;
    std::string reason; // of kMissing
};
// How far a session is: all frames up to `sequence` are done.
struct Progress {
    uint64_t sequence = 0;
    uint64_t graphs = 0;
    uint64_t busy_ns = 0;
};

// Expects of tags below this go through without their push: its sender is lost, and what it would have brought will be
// made again.
struct Skip {
    uint64_t below_tag = 0;
};

// The connection to a peer ended. What was pushed last may not have arrived.
struct PeerLost {
    Token token{}; // of the lane's session there
    std::string reason;
};

// -------------------- layer jobs

enum class JobKind : uint8_t { kQuantize = 1 };
// Asks an executor to make a layer from one that lies in its store. Whoever asks and leaves cancels.
struct LayerJob {
    uint32_t number = 0; // the operator's, for the answers
    JobKind kind = JobKind::kQuantize;
    Digest layer;
    uint32_t type = 0; // ggml_type of the new layer's matrices
};
enum class JobPhase : uint8_t { kRuns = 1, kDone = 2, kFailed = 3 };
// How far a job is; the last one says how it ended.
struct JobState {
    uint32_t number = 0;
    JobPhase phase = JobPhase::kRuns;
    uint64_t done_bytes = 0; // of the new layer
    uint64_t total_bytes = 0;
    Digest layer;                                  // of kDone: the new one
    absl::StatusCode code = absl::StatusCode::kOk; // of kFailed
    std::string reason;
};

std::vector<uint8_t> encode(const ResultHead & head);
std::vector<uint8_t> encode(const PushHead & head);
std::vector<uint8_t> encode(const BlobHead & head);
std::vector<uint8_t> encode(const BlobAnswer & answer);
std::vector<uint8_t> encode(const Progress & progress);
std::vector<uint8_t> encode(const Skip & skip);
std::vector<uint8_t> encode(const PeerLost & lost);
std::vector<uint8_t> encode(const LayerJob & job);
std::vector<uint8_t> encode(const JobState & state);
absl::StatusOr<ResultHead> decode_result(std::span<const uint8_t> & body); // body: what follows is left
absl::StatusOr<PushHead> decode_push(std::span<const uint8_t> & body);
absl::StatusOr<BlobHead> decode_blob(std::span<const uint8_t> & body);
absl::StatusOr<BlobHead> decode_blob_request(std::span<const uint8_t> body); // the piece that begins at `offset`
absl::StatusOr<BlobAnswer> decode_blob_answer(std::span<const uint8_t> body);
absl::StatusOr<Progress> decode_progress(std::span<const uint8_t> body);
absl::StatusOr<Skip> decode_skip(std::span<const uint8_t> body);
absl::StatusOr<PeerLost> decode_peer_lost(std::span<const uint8_t> body);
absl::StatusOr<LayerJob> decode_layer_job(std::span<const uint8_t> body);
absl::StatusOr<JobState> decode_job_state(std::span<const uint8_t> body);

} // namespace strata::wire
