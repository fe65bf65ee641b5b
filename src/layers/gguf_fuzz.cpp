#include "base/check.h"
#include "layers/gguf.h"
#include "layers/gguf_model.h"
#include "layers/shard.h"

// The way of an untrusted file through an import, up to the bytes of its tensors. Crashes become files in
// tests/corpus/gguf.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    using namespace strata::layers;
    const std::string_view bytes(reinterpret_cast<const char *>(data), size);
    const absl::StatusOr<GgufHeader> header = parse_gguf("fuzz", bytes, size);
    STRATA_CHECK(header.ok() || absl::IsInvalidArgument(header.status()));
    if (!header.ok()) return 0;
    for (const GgufValue & value : header->values) (void)value.as_text(100);
    const absl::StatusOr<GgufModel> model = make_model(std::span(&*header, 1));
    STRATA_CHECK(model.ok() || absl::IsInvalidArgument(model.status()));
    if (!model.ok()) return 0;
    for (const Shard & shard : make_shards(*model)) {
        const absl::StatusOr<GgufHeader> again = parse_gguf("shard", shard.header, shard.size);
        STRATA_CHECK(again.ok() && again->tensors.size() == shard.tensors.size());
        for (const ShardTensor & tensor : shard.tensors) {
            const GgufTensor & source = *tensor.source.tensor;
            STRATA_CHECK(source.offset <= size && source.length <= size - source.offset);
            STRATA_CHECK(tensor.offset <= shard.size && source.length <= shard.size - tensor.offset);
        }
    }
    return 0;
}
