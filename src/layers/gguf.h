#pragma once

#include "base/status.h"
#include "base/unique_fd.h"

#include <ggml.h>
#include <gguf.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// A strict reader of GGUF headers, for files from anywhere. It takes what llama.cpp takes (versions 2 and 3, gguf.cpp)
// and refuses what would need a guess; every count, length, offset and product is checked against the file's size
// before it is used. Upstream's own reader is not used since it logs its findings instead of returning them.
namespace strata::layers {

// One key-value pair of a GGUF's metadata. The views point into the header's bytes.
struct GgufValue {
    std::string_view key;
    gguf_type type = GGUF_TYPE_COUNT; // of the value, or of the elements of an array
    bool is_array = false;
    uint64_t count = 1;    // elements of an array
    std::string_view pair; // the key-value pair as it lies in the file
    std::string_view data; // the elements alone, one after the other; strings each with their length in front

    // A scalar integer of any width that is not negative.
    std::optional<uint64_t> as_unsigned() const;
    // A scalar string.
    std::optional<std::string_view> as_string() const;
    // For people: strings as they are when they are printable UTF-8, arrays by their first elements and count; at most
    // about `limit` bytes.
    std::string as_text(size_t limit) const;
};

struct GgufTensor {
    std::string_view name; // printable ASCII, shorter than GGML_MAX_NAME
    ggml_type type = GGML_TYPE_COUNT;
    uint32_t dimensions = 1;                                 // 1 to 4
    std::array<int64_t, GGML_MAX_DIMS> shape = {1, 1, 1, 1}; // fastest first; each at least 1
    uint64_t offset = 0; // bytes from the start of the file; offset + length lies within the file
    uint64_t length = 0; // bytes
    int64_t elements() const { return shape[0] * shape[1] * shape[2] * shape[3]; } // fits, as checked
};

// ggml's name of a type, as file names and people write it: "Q4_K".
std::string type_name(ggml_type type);
// The type of that name, in any case of letters.
std::optional<ggml_type> type_named(std::string_view name);

struct GgufHeader {
    std::string file; // for messages
    uint32_t version = 0;
    uint64_t alignment = GGUF_DEFAULT_ALIGNMENT;
    uint64_t data_offset = 0;
    std::vector<GgufValue> values;       // no key twice
    std::vector<GgufTensor> tensors;     // no name twice; in the file's order, back to back
    std::shared_ptr<const char[]> bytes; // what the views point into, when the header owns it

    const GgufValue * find(std::string_view key) const;
};

// Parses the header of a file of `file_bytes` bytes of which `bytes` are the first. `bytes` must outlive the header.
// Errors are kInvalidArgument, name the file and the field and say what is wrong; kOutOfRange means that more of the
// file's bytes are needed than were given, and is never returned when all were.
absl::StatusOr<GgufHeader> parse_gguf(std::string_view file, std::string_view bytes, uint64_t file_bytes);

// An open GGUF file with its header. Reading data is thread-safe. The header is a copy in memory, so that nobody who
// writes to the file meanwhile can change what was checked.
class GgufFile {
public:
    // Follows symlinks, but takes only regular files.
    static absl::StatusOr<GgufFile> open(const std::filesystem::path & path);

    const GgufHeader & header() const { return header_; }
    const std::filesystem::path & path() const { return path_; }
    uint64_t size() const { return size_; }
    // Fills `out` with the bytes from `offset` on; kDataLoss when the file has become shorter.
    absl::Status read(uint64_t offset, std::span<std::byte> out) const;

private:
    std::filesystem::path path_;
    UniqueFd fd_;
    uint64_t size_ = 0;
    GgufHeader header_;
};

} // namespace strata::layers
