#include "daemon/models_service.h"

#include "base/text.h"
#include "daemon/limits.h"
#include "daemon/utf8.h"

#include <boost/asio/post.hpp>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <filesystem>
#include <map>
#include <set>
#include <utility>

namespace strata::daemon {

namespace {

using layers::ModelName;
using layers::StoredModel;
using LayerUsers = std::map<Digest, std::vector<ModelName>>;

v1::Model to_proto(const StoredModel & model, const LayerUsers & users) {
    v1::Model out;
    out.set_name(model.name.to_string());
    out.set_digest(model.manifest.to_string());
    out.set_architecture(valid_utf8(model.index->architecture));
    out.set_quantization(valid_utf8(model.index->quantization));
    out.set_parameters(static_cast<int64_t>(model.index->parameters));
    out.set_size_bytes(static_cast<int64_t>(model.size));
    uint64_t unique = 0;
    std::set<Digest> counted; // equal layers of one model are one blob
    for (const layers::LayerEntry & layer : model.index->layers) {
        const auto found = users.find(layer.digest);
        const bool shared = found != users.end() && found->second.size() > 1;
        if (!shared && counted.insert(layer.digest).second) unique += layer.size;
    }
    out.set_unique_bytes(static_cast<int64_t>(unique));
    out.set_layers(static_cast<int32_t>(model.index->layers.size()));
    out.set_context_tokens(static_cast<int64_t>(model.index->context_tokens));
    out.set_embeds(made_for_embeddings(*model.index));
    if (model.lineage) {
        out.set_imported_unix_ms(model.lineage->created_unix_ms);
        out.set_origin(valid_utf8(model.lineage->origin));
    }
    return out;
}

v1::Layer to_proto(const layers::LayerEntry & layer, int index, const ModelName & model, const LayerUsers & users) {
    v1::Layer out;
    out.set_index(index);
    out.set_kind(layers::to_string(layer.kind));
    out.set_digest(layer.digest.to_string());
    out.set_size_bytes(static_cast<int64_t>(layer.size));
    out.set_tensors(static_cast<int32_t>(layer.tensors.size()));
    std::set<std::string> types;
    for (const layers::TensorEntry & tensor : layer.tensors) types.insert(tensor.type);
    for (const std::string & type : types) out.add_tensor_types(valid_utf8(type));
    if (const auto found = users.find(layer.digest); found != users.end()) {
        for (const ModelName & user : found->second) {
            if (user != model) out.add_shared_with(user.to_string());
        }
    }
    return out;
}

v1::Tensor to_proto(const layers::TensorEntry & tensor, int layer) {
    v1::Tensor out;
    out.set_name(valid_utf8(tensor.name));
    out.set_type(valid_utf8(tensor.type));
    for (const int64_t size : tensor.shape) out.add_shape(size);
    out.set_layer(layer);
    out.set_size_bytes(static_cast<int64_t>(tensor.length));
    out.set_sha256(tensor.sha256.hex());
    return out;
}

std::string to_json(const layers::Lineage & lineage) {
    nlohmann::json out = {{"operation", lineage.operation},
                          {"origin", lineage.origin},
                          {"created_unix_ms", lineage.created_unix_ms},
                          {"engine_build", lineage.engine_build}};
    if (lineage.origin_sha256) out["origin_sha256"] = lineage.origin_sha256->hex();
    return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// The name of a model that is to be: given by a person, or none.
absl::StatusOr<std::vector<std::string>> name_option(const std::string & name) {
    if (name.empty()) return std::vector<std::string>{};
    STRATA_ASSIGN_OR_RETURN(const ModelName parsed, ModelName::parse(name));
    return std::vector<std::string>{"--name", parsed.to_string()};
}

} // namespace

grpc::ServerUnaryReactor * ModelsService::List(grpc::CallbackServerContext * context, const v1::ListModelsRequest *,
                                               v1::ListModelsResponse * response) {
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    boost::asio::post(workers_, [this, response, reactor] {
        const auto models = store_.list();
        if (models.ok()) {
            const LayerUsers users = layers::models_by_layer(*models);
            for (const StoredModel & model : *models) *response->add_models() = to_proto(model, users);
        }
        reactor->Finish(to_grpc(models.status()));
    });
    return reactor;
}

grpc::ServerUnaryReactor * ModelsService::Show(grpc::CallbackServerContext * context,
                                               const v1::ShowModelRequest * request, v1::ShowModelResponse * response) {
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    boost::asio::post(workers_,
                      [this, request, response, reactor] { reactor->Finish(to_grpc(show(*request, *response))); });
    return reactor;
}

absl::Status ModelsService::show(const v1::ShowModelRequest & request, v1::ShowModelResponse & response) const {
    STRATA_ASSIGN_OR_RETURN(const ModelFacts facts, catalog_.resolve(request.model()));
    STRATA_ASSIGN_OR_RETURN(const StoredModel model, store_.find(facts.name));
    STRATA_ASSIGN_OR_RETURN(const std::vector<StoredModel> all, store_.list());
    const LayerUsers users = layers::models_by_layer(all);
    *response.mutable_model() = to_proto(model, users);
    int index = 0;
    for (const layers::LayerEntry & layer : model.index->layers) {
        *response.add_layers() = to_proto(layer, index, model.name, users);
        if (request.tensors()) {
            for (const layers::TensorEntry & tensor : layer.tensors) *response.add_tensors() = to_proto(tensor, index);
        }
        ++index;
    }
    for (const auto & [key, value] : model.index->metadata) {
        v1::Metadatum & metadatum = *response.add_metadata();
        metadatum.set_key(valid_utf8(key));
        metadatum.set_value(valid_utf8(value));
    }
    if (model.lineage) response.set_lineage_json(to_json(*model.lineage));
    return absl::OkStatus();
}

grpc::ServerUnaryReactor * ModelsService::Remove(grpc::CallbackServerContext * context,
                                                 const v1::RemoveModelRequest * request, v1::RemoveModelResponse *) {
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    supervisor_.remove(request->model(), [reactor](const absl::Status & status) { reactor->Finish(to_grpc(status)); });
    return reactor;
}

grpc::ServerUnaryReactor * ModelsService::CollectGarbage(grpc::CallbackServerContext * context,
                                                         const v1::CollectGarbageRequest * request,
                                                         v1::CollectGarbageResponse * response) {
    grpc::ServerUnaryReactor * reactor = context->DefaultReactor();
    if (request->grace_ms() < 0) {
        reactor->Finish({grpc::StatusCode::INVALID_ARGUMENT, "grace_ms is negative"});
        return reactor;
    }
    boost::asio::post(workers_, [this, request, response, reactor] {
        layers::GcOptions options;
        options.dry_run = request->dry_run();
        options.views = home_.views();
        if (request->grace_ms() > 0) options.grace = std::chrono::milliseconds(request->grace_ms());
        if (request->no_grace()) options.grace = std::chrono::milliseconds(0);
        const auto result = store_.collect_garbage(options);
        if (result.ok()) {
            response->set_removed_blobs(result->removed_blobs);
            response->set_freed_bytes(result->freed_bytes);
            response->set_kept_blobs(result->kept_blobs);
        }
        reactor->Finish(to_grpc(result.status()));
    });
    return reactor;
}

// ------------------------------------------------------------------------------------------------ jobs

absl::StatusOr<JobSpec> ModelsService::import_job(const v1::ImportModelRequest & request) const {
    if (request.sources().empty()) return absl::InvalidArgumentError("nothing to import: sources is empty");
    if (static_cast<size_t>(request.sources_size()) > limits::kImportSources) {
        return absl::InvalidArgumentError(fmt::format("more than {} sources", limits::kImportSources));
    }
    JobSpec spec{"import", {"--store", store_.root()}, request.sources(0)};
    STRATA_ASSIGN_OR_RETURN(const auto name, name_option(request.name()));
    spec.arguments.insert(spec.arguments.end(), name.begin(), name.end());
    spec.arguments.push_back("--"); // what follows is no option, however it begins
    for (const std::string & source : request.sources()) {
        const bool layout = source.rfind("oci:", 0) == 0;
        if (layout && request.sources_size() > 1) {
            return absl::InvalidArgumentError("an OCI layout is imported alone, not together with other sources");
        }
        if (!std::filesystem::path(layout ? source.substr(4) : source).is_absolute()) {
            return absl::InvalidArgumentError(
                fmt::format("{} is not an absolute path; the daemon may run in another folder", printable(source)));
        }
        spec.arguments.push_back(source);
    }
    return spec;
}

absl::StatusOr<JobSpec> ModelsService::pull_job(const v1::PullModelRequest & request) const {
    if (request.url().empty()) return absl::InvalidArgumentError("nothing to pull: url is empty");
    JobSpec spec{"pull", {"--store", store_.root()}, request.url()};
    STRATA_ASSIGN_OR_RETURN(const auto name, name_option(request.name()));
    spec.arguments.insert(spec.arguments.end(), name.begin(), name.end());
    spec.arguments.insert(spec.arguments.end(), {"--", request.url()});
    return spec;
}

absl::StatusOr<JobSpec> ModelsService::verify_job(const v1::VerifyModelRequest & request) const {
    JobSpec spec{"verify", {"--store", store_.root()}, "the store"};
    if (!request.model().empty()) {
        // Not by the catalog: a model whose index is damaged is not in it, and is the one to verify.
        STRATA_ASSIGN_OR_RETURN(const ModelName name, ModelName::parse(request.model()));
        const auto facts = catalog_.resolve(request.model());
        spec.subject = facts.ok() ? facts->full_name : name.to_string();
        spec.arguments.push_back(spec.subject);
    }
    return spec;
}

grpc::ServerWriteReactor<v1::JobProgress> * ModelsService::Import(grpc::CallbackServerContext *,
                                                                  const v1::ImportModelRequest * request) {
    return run(import_job(*request));
}

grpc::ServerWriteReactor<v1::JobProgress> * ModelsService::Pull(grpc::CallbackServerContext *,
                                                                const v1::PullModelRequest * request) {
    return run(pull_job(*request));
}

grpc::ServerWriteReactor<v1::JobProgress> * ModelsService::Verify(grpc::CallbackServerContext *,
                                                                  const v1::VerifyModelRequest * request) {
    return run(verify_job(*request));
}

grpc::ServerWriteReactor<v1::JobProgress> * ModelsService::run(const absl::StatusOr<JobSpec> & spec) {
    const std::shared_ptr<Writer> writer = Writer::make();
    if (!spec.ok()) {
        writer->finish(to_grpc(spec.status()));
        return writer.get();
    }
    JobHandlers handlers;
    const auto progress_so_far = std::make_shared<v1::JobProgress>();
    handlers.progress = [writer, progress_so_far](JobStep step) {
        v1::JobProgress & progress = *progress_so_far;
        progress.set_phase(valid_utf8(step.phase));
        progress.set_done_bytes(step.done_bytes);
        progress.set_total_bytes(step.total_bytes);
        writer->progress(progress);
    };
    handlers.done = [this, writer, progress_so_far](absl::StatusOr<JobResult> result) {
        if (!result.ok()) {
            writer->finish(to_grpc(result.status()));
            return;
        }
        boost::asio::post(workers_, [this, writer, progress_so_far, result = std::move(*result)] {
            v1::JobProgress last = *progress_so_far; // its totals are for who looks at the end only
            finish_message(result, last);
            writer->write(std::move(last));
            writer->finish(grpc::Status::OK);
        });
    };
    writer->on_cancel([this, job = jobs_.run(*spec, std::move(handlers))] { jobs_.cancel(job); });
    return writer.get();
}

void ModelsService::finish_message(const JobResult & result, v1::JobProgress & message) const {
    message.set_finished(true);
    for (const std::string & problem : result.problems) message.add_problems(valid_utf8(problem));
    if (result.digest.empty()) return;
    const auto models = store_.list();
    if (!models.ok()) return;
    const LayerUsers users = layers::models_by_layer(*models);
    for (const StoredModel & model : *models) {
        if (model.name.to_string() == result.name) *message.mutable_model() = to_proto(model, users);
    }
}

} // namespace strata::daemon
