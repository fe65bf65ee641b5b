#include "layers/gguf.h"

#include "base/text.h"
#include "layers/gguf_bytes.h"
#include "layers/gguf_limits.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>

namespace strata::layers {

namespace {

constexpr uint64_t kFirstReadBytes = 4u << 20;
// The least that an entry takes in the file, for a check of counts before anything is allocated.
constexpr uint64_t kLeastPairBytes = sizeof(uint64_t) + 1 + sizeof(int32_t) + 1;
constexpr uint64_t kLeastTensorBytes = sizeof(uint64_t) + 1 + sizeof(uint32_t) + sizeof(int32_t) + sizeof(uint64_t);

// Names go into JSON, messages and ggml's C strings, so they are kept to what is harmless in all of them.
bool is_plain_name(std::string_view name) {
    return std::all_of(name.begin(), name.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

class Parser {
public:
    Parser(std::string_view file, std::string_view bytes, uint64_t file_bytes)
        : file_(file)
        , bytes_(bytes)
        , file_bytes_(file_bytes) {}

    absl::StatusOr<GgufHeader> parse();

private:
    // What is being parsed, for messages; put into words only when something is wrong.
    struct Subject {
        const char * kind = nullptr; // "key" or "tensor"
        uint64_t number = 0;
        uint64_t count = 0;
        std::string_view name = {}; // once it is known
    };

    absl::Status fail(std::string_view what) const;
    absl::Status take(uint64_t size, const char * field, std::string_view & out);
    template <typename T>
    absl::Status read(const char * field, T & value);
    absl::Status read_string(const char * field, uint64_t limit, std::string_view & out);

    absl::Status parse_start(uint64_t & tensors, uint64_t & keys);
    absl::Status parse_pair(GgufValue & value);
    absl::Status skip_elements(const GgufValue & value);
    absl::Status parse_tensor(GgufTensor & tensor);
    absl::Status parse_shape(GgufTensor & tensor);
    absl::Status check_alignment(GgufHeader & header);
    absl::Status check_offsets(GgufHeader & header);
    template <typename T, typename GetName>
    absl::Status check_unique(const char * kind, const std::vector<T> & entries, GetName name);

    std::string_view file_;
    std::string_view bytes_;
    uint64_t file_bytes_;
    uint64_t position_ = 0;
    Subject subject_;
};

absl::Status Parser::fail(std::string_view what) const {
    std::string subject;
    if (subject_.kind != nullptr) {
        subject = subject_.name.empty()
                      ? fmt::format("{} {} of {}: ", subject_.kind, subject_.number + 1, subject_.count)
                      : fmt::format("{} \"{}\": ", subject_.kind, printable(subject_.name));
    }
    return absl::InvalidArgumentError(fmt::format("{}: {}{}", file_, subject, what));
}

absl::Status Parser::take(uint64_t size, const char * field, std::string_view & out) {
    if (size > file_bytes_ - position_) {
        return fail(fmt::format("{}: {} bytes are needed at byte {}, but the file ends after {} bytes", field, size,
                                position_, file_bytes_));
    }
    if (size > kMaxGgufHeaderBytes - std::min(position_, kMaxGgufHeaderBytes)) {
        return fail(
            fmt::format("{}: metadata and tensor infos take more than {}", field, human_bytes(kMaxGgufHeaderBytes)));
    }
    if (size > bytes_.size() - position_) return absl::OutOfRangeError(std::string(file_));
    out = bytes_.substr(position_, size);
    position_ += size;
    return absl::OkStatus();
}

template <typename T>
absl::Status Parser::read(const char * field, T & value) {
    std::string_view data;
    STRATA_RETURN_IF_ERROR(take(sizeof(T), field, data));
    value = load<T>(data);
    return absl::OkStatus();
}

absl::Status Parser::read_string(const char * field, uint64_t limit, std::string_view & out) {
    uint64_t size = 0;
    STRATA_RETURN_IF_ERROR(read(field, size));
    if (size > limit) return fail(fmt::format("{} of {} bytes is longer than {}", field, size, limit));
    return take(size, field, out);
}

absl::Status Parser::parse_start(uint64_t & tensors, uint64_t & keys) {
    std::string_view magic;
    STRATA_RETURN_IF_ERROR(take(4, "magic", magic));
    if (magic != GGUF_MAGIC) {
        return fail("not a GGUF file: it does not begin with \"GGUF\"");
    }
    uint32_t version = 0;
    STRATA_RETURN_IF_ERROR(read("version", version));
    if (version != 0 && (version & 0xffff) == 0) {
        return fail("the file is big-endian; convert it with gguf_convert_endian.py of llama.cpp");
    }
    if (version != 2 && version != 3) {
        return fail(fmt::format("version {} of GGUF is not supported (2 and 3 are)", version));
    }
    STRATA_RETURN_IF_ERROR(read("number of tensors", tensors));
    STRATA_RETURN_IF_ERROR(read("number of keys", keys));
    const uint64_t left = file_bytes_ - position_;
    if (tensors > kMaxGgufTensors || tensors > left / kLeastTensorBytes) {
        return fail(
            fmt::format("the number of tensors, {}, is more than a file of {} bytes can hold or the limit of {}",
                        tensors, file_bytes_, kMaxGgufTensors));
    }
    if (keys > kMaxGgufKeys || keys > left / kLeastPairBytes) {
        return fail(fmt::format("the number of keys, {}, is more than a file of {} bytes can hold or the limit of {}",
                                keys, file_bytes_, kMaxGgufKeys));
    }
    return absl::OkStatus();
}

absl::Status Parser::skip_elements(const GgufValue & value) {
    std::string_view ignored;
    if (value.type != GGUF_TYPE_STRING) {
        const uint64_t size = scalar_bytes(value.type);
        // The quotient avoids a product that wraps.
        if (value.count > (file_bytes_ - position_) / size) {
            return fail(fmt::format("{} elements of {} bytes at byte {} lie beyond the end of the file ({} bytes)",
                                    value.count, size, position_, file_bytes_));
        }
        return take(value.count * size, "value", ignored);
    }
    if (value.count > (file_bytes_ - position_) / sizeof(uint64_t)) {
        return fail(fmt::format("{} strings at byte {} lie beyond the end of the file ({} bytes)", value.count,
                                position_, file_bytes_));
    }
    for (uint64_t i = 0; i < value.count; ++i) {
        STRATA_RETURN_IF_ERROR(read_string("string", kMaxGgufHeaderBytes, ignored));
    }
    return absl::OkStatus();
}

absl::Status Parser::parse_pair(GgufValue & value) {
    const uint64_t start = position_;
    STRATA_RETURN_IF_ERROR(read_string("name", kMaxGgufKeyBytes, value.key));
    if (value.key.empty()) return fail("the name is empty");
    subject_.name = value.key;
    if (!is_plain_name(value.key)) return fail("the name has characters other than printable ASCII");

    int32_t type = 0;
    STRATA_RETURN_IF_ERROR(read("type", type));
    if (type == GGUF_TYPE_ARRAY) {
        value.is_array = true;
        STRATA_RETURN_IF_ERROR(read("type of the elements", type));
        STRATA_RETURN_IF_ERROR(read("number of elements", value.count));
        if (type == GGUF_TYPE_ARRAY) return fail("an array of arrays is not supported");
    }
    // Compared as a number first: an enumeration must not hold what is none of its values.
    if (type < 0 || type >= GGUF_TYPE_COUNT) return fail(fmt::format("type {} is unknown", type));
    value.type = static_cast<gguf_type>(type);

    const uint64_t data = position_;
    STRATA_RETURN_IF_ERROR(skip_elements(value));
    value.pair = bytes_.substr(start, position_ - start);
    value.data = bytes_.substr(data, position_ - data);
    return absl::OkStatus();
}

absl::Status Parser::parse_shape(GgufTensor & tensor) {
    STRATA_RETURN_IF_ERROR(read("number of dimensions", tensor.dimensions));
    if (tensor.dimensions > GGML_MAX_DIMS) {
        return fail(fmt::format("{} dimensions are more than {}", tensor.dimensions, GGML_MAX_DIMS));
    }
    int64_t elements = 1;
    for (uint32_t i = 0; i < tensor.dimensions; ++i) {
        int64_t & size = tensor.shape[i];
        STRATA_RETURN_IF_ERROR(read("shape", size));
        if (size < 1) return fail(fmt::format("dimension {} has {} elements", i, size));
        if (__builtin_mul_overflow(elements, size, &elements)) {
            return fail(fmt::format("the shape [{}] has more elements than can be counted",
                                    fmt::join(tensor.shape.begin(), tensor.shape.begin() + i + 1, ", ")));
        }
    }
    tensor.dimensions = std::max(tensor.dimensions, 1u); // a scalar is a vector of one element

    int32_t type = 0;
    STRATA_RETURN_IF_ERROR(read("type", type));
    if (type < 0 || type >= GGML_TYPE_COUNT) return fail(fmt::format("type {} is unknown", type));
    tensor.type = static_cast<ggml_type>(type);
    const int64_t block = ggml_blck_size(tensor.type);
    const uint64_t block_bytes = ggml_type_size(tensor.type);
    if (block <= 0 || block_bytes == 0) return fail(fmt::format("type {} is no longer supported by ggml", type));
    if (tensor.shape[0] % block != 0) {
        return fail(fmt::format("a row of {} elements is not a multiple of {}'s block of {}", tensor.shape[0],
                                type_name(tensor.type), block));
    }
    if (__builtin_mul_overflow(static_cast<uint64_t>(elements / block), block_bytes, &tensor.length)) {
        return fail("its size in bytes is more than can be counted");
    }
    return absl::OkStatus();
}

absl::Status Parser::parse_tensor(GgufTensor & tensor) {
    STRATA_RETURN_IF_ERROR(read_string("name", GGML_MAX_NAME - 1, tensor.name));
    if (tensor.name.empty()) return fail("the name is empty");
    subject_.name = tensor.name;
    if (!is_plain_name(tensor.name)) return fail("the name has characters other than printable ASCII");
    STRATA_RETURN_IF_ERROR(parse_shape(tensor));
    return read("offset", tensor.offset); // from the start of the data; check_offsets makes it absolute
}

absl::Status Parser::check_alignment(GgufHeader & header) {
    const GgufValue * value = header.find(GGUF_KEY_GENERAL_ALIGNMENT);
    if (value == nullptr) return absl::OkStatus();
    subject_ = {.kind = "key", .name = value->key};
    if (value->is_array || value->type != GGUF_TYPE_UINT32) {
        return fail(fmt::format("the type is {}{}, not u32", value->is_array ? "an array of " : "",
                                gguf_type_name(value->type)));
    }
    header.alignment = load<uint32_t>(value->data);
    if (!std::has_single_bit(header.alignment) || header.alignment > kMaxGgufAlignment) {
        return fail(fmt::format("{} is not a power of two from 1 to {}", header.alignment, kMaxGgufAlignment));
    }
    return absl::OkStatus();
}

// Tensors lie back to back, each padded to the alignment, as llama.cpp demands as well; so none overlaps another.
absl::Status Parser::check_offsets(GgufHeader & header) {
    const auto padded = [&](uint64_t size) { return (size + header.alignment - 1) & ~(header.alignment - 1); };
    header.data_offset = padded(position_); // both are far below 2^63
    uint64_t expected = 0;
    for (GgufTensor & tensor : header.tensors) {
        subject_ = {.kind = "tensor", .name = tensor.name};
        const uint64_t room = file_bytes_ - std::min(header.data_offset, file_bytes_);
        if (tensor.offset > room || tensor.length > room - tensor.offset) {
            return fail(fmt::format("offset {} + {} bytes lies beyond the end of the file ({} bytes)", tensor.offset,
                                    tensor.length, file_bytes_));
        }
        if (tensor.offset != expected) {
            return fail(fmt::format("offset {} is not where the tensor before it ends, {}", tensor.offset, expected));
        }
        expected = padded(tensor.offset + tensor.length); // at most the file's size and the alignment
        tensor.offset += header.data_offset;
    }
    return absl::OkStatus();
}

template <typename T, typename GetName>
absl::Status Parser::check_unique(const char * kind, const std::vector<T> & entries, GetName name) {
    std::vector<std::string_view> names;
    names.reserve(entries.size());
    for (const T & entry : entries) names.push_back(name(entry));
    std::sort(names.begin(), names.end()); // unlike a hash table, not slow for names that were chosen to collide
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice == names.end()) return absl::OkStatus();
    subject_ = {.kind = kind, .name = *twice};
    return fail("there are two of this name");
}

absl::StatusOr<GgufHeader> Parser::parse() {
    GgufHeader header;
    header.file = file_;
    uint64_t tensors = 0;
    uint64_t keys = 0;
    STRATA_RETURN_IF_ERROR(parse_start(tensors, keys));
    header.version = load<uint32_t>(bytes_.substr(4));

    header.values.resize(keys);
    for (uint64_t i = 0; i < keys; ++i) {
        subject_ = {.kind = "key", .number = i, .count = keys};
        STRATA_RETURN_IF_ERROR(parse_pair(header.values[i]));
    }
    STRATA_RETURN_IF_ERROR(check_unique("key", header.values, [](const GgufValue & value) { return value.key; }));
    STRATA_RETURN_IF_ERROR(check_alignment(header));

    header.tensors.resize(tensors);
    for (uint64_t i = 0; i < tensors; ++i) {
        subject_ = {.kind = "tensor", .number = i, .count = tensors};
        STRATA_RETURN_IF_ERROR(parse_tensor(header.tensors[i]));
    }
    STRATA_RETURN_IF_ERROR(
        check_unique("tensor", header.tensors, [](const GgufTensor & tensor) { return tensor.name; }));
    STRATA_RETURN_IF_ERROR(check_offsets(header));
    return header;
}

} // namespace

const GgufValue * GgufHeader::find(std::string_view key) const {
    const auto found =
        std::find_if(values.begin(), values.end(), [&](const GgufValue & value) { return value.key == key; });
    return found == values.end() ? nullptr : &*found;
}

absl::StatusOr<GgufHeader> parse_gguf(std::string_view file, std::string_view bytes, uint64_t file_bytes) {
    return Parser(file, bytes, file_bytes).parse();
}

absl::StatusOr<GgufFile> GgufFile::open(const std::filesystem::path & path) {
    GgufFile file;
    file.path_ = path;
    // A pipe without a writer must not block the open.
    file.fd_.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!file.fd_.valid()) return errno_status(errno, "open", printable(path.native(), 1000));
    struct stat info = {};
    if (::fstat(file.fd_.get(), &info) != 0) return errno_status(errno, "look at", printable(path.native(), 1000));
    const std::string name = printable(path.native(), 1000);
    if (!S_ISREG(info.st_mode)) {
        return absl::InvalidArgumentError(fmt::format("{}: is not a regular file", name));
    }
    file.size_ = static_cast<uint64_t>(info.st_size);

    // How long the header is shows only while it is parsed; mostly the first read has all of it.
    const uint64_t most = std::min(file.size_, kMaxGgufHeaderBytes);
    for (uint64_t size = std::min(most, kFirstReadBytes);; size = std::min(most, size * 4)) {
        const std::shared_ptr<char[]> bytes(new char[size]);
        STRATA_RETURN_IF_ERROR(file.read(0, std::as_writable_bytes(std::span(bytes.get(), size))));
        absl::StatusOr<GgufHeader> header = parse_gguf(name, std::string_view(bytes.get(), size), file.size_);
        if (header.ok()) {
            file.header_ = *std::move(header);
            file.header_.bytes = bytes;
            return file;
        }
        if (!absl::IsOutOfRange(header.status()) || size == most) return header.status();
    }
}

absl::Status GgufFile::read(uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
        const ssize_t got = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno_status(errno, "read", printable(path_.native(), 1000));
        if (got == 0) {
            return absl::DataLossError(
                fmt::format("{}: the file has become shorter while it was read", printable(path_.native(), 1000)));
        }
        offset += static_cast<uint64_t>(got);
        out = out.subspan(static_cast<size_t>(got));
    }
    return absl::OkStatus();
}

} // namespace strata::layers
