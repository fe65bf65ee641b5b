#include "base/text.h"
#include "executor/memory.h"
#include "executor/raw_tensor.h"

#include <fmt/format.h>
#include <ggml-cpp.h>

#include <algorithm>

namespace strata::executor {
namespace {

// Memory of a device can't be reserved first and filled later, and a tensor lies in one piece of it. So there is a
// buffer for each range that tensors were placed at; ranges that meet later become one.
class DeviceBuffer : public MemoryBuffer {
public:
    DeviceBuffer(MemoryUse & use, ggml_backend_buffer_type_t buft, uint64_t bytes)
        : use_(use)
        , buft_(buft)
        , alignment_(ggml_backend_buft_get_alignment(buft))
        , bytes_(bytes) {}
    ~DeviceBuffer() override {
        for (const auto & [offset, piece] : pieces_) use_.bytes -= piece.taken();
    }
    DeviceBuffer(const DeviceBuffer &) = delete;
    DeviceBuffer & operator=(const DeviceBuffer &) = delete;

    absl::Status write(uint64_t offset, std::span<const uint8_t> bytes) override {
        while (!bytes.empty()) {
            auto piece = piece_at(offset);
            if (piece == pieces_.end()) { // up to the next one
                const auto next = pieces_.upper_bound(offset);
                const uint64_t gap = next == pieces_.end() ? bytes.size() : next->first - offset;
                STRATA_RETURN_IF_ERROR(reserve(offset, std::min<uint64_t>(gap, bytes.size()), true));
                piece = piece_at(offset);
            }
            const uint64_t here = std::min<uint64_t>(bytes.size(), piece->second.end() - offset);
            ggml_tensor raw = piece->second.raw(offset, here);
            ggml_backend_tensor_set(&raw, bytes.data(), 0, here);
            offset += here;
            bytes = bytes.subspan(here);
        }
        return absl::OkStatus();
    }

    absl::Status fill(uint64_t offset, uint64_t bytes, uint8_t value) override {
        if (value == 0) {
            clear(offset, bytes);
            return absl::OkStatus();
        }
        const std::vector<uint8_t> some(std::min<uint64_t>(bytes, kCopyBytes), value);
        for (uint64_t at = 0; at < bytes; at += some.size()) {
            STRATA_RETURN_IF_ERROR(
                write(offset + at, std::span(some).first(std::min<uint64_t>(some.size(), bytes - at))));
        }
        return absl::OkStatus();
    }

    absl::StatusOr<MappedBytes> read(uint64_t offset, uint64_t bytes) const override {
        const auto copy = std::make_shared<std::vector<uint8_t>>(bytes); // zeros
        for (auto piece = first_that_meets(offset); piece != pieces_.end() && piece->first < offset + bytes; ++piece) {
            const uint64_t begin = std::max(offset, piece->first);
            const uint64_t end = std::min(offset + bytes, piece->second.end());
            const ggml_tensor raw = piece->second.raw(begin, end - begin);
            ggml_backend_tensor_get(&raw, copy->data() + (begin - offset), 0, end - begin);
        }
        return MappedBytes{*copy, copy};
    }

    void drop(uint64_t offset, uint64_t bytes) override {
        for (auto piece = first_that_meets(offset); piece != pieces_.end() && piece->first < offset + bytes;) {
            if (piece->first < offset || piece->second.end() > offset + bytes) {
                ++piece;
                continue;
            }
            use_.bytes -= piece->second.taken();
            ++use_.moves;
            piece = pieces_.erase(piece);
        }
        clear(offset, bytes); // of those at both ends
    }

    absl::Status reserve(uint64_t offset, uint64_t bytes, bool) override {
        uint64_t begin = offset / alignment_ * alignment_;
        uint64_t end = std::min(bytes_, (offset + bytes + alignment_ - 1) / alignment_ * alignment_);
        uint64_t there = 0;
        const auto first = first_that_meets(begin);
        auto last = first;
        for (; last != pieces_.end() && last->first < end; ++last) {
            if (last->first <= begin && end <= last->second.end()) return absl::OkStatus();
            there += last->second.taken();
        }
        if (first != last) {
            begin = std::min(begin, first->first);
            end = std::max(end, std::prev(last)->second.end());
        }
        Piece made{begin, end - begin, nullptr};
        STRATA_RETURN_IF_ERROR(use_.take(made.taken()));
        if (absl::Status allocated = allocate(made); !allocated.ok()) {
            use_.bytes -= made.taken();
            return allocated;
        }
        for (auto piece = first; piece != last; ++piece) {
            ggml_tensor from = piece->second.raw(piece->first, piece->second.bytes);
            ggml_tensor to = made.raw(piece->first, piece->second.bytes);
            ggml_backend_tensor_copy(&from, &to);
            ++use_.moves;
        }
        use_.bytes -= there;
        pieces_.erase(first, last);
        pieces_.emplace(begin, std::move(made));
        return absl::OkStatus();
    }

    void place(ggml_tensor & tensor, uint64_t offset) const override {
        const auto piece = piece_at(offset);
        tensor.buffer = piece->second.ggml.get();
        tensor.data = piece->second.at(offset);
    }

private:
    static constexpr uint64_t kPaddingBytes = 4096;
    struct Piece {
        uint64_t begin = 0;
        uint64_t bytes = 0;
        ggml_backend_buffer_ptr ggml;

        uint64_t end() const { return begin + bytes; }
        // What ggml's kernels may read beyond a tensor's end is there as well.
        uint64_t taken() const { return bytes + kPaddingBytes; }
        uint8_t * at(uint64_t offset) const {
            return static_cast<uint8_t *>(ggml_backend_buffer_get_base(ggml.get())) + (offset - begin);
        }
        ggml_tensor raw(uint64_t offset, uint64_t size) const { return raw_tensor(ggml.get(), at(offset), size); }
    };
    using Pieces = std::map<uint64_t, Piece>; // by offset

    static constexpr uint64_t kCopyBytes = uint64_t{1} << 20;

    absl::Status allocate(Piece & piece) const {
        if (!has_room(buft_, piece.taken())) use_.make_room();
        if (has_room(buft_, piece.taken()) && piece.taken() <= ggml_backend_buft_get_max_size(buft_))
            piece.ggml.reset(ggml_backend_buft_alloc_buffer(buft_, piece.taken()));
        if (piece.ggml == nullptr) {
            return absl::ResourceExhaustedError(
                fmt::format("{} has no {} left", ggml_backend_buft_name(buft_), human_bytes(piece.taken())));
        }
        ggml_backend_buffer_clear(piece.ggml.get(), 0);
        return absl::OkStatus();
    }

    // The first piece with a byte at `offset` or after it.
    Pieces::const_iterator first_that_meets(uint64_t offset) const {
        auto piece = pieces_.upper_bound(offset);
        if (piece != pieces_.begin() && std::prev(piece)->second.end() > offset) --piece;
        return piece;
    }
    Pieces::const_iterator piece_at(uint64_t offset) const {
        const auto piece = first_that_meets(offset);
        return piece != pieces_.end() && piece->first <= offset ? piece : pieces_.end();
    }

    void clear(uint64_t offset, uint64_t bytes) {
        const std::vector<uint8_t> zeros(std::min<uint64_t>(bytes, kCopyBytes));
        for (auto piece = first_that_meets(offset); piece != pieces_.end() && piece->first < offset + bytes; ++piece) {
            const uint64_t end = std::min(offset + bytes, piece->second.end());
            for (uint64_t at = std::max(offset, piece->first); at < end; at += zeros.size()) {
                const uint64_t here = std::min<uint64_t>(zeros.size(), end - at);
                ggml_tensor raw = piece->second.raw(at, here);
                ggml_backend_tensor_set(&raw, zeros.data(), 0, here);
            }
        }
    }

    MemoryUse & use_;
    const ggml_backend_buffer_type_t buft_;
    const uint64_t alignment_;
    const uint64_t bytes_;
    Pieces pieces_; // without overlaps
};

} // namespace

bool has_room(ggml_backend_buffer_type_t buft, uint64_t bytes) {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_buft_get_device(buft), &free, &total);
    return bytes <= free && free - bytes >= total / 16;
}

absl::StatusOr<std::unique_ptr<MemoryBuffer>> make_device_buffer(MemoryUse & use, ggml_backend_buffer_type_t buft,
                                                                 wire::Segment range) {
    const size_t alignment = ggml_backend_buft_get_alignment(buft);
    if (range.address % alignment != 0)
        return absl::InvalidArgumentError(fmt::format("a buffer that is not aligned to {}", alignment));
    return std::make_unique<DeviceBuffer>(use, buft, range.bytes);
}

} // namespace strata::executor
