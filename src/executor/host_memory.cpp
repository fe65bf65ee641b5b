#include "base/text.h"
#include "executor/limits.h"
#include "executor/memory.h"

#include <fmt/format.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

namespace strata::executor {
namespace {

class HostBuffer : public MemoryBuffer {
public:
    HostBuffer(MemoryUse & use, uint8_t * base, uint64_t bytes)
        : use_(use)
        , base_(base)
        , bytes_(bytes)
        , ggml_(ggml_backend_cpu_buffer_from_ptr(base, bytes))
        , used_((bytes + kChunkBytes - 1) / kChunkBytes) {}
    ~HostBuffer() override {
        use_.bytes -= static_cast<uint64_t>(std::ranges::count(used_, true)) * kChunkBytes;
        ggml_.reset();
        munmap(base_, bytes_);
    }
    HostBuffer(const HostBuffer &) = delete;
    HostBuffer & operator=(const HostBuffer &) = delete;

    absl::Status write(uint64_t offset, std::span<const uint8_t> bytes) override {
        STRATA_RETURN_IF_ERROR(reserve(offset, bytes.size(), true));
        if (!bytes.empty()) std::memmove(base_ + offset, bytes.data(), bytes.size()); // may come from here
        return absl::OkStatus();
    }

    absl::Status fill(uint64_t offset, uint64_t bytes, uint8_t value) override {
        if (value == 0) {
            drop(offset, bytes);
            return absl::OkStatus();
        }
        STRATA_RETURN_IF_ERROR(reserve(offset, bytes, true));
        std::fill_n(base_ + offset, bytes, value);
        return absl::OkStatus();
    }

    absl::StatusOr<MappedBytes> read(uint64_t offset, uint64_t bytes) const override {
        return MappedBytes{{base_ + offset, bytes}, nullptr};
    }

    // Whole chunks are given back, the bytes at both ends are set.
    void drop(uint64_t offset, uint64_t bytes) override {
        const uint64_t first = (offset + kChunkBytes - 1) / kChunkBytes;
        const uint64_t last = (offset + bytes) / kChunkBytes;
        if (first >= last) {
            std::fill_n(base_ + offset, bytes, 0);
            return;
        }
        std::fill_n(base_ + offset, first * kChunkBytes - offset, 0);
        std::fill_n(base_ + last * kChunkBytes, offset + bytes - last * kChunkBytes, 0);
        static_assert(kChunkBytes % 4096 == 0); // whole pages
        madvise(base_ + first * kChunkBytes, (last - first) * kChunkBytes, MADV_DONTNEED);
        for (uint64_t chunk = first; chunk < last; ++chunk) {
            if (used_[chunk]) use_.bytes -= kChunkBytes;
            used_[chunk] = false;
        }
    }

    absl::Status reserve(uint64_t offset, uint64_t bytes, bool written) override {
        for (uint64_t chunk = offset / kChunkBytes; written && chunk * kChunkBytes < offset + bytes; ++chunk) {
            if (used_[chunk]) continue;
            STRATA_RETURN_IF_ERROR(use_.take(kChunkBytes));
            used_[chunk] = true;
        }
        return absl::OkStatus();
    }

    void place(ggml_tensor & tensor, uint64_t offset) const override {
        tensor.data = base_ + offset;
        tensor.buffer = ggml_.get();
    }

private:
    MemoryUse & use_;
    uint8_t * const base_;
    const uint64_t bytes_;
    ggml_backend_buffer_ptr ggml_;
    std::vector<bool> used_; // by chunk
};

} // namespace

absl::StatusOr<std::unique_ptr<MemoryBuffer>> make_host_buffer(MemoryUse & use, uint64_t bytes) {
    void * base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
        return absl::ResourceExhaustedError(fmt::format("cannot map {}: {}", human_bytes(bytes), strerror(errno)));
    }
    return std::make_unique<HostBuffer>(use, static_cast<uint8_t *>(base), bytes);
}

} // namespace strata::executor
