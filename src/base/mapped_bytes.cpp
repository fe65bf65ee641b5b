#include "base/mapped_bytes.h"

#include <sys/mman.h>

#include <cerrno>

namespace strata {
namespace {

struct Mapping {
    void * data;
    size_t bytes;

    Mapping(void * data, size_t bytes)
        : data(data)
        , bytes(bytes) {}
    Mapping(const Mapping &) = delete;
    Mapping & operator=(const Mapping &) = delete;
    ~Mapping() { munmap(data, bytes); }
};

} // namespace

absl::StatusOr<MappedBytes> map_file(int fd, uint64_t offset, uint64_t bytes) {
    if (bytes == 0) return MappedBytes{};
    void * data = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, static_cast<off_t>(offset));
    if (data == MAP_FAILED) return absl::ErrnoToStatus(errno, "cannot map a file");
    return MappedBytes{{static_cast<const uint8_t *>(data), bytes}, std::make_shared<Mapping>(data, bytes)};
}

} // namespace strata
