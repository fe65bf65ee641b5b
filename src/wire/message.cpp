#include "wire/message.h"

#include <fmt/format.h>

namespace strata::wire {
namespace {

// Nothing real comes near these; they keep what a frame can make us allocate within its own size.
constexpr size_t kMaxTextBytes = 255;
constexpr size_t kMaxDevices = 64;
constexpr size_t kMaxSources = 256;
constexpr size_t kMaxCommands = size_t{1} << 20; // of a frame

// Flags of OfferBlob.
constexpr uint8_t kFromDriver = 1;
constexpr uint8_t kKeep = 2;

absl::Status malformed(std::string_view what) {
    return absl::InvalidArgumentError(fmt::format("malformed {}", what));
}

void put(Writer & writer, const Segment & segment) {
    writer.put(segment.address);
    writer.put(segment.bytes);
}

// False for an empty range, and for one that wraps.
bool get(Reader & reader, Segment & segment) {
    segment.address = reader.get<uint64_t>();
    segment.bytes = reader.get<uint64_t>();
    return segment.bytes > 0 && segment.address + segment.bytes > segment.address;
}

void put(Writer & writer, const std::vector<Segment> & segments) {
    writer.put(static_cast<uint32_t>(segments.size()));
    for (const Segment & segment : segments) put(writer, segment);
}

bool get(Reader & reader, std::vector<Segment> & segments) {
    const auto count = reader.get<uint32_t>();
    if (count == 0 || count > reader.left() / 16) return false;
    segments.resize(count);
    uint64_t total = 0;
    for (Segment & segment : segments) {
        if (!get(reader, segment)) return false;
        total += segment.bytes;
        if (total < segment.bytes) return false;
    }
    return true;
}

template <size_t N>
void put(Writer & writer, const std::array<uint8_t, N> & bytes) {
    writer.raw(bytes.data(), N);
}

template <size_t N>
void get(Reader & reader, std::array<uint8_t, N> & bytes) {
    reader.raw(bytes.data(), N);
}

Digest get_digest(Reader & reader) {
    std::array<uint8_t, Digest::kBytes> bytes{};
    get(reader, bytes);
    return Digest(bytes);
}

bool get(Reader & reader, std::string & text) {
    text = reader.text();
    return text.size() <= kMaxTextBytes;
}

// One overload for each command: put_body writes what follows its number, get_body reads it.
void put_body(Writer & w, const NewBuffer & c) {
    w.put(c.id);
    put(w, c.range);
}
bool get_body(Reader & r, NewBuffer & c) {
    c.id = r.get<uint32_t>();
    return get(r, c.range);
}
void put_body(Writer & w, const FreeBuffer & c) {
    w.put(c.id);
}
bool get_body(Reader & r, FreeBuffer & c) {
    c.id = r.get<uint32_t>();
    return true;
}
void put_body(Writer & w, const SetBytes & c) {
    put(w, Segment{c.address, c.data.size()});
    w.raw(c.data.data(), c.data.size());
}
bool get_body(Reader & r, SetBytes & c) {
    Segment range;
    if (!get(r, range)) return false;
    c.address = range.address;
    c.data = r.take(range.bytes);
    return true;
}
void put_body(Writer & w, const FillBytes & c) {
    put(w, c.range);
    w.put(c.value);
}
bool get_body(Reader & r, FillBytes & c) {
    const bool ok = get(r, c.range);
    c.value = r.get<uint8_t>();
    return ok;
}
void put_body(Writer & w, const CopyBytes & c) {
    w.put(c.to);
    put(w, c.from);
}
bool get_body(Reader & r, CopyBytes & c) {
    c.to = r.get<uint64_t>();
    return get(r, c.from) && c.to + c.from.bytes > c.to;
}
void put_body(Writer & w, const DropBytes & c) {
    put(w, c.range);
}
bool get_body(Reader & r, DropBytes & c) {
    return get(r, c.range);
}
void put_body(Writer & w, const BindWeight & c) {
    w.put(c.address);
    put(w, c.blob.bytes());
    w.put(c.offset);
    w.put(c.type);
    for (const int64_t n : c.ne) w.put(n);
}
bool get_body(Reader & r, BindWeight & c) {
    c.address = r.get<uint64_t>();
    c.blob = get_digest(r);
    c.offset = r.get<uint64_t>();
    c.type = r.get<uint32_t>();
    for (int64_t & n : c.ne) n = r.get<int64_t>();
    return true;
}
void put_body(Writer & w, const UnbindWeight & c) {
    w.put(c.address);
    w.put(static_cast<uint8_t>(c.keep));
}
bool get_body(Reader & r, UnbindWeight & c) {
    c.address = r.get<uint64_t>();
    const auto keep = r.get<uint8_t>();
    c.keep = keep != 0;
    return keep <= 1;
}
void put_body(Writer & w, const DefineGraph & c) {
    put(w, c.hash);
    w.put(static_cast<uint32_t>(c.graph.size()));
    w.raw(c.graph.data(), c.graph.size());
}
bool get_body(Reader & r, DefineGraph & c) {
    get(r, c.hash);
    c.graph = r.take(r.get<uint32_t>());
    return true;
}
void put_body(Writer &, const ForgetGraphs &) {}
bool get_body(Reader &, ForgetGraphs &) {
    return true;
}
void put_body(Writer & w, const Compute & c) {
    put(w, c.hash);
}
bool get_body(Reader & r, Compute & c) {
    get(r, c.hash);
    return true;
}
void put_body(Writer & w, const Push & c) {
    w.put(c.peer);
    w.put(c.tag);
    put(w, c.from);
}
bool get_body(Reader & r, Push & c) {
    c.peer = r.get<uint16_t>();
    c.tag = r.get<uint64_t>();
    return get(r, c.from);
}
void put_body(Writer & w, const Expect & c) {
    w.put(c.tag);
    put(w, c.to);
}
bool get_body(Reader & r, Expect & c) {
    c.tag = r.get<uint64_t>();
    return get(r, c.to);
}
void put_body(Writer & w, const Read & c) {
    w.put(c.id);
    put(w, c.from);
}
bool get_body(Reader & r, Read & c) {
    c.id = r.get<uint64_t>();
    return get(r, c.from);
}
void put_body(Writer & w, const SetPeer & c) {
    w.put(c.index);
    w.text(c.address);
    put(w, c.token);
}
bool get_body(Reader & r, SetPeer & c) {
    c.index = r.get<uint16_t>();
    const bool ok = get(r, c.address);
    get(r, c.token);
    return ok;
}

void put_body(Writer & w, const OfferBlob & c) {
    w.put(c.number);
    put(w, c.digest.bytes());
    w.put(c.bytes);
    w.put(static_cast<uint8_t>((c.from_driver ? kFromDriver : 0) | (c.keep ? kKeep : 0)));
    w.put(static_cast<uint32_t>(c.parts.size()));
    for (const BlobPart & part : c.parts) {
        w.put(part.offset);
        w.put(part.bytes);
        put(w, part.digest.bytes());
    }
    w.put(static_cast<uint16_t>(c.sources.size()));
    for (const std::string & source : c.sources) w.text(source);
}
bool get_body(Reader & r, OfferBlob & c) {
    c.number = r.get<uint32_t>();
    c.digest = get_digest(r);
    c.bytes = r.get<uint64_t>();
    const auto flags = r.get<uint8_t>();
    c.from_driver = (flags & kFromDriver) != 0;
    c.keep = (flags & kKeep) != 0;
    const auto parts = r.get<uint32_t>();
    if (c.bytes == 0 || flags > (kFromDriver | kKeep) || parts > r.left() / (Digest::kBytes + 16)) return false;
    c.parts.resize(parts);
    uint64_t end = 0;
    for (BlobPart & part : c.parts) {
        part.offset = r.get<uint64_t>();
        part.bytes = r.get<uint64_t>();
        part.digest = get_digest(r);
        if (part.offset < end || part.offset > c.bytes || part.bytes == 0 || part.bytes > c.bytes - part.offset)
            return false;
        end = part.offset + part.bytes;
    }
    const auto sources = r.get<uint16_t>();
    if (sources > kMaxSources) return false;
    c.sources.resize(sources);
    for (std::string & source : c.sources) {
        if (!get(r, source)) return false;
    }
    return true;
}

void put_body(Writer & w, const Prepare & c) {
    put(w, c.hash);
    w.put(static_cast<uint8_t>(c.wait ? 1 : 0));
}
bool get_body(Reader & r, Prepare & c) {
    get(r, c.hash);
    const auto wait = r.get<uint8_t>();
    c.wait = wait == 1;
    return wait <= 1;
}

// The number of a command is its place in Command, counted from 1.
template <size_t I = 0>
bool get_command(Reader & reader, uint8_t number, Command & command) {
    if constexpr (I < std::variant_size_v<Command>) {
        if (number != I + 1) return get_command<I + 1>(reader, number, command);
        return get_body(reader, command.emplace<I>());
    }
    return false;
}

} // namespace

void encode(Writer & writer, const Command & command) {
    writer.put(static_cast<uint8_t>(command.index() + 1));
    std::visit([&](const auto & body) { put_body(writer, body); }, command);
}

absl::StatusOr<std::vector<Command>> decode_commands(std::span<const uint8_t> body) {
    Reader reader(body);
    std::vector<Command> commands;
    while (!reader.done()) {
        if (commands.size() >= kMaxCommands) return malformed("commands: too many in one frame");
        const auto number = reader.get<uint8_t>();
        if (!get_command(reader, number, commands.emplace_back()) || !reader.ok()) {
            return malformed(fmt::format("command {} (kind {})", commands.size(), number));
        }
    }
    if (!reader.ok()) return malformed("commands");
    return commands;
}

std::vector<uint8_t> Hello::encode() const {
    Writer writer;
    writer.text(build);
    writer.put(role);
    put(writer, token);
    writer.put(device);
    writer.text(name);
    return writer.take();
}

absl::StatusOr<Hello> Hello::decode(std::span<const uint8_t> body) {
    Reader reader(body);
    Hello hello;
    bool ok = get(reader, hello.build);
    hello.role = reader.get<Role>();
    get(reader, hello.token);
    hello.device = reader.get<uint16_t>();
    ok = get(reader, hello.name) && ok;
    ok = ok && hello.role >= Role::kDriver && hello.role <= Role::kOperator;
    if (!ok || !reader.ok() || !reader.done()) return malformed("hello");
    return hello;
}

std::vector<uint8_t> Welcome::encode() const {
    Writer writer;
    writer.text(build);
    writer.text(name);
    writer.put(static_cast<uint16_t>(devices.size()));
    for (const DeviceInfo & device : devices) {
        writer.text(device.name);
        writer.text(device.description);
        writer.put(device.memory_bytes);
        writer.put(device.free_bytes);
        writer.put(device.alignment);
        writer.put(device.threads);
    }
    return writer.take();
}

absl::StatusOr<Welcome> Welcome::decode(std::span<const uint8_t> body) {
    Reader reader(body);
    Welcome welcome;
    bool ok = get(reader, welcome.build) && get(reader, welcome.name);
    const auto count = reader.get<uint16_t>();
    if (!ok || count > kMaxDevices) return malformed("welcome");
    welcome.devices.resize(count);
    for (DeviceInfo & device : welcome.devices) {
        ok = get(reader, device.name) && get(reader, device.description) && ok;
        device.memory_bytes = reader.get<uint64_t>();
        device.free_bytes = reader.get<uint64_t>();
        device.alignment = reader.get<uint32_t>();
        device.threads = reader.get<uint16_t>();
    }
    if (!ok || !reader.ok() || !reader.done()) return malformed("welcome");
    return welcome;
}

std::vector<uint8_t> encode(const ResultHead & head) {
    Writer writer;
    writer.put(head.id);
    writer.put(head.graphs);
    writer.put(head.busy_ns);
    return writer.take();
}

std::vector<uint8_t> encode(const PushHead & head) {
    Writer writer;
    put(writer, head.token);
    writer.put(head.tag);
    return writer.take();
}

std::vector<uint8_t> encode(const BlobHead & head) {
    Writer writer;
    put(writer, head.digest.bytes());
    writer.put(head.offset);
    writer.put(head.total_bytes);
    return writer.take();
}

std::vector<uint8_t> encode(const BlobAnswer & answer) {
    Writer writer;
    writer.put(answer.offer);
    put(writer, answer.digest.bytes());
    writer.put(answer.state);
    writer.text(std::string_view(answer.reason).substr(0, kMaxTextBytes));
    return writer.take();
}

std::vector<uint8_t> encode(const PeerLost & lost) {
    Writer writer;
    put(writer, lost.token);
    writer.text(std::string_view(lost.reason).substr(0, kMaxTextBytes));
    return writer.take();
}

std::vector<uint8_t> encode(const LayerJob & job) {
    Writer writer;
    writer.put(job.number);
    writer.put(job.kind);
    put(writer, job.layer.bytes());
    writer.put(job.type);
    return writer.take();
}

std::vector<uint8_t> encode(const JobState & state) {
    Writer writer;
    writer.put(state.number);
    writer.put(state.phase);
    writer.put(state.done_bytes);
    writer.put(state.total_bytes);
    put(writer, state.layer.bytes());
    writer.put(static_cast<uint8_t>(state.code));
    writer.text(std::string_view(state.reason).substr(0, kMaxTextBytes));
    return writer.take();
}

std::vector<uint8_t> encode(const Progress & progress) {
    Writer writer;
    writer.put(progress.sequence);
    writer.put(progress.graphs);
    writer.put(progress.busy_ns);
    return writer.take();
}

std::vector<uint8_t> encode(const Skip & skip) {
    Writer writer;
    writer.put(skip.below_tag);
    return writer.take();
}

absl::StatusOr<Skip> decode_skip(std::span<const uint8_t> body) {
    Reader reader(body);
    const Skip skip{reader.get<uint64_t>()};
    if (!reader.ok() || !reader.done()) return malformed("skip");
    return skip;
}

absl::StatusOr<ResultHead> decode_result(std::span<const uint8_t> & body) {
    if (body.size() < ResultHead::kBytes) return malformed("result");
    Reader reader(body);
    ResultHead head;
    head.id = reader.get<uint64_t>();
    head.graphs = reader.get<uint64_t>();
    head.busy_ns = reader.get<uint64_t>();
    body = body.subspan(ResultHead::kBytes);
    return head;
}

absl::StatusOr<PushHead> decode_push(std::span<const uint8_t> & body) {
    if (body.size() <= PushHead::kBytes) return malformed("push");
    Reader reader(body);
    PushHead head;
    get(reader, head.token);
    head.tag = reader.get<uint64_t>();
    body = body.subspan(PushHead::kBytes);
    return head;
}

absl::StatusOr<BlobHead> decode_blob(std::span<const uint8_t> & body) {
    if (body.size() < BlobHead::kBytes) return malformed("piece of a blob");
    Reader reader(body);
    BlobHead head;
    head.digest = get_digest(reader);
    head.offset = reader.get<uint64_t>();
    head.total_bytes = reader.get<uint64_t>();
    body = body.subspan(BlobHead::kBytes);
    if (head.offset > head.total_bytes || body.size() > head.total_bytes - head.offset)
        return malformed("piece of a blob");
    return head;
}

absl::StatusOr<BlobHead> decode_blob_request(std::span<const uint8_t> body) {
    Reader reader(body);
    BlobHead head;
    head.digest = get_digest(reader);
    head.offset = reader.get<uint64_t>();
    head.total_bytes = reader.get<uint64_t>();
    if (!reader.ok() || !reader.done()) return malformed("request for a blob");
    return head;
}

absl::StatusOr<BlobAnswer> decode_blob_answer(std::span<const uint8_t> body) {
    Reader reader(body);
    BlobAnswer answer;
    answer.offer = reader.get<uint32_t>();
    answer.digest = get_digest(reader);
    answer.state = reader.get<BlobState>();
    const bool known = answer.state >= BlobState::kHave && answer.state <= BlobState::kMissing;
    if (!known || !get(reader, answer.reason) || !reader.ok() || !reader.done())
        return malformed("answer about a blob");
    return answer;
}

absl::StatusOr<PeerLost> decode_peer_lost(std::span<const uint8_t> body) {
    Reader reader(body);
    PeerLost lost;
    get(reader, lost.token);
    if (!get(reader, lost.reason) || !reader.ok() || !reader.done()) return malformed("loss of a peer");
    return lost;
}

absl::StatusOr<LayerJob> decode_layer_job(std::span<const uint8_t> body) {
    Reader reader(body);
    LayerJob job;
    job.number = reader.get<uint32_t>();
    job.kind = reader.get<JobKind>();
    job.layer = get_digest(reader);
    job.type = reader.get<uint32_t>();
    if (job.kind != JobKind::kQuantize || !reader.ok() || !reader.done()) return malformed("layer job");
    return job;
}

absl::StatusOr<JobState> decode_job_state(std::span<const uint8_t> body) {
    Reader reader(body);
    JobState state;
    state.number = reader.get<uint32_t>();
    state.phase = reader.get<JobPhase>();
    state.done_bytes = reader.get<uint64_t>();
    state.total_bytes = reader.get<uint64_t>();
    state.layer = get_digest(reader);
    const auto code = reader.get<uint8_t>();
    state.code = static_cast<absl::StatusCode>(code);
    const bool known = state.phase >= JobPhase::kRuns && state.phase <= JobPhase::kFailed &&
                       state.done_bytes <= state.total_bytes &&
                       code <= static_cast<uint8_t>(absl::StatusCode::kUnauthenticated) &&
                       (state.code != absl::StatusCode::kOk) == (state.phase == JobPhase::kFailed);
    if (!get(reader, state.reason) || !known || !reader.ok() || !reader.done()) return malformed("state of a job");
    return state;
}

absl::StatusOr<Progress> decode_progress(std::span<const uint8_t> body) {
    Reader reader(body);
    Progress progress;
    progress.sequence = reader.get<uint64_t>();
    progress.graphs = reader.get<uint64_t>();
    progress.busy_ns = reader.get<uint64_t>();
    if (!reader.ok() || !reader.done()) return malformed("progress");
    return progress;
}

} // namespace strata::wire
