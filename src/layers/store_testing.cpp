#include "layers/store_testing.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace strata::layers::testing {

FakeModel FakeModel::make(const std::string & seed, size_t blocks, size_t layer_bytes) {
    FakeModel model;
    for (size_t i = 0; i < blocks + 3; ++i) {
        std::string layer = fmt::format("{} layer {} ", seed, i);
        while (layer.size() < layer_bytes) layer += static_cast<char>('a' + layer.size() % 26);
        model.layers.push_back(std::move(layer));
    }
    return model;
}

ModelIndex FakeModel::index() const {
    ModelIndex index;
    index.architecture = "llama";
    index.quantization = "Q4_1";
    index.parameters = 134'515'008;
    index.context_tokens = 8192;
    index.metadata = {{"general.architecture", "llama"}, {"general.name", "Fake"}};
    for (size_t i = 0; i < layers.size(); ++i) {
        LayerEntry layer;
        layer.digest = Digest::of(layers[i]);
        layer.size = layers[i].size();
        if (i == 0) {
            layer.kind = LayerKind::kHead;
        } else if (i == 1) {
            layer.kind = LayerKind::kEmbedding;
        } else if (i + 1 == layers.size()) {
            layer.kind = LayerKind::kTail;
        } else {
            layer.kind = LayerKind::kBlock;
            layer.block = static_cast<int32_t>(i - 2);
        }
        const uint64_t half = layer.size / 2;
        for (uint64_t t = 0; i > 0 && t < 2; ++t) {
            TensorEntry tensor;
            tensor.name = fmt::format("blk.{}.tensor_{}.weight", i, t);
            tensor.type = "F32";
            tensor.offset = t == 0 ? 32 : half;
            tensor.length = t == 0 ? half - 32 : layer.size - half;
            tensor.shape = {static_cast<int64_t>(tensor.length / 4), 1};
            tensor.sha256 = Digest::of(std::string_view(layers[i]).substr(tensor.offset, tensor.length));
            layer.tensors.push_back(std::move(tensor));
        }
        index.layers.push_back(std::move(layer));
    }
    return index;
}

Lineage fake_lineage(const std::string & origin) {
    Lineage lineage;
    lineage.operation = "import";
    lineage.origin = origin;
    lineage.origin_sha256 = Digest::of(origin);
    lineage.created_unix_ms = 1'700'000'000'000;
    lineage.engine_build = "test";
    return lineage;
}

absl::StatusOr<Digest> write_model(Store & store, const std::string & name, const FakeModel & model,
                                   const Lineage & lineage) {
    STRATA_ASSIGN_OR_RETURN(Lease lease, store.lease("import of " + name, {}));
    for (const std::string & layer : model.layers) {
        STRATA_RETURN_IF_ERROR(store.put(layer, &lease).status());
    }
    return store.commit_model(model_name(name), model.index(), lineage);
}

ModelName model_name(const std::string & text) {
    absl::StatusOr<ModelName> name = ModelName::parse(text);
    EXPECT_OK(name);
    return name.ok() ? *name : ModelName{};
}

std::string read_file(const std::filesystem::path & path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream bytes;
    bytes << file.rdbuf();
    return bytes.str();
}

void write_file(const std::filesystem::path & path, const std::string & bytes) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << bytes;
    EXPECT_TRUE(file.flush().good()) << path;
}

std::vector<std::string> entries(const std::filesystem::path & folder) {
    std::vector<std::string> names;
    for (const auto & entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

std::string problems(const Store & store) {
    const auto found = store.verify(std::nullopt, nullptr);
    if (!found.ok()) return found.status().ToString();
    std::string text;
    for (const BlobProblem & problem : *found) text += problem.sentence + "\n";
    return text;
}

} // namespace strata::layers::testing
