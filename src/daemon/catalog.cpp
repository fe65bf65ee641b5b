#include "daemon/catalog.h"

#include "base/text.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>

namespace strata::daemon {

namespace {

constexpr size_t kNamedModels = 20; // in an error message

std::string names(const Catalog::Models & models) {
    if (models.empty()) return "there are none yet; \"strata pull\" and \"strata import\" bring one";
    std::string list = "there are: ";
    for (size_t i = 0; i < models.size() && i < kNamedModels; ++i) list += (i == 0 ? "" : ", ") + models[i].full_name;
    if (models.size() > kNamedModels) list += fmt::format(" and {} more", models.size() - kNamedModels);
    return list;
}

} // namespace

// A model says how the vectors of its tokens become one, when it was made for that; encoders are by nature.
bool made_for_embeddings(const layers::ModelIndex & index) {
    constexpr std::array<std::string_view, 10> encoders = {
        "bert",        "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3",
        "modern-bert", "neo-bert",   "eurobert",       "t5encoder",    "gemma-embedding"};
    if (std::find(encoders.begin(), encoders.end(), index.architecture) != encoders.end()) return true;
    const std::string key = index.architecture + ".pooling_type";
    constexpr std::string_view kNoPooling = "0"; // LLAMA_POOLING_TYPE_NONE
    return std::any_of(index.metadata.begin(), index.metadata.end(),
                       [&](const auto & entry) { return entry.first == key && entry.second != kNoPooling; });
}

std::shared_ptr<const Catalog::Models> Catalog::models() {
    // Taken before the models are read: a change in between is then seen at the next look.
    Version now;
    struct stat index {};
    if (::stat((store_.root() / "index.json").c_str(), &index) == 0) {
        now = {index.st_ino, index.st_mtim.tv_sec * 1'000'000'000 + index.st_mtim.tv_nsec, index.st_size};
    }
    const std::lock_guard lock(mutex_);
    if (models_ && now == version_) return models_;

    auto listed = store_.list();
    if (!listed.ok()) {
        spdlog::error("the models of the store can't be listed: {}", std::string(listed.status().message()));
        return models_ ? models_ : std::make_shared<const Models>();
    }
    auto models = std::make_shared<Models>();
    for (const layers::StoredModel & model : *listed) {
        models->push_back({model.name, model.name.to_string(), model.manifest, model.index->architecture,
                           model.index->parameters, model.size, model.index->context_tokens,
                           model.lineage ? model.lineage->created_unix_ms : 0, made_for_embeddings(*model.index)});
    }
    std::sort(models->begin(), models->end(), [](const auto & a, const auto & b) { return a.name < b.name; });
    models_ = std::move(models);
    version_ = now;
    return models_;
}

absl::StatusOr<ModelFacts> Catalog::resolve(std::string_view text) {
    const auto all = models();
    const auto unknown = [&] {
        return absl::NotFoundError(fmt::format("no model is named \"{}\"; {}", printable(text), names(*all)));
    };
    const auto wanted = layers::ModelName::parse(text);
    if (!wanted.ok()) return unknown();

    const ModelFacts * only = nullptr;
    size_t of_that_name = 0;
    for (const ModelFacts & model : *all) {
        if (model.name == *wanted) return model;
        if (model.name.name != wanted->name) continue;
        only = &model;
        ++of_that_name;
    }
    const bool tag_given = text.find(':') != std::string_view::npos;
    if (!tag_given && of_that_name == 1) return *only;
    return unknown();
}

} // namespace strata::daemon
