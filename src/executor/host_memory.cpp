#include "base/text.h"
#include "executor/limits.h"
#include "executor/memory.h"

#include <fmt/format.h>
#include <ggml-cpp.h>
#include <ggml-cpu.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <map>

namespace strata::executor {
namespace {

// Which chunks of a buffer are used, as runs: a buffer may be a million times as large as what is used of it.
class ChunkRuns {
public:
    uint64_t count() const { return count_; }

    // How many of those from `first` to before `last` are not used.
    uint64_t missing(uint64_t first, uint64_t last) const {
        uint64_t missing = last - first;
        for (auto run = touching(first); run != runs_.end() && run->first < last; ++run) {
            missing -= std::min(run->second, last) - std::min(std::max(run->first, first), std::min(run->second, last));
        }
        return missing;
    }
    void add(uint64_t first, uint64_t last) {
        count_ += missing(first, last);
        auto run = touching(first);
        while (run != runs_.end() && run->first <= last) {
            first = std::min(first, run->first);
            last = std::max(last, run->second);
            run = runs_.erase(run);
        }
        runs_[first] = last;
    }
    // How many were used.
    uint64_t remove(uint64_t first, uint64_t last) {
        const uint64_t removed = last - first - missing(first, last);
        count_ -= removed;
        auto run = touching(first);
        while (run != runs_.end() && run->first < last) {
            const auto [begin, end] = *run;
            run = runs_.erase(run);
            if (begin < first) runs_[begin] = std::min(end, first);
            if (end > last) runs_[std::max(begin, last)] = end;
        }
        return removed;
    }

private:
    // The first run that ends at `first` or later.
    std::map<uint64_t, uint64_t>::const_iterator touching(uint64_t first) const {
        auto run = runs_.upper_bound(first);
        if (run != runs_.begin() && std::prev(run)->second >= first) --run;
        return run;
    }

    std::map<uint64_t, uint64_t> runs_; // begin to end
    uint64_t count_ = 0;
};

class HostBuffer : public MemoryBuffer {
public:
    HostBuffer(MemoryUse & use, uint8_t * base, uint64_t bytes)
        : use_(use)
        , base_(base)
        , bytes_(bytes)
        , ggml_(ggml_backend_cpu_buffer_from_ptr(base, bytes)) {}
    ~HostBuffer() override {
        use_.bytes -= used_.count() * kChunkBytes;
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
        use_.bytes -= used_.remove(first, last) * kChunkBytes;
    }

    absl::Status reserve(uint64_t offset, uint64_t bytes, bool written) override {
        if (!written || bytes == 0) return absl::OkStatus();
        const uint64_t first = offset / kChunkBytes, last = (offset + bytes - 1) / kChunkBytes + 1;
        const uint64_t missing = used_.missing(first, last);
        if (missing == 0) return absl::OkStatus();
        STRATA_RETURN_IF_ERROR(use_.take(missing * kChunkBytes));
        used_.add(first, last);
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
    ChunkRuns used_;
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
