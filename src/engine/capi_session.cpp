#include "engine/capi_handles.h"

#include <fmt/format.h>

using namespace strata::engine;

namespace {

std::string_view or_empty(const char * text) {
    return text == nullptr ? std::string_view() : std::string_view(text);
}

absl::StatusOr<GenerateOptions> to_generate_options(const strata_sampling * given) {
    STRATA_ASSIGN_OR_RETURN(const strata_sampling sampling, read_options(given, "strata_sampling"));
    GenerateOptions options;
    options.max_tokens = sampling.max_tokens;
    options.reuse = !sampling.no_reuse;
    options.sampling.temperature = sampling.temperature;
    options.sampling.top_k = sampling.top_k;
    options.sampling.top_p = sampling.top_p;
    options.sampling.min_p = sampling.min_p;
    options.sampling.repeat_penalty = sampling.repeat_penalty;
    options.sampling.seed = sampling.seed;
    options.sampling.grammar = or_empty(sampling.grammar);
    return options;
}

strata_stats to_c(const GenerateStats & stats) {
    strata_stats result{};
    result.prompt_tokens = stats.prompt_tokens;
    result.reused_tokens = stats.reused_tokens;
    result.generated_tokens = stats.generated_tokens;
    result.prompt_ms = stats.prompt_ms;
    result.generate_ms = stats.generate_ms;
    return result;
}

} // namespace

strata_status strata_session_open(strata_model * model, const strata_session_options * options, strata_session ** out) {
    if (out != nullptr) *out = nullptr;
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(model);
        STRATA_REQUIRE_ARGUMENT(out);
        STRATA_ASSIGN_OR_RETURN(const strata_session_options given, read_options(options, "strata_session_options"));
        SessionOptions session_options;
        session_options.context_tokens = given.context_tokens;
        session_options.batch_tokens = given.batch_tokens;
        session_options.threads = given.threads;
        session_options.embeddings = given.embeddings;
        auto handle = std::make_unique<strata_session>();
        STRATA_ASSIGN_OR_RETURN(handle->session, Session::open(model->model, session_options));
        *out = handle.release();
        return absl::OkStatus();
    });
}

void strata_session_close(strata_session * session) {
    delete session;
}

strata_status strata_generate(strata_session * session, const char * prompt, const strata_sampling * sampling,
                              strata_token_fn on_token, void * user, strata_stats * stats) {
    return guarded([&]() -> absl::Status {
        if (stats != nullptr) {
            STRATA_RETURN_IF_ERROR(check_struct_size(stats->struct_size, stats->struct_size, stats, "strata_stats"));
            write_result(stats, strata_stats{});
        }
        STRATA_REQUIRE_ARGUMENT(session);
        STRATA_ASSIGN_OR_RETURN(const std::string_view text, bounded_string(prompt, kMaxTextBytes, "prompt"));
        STRATA_ASSIGN_OR_RETURN(const GenerateOptions options, to_generate_options(sampling));
        GenerateStats measured;
        absl::Status status = session->session->generate(
            text, options,
            [&](llama_token id, const std::string & piece) {
                if (on_token == nullptr) return true;
                const strata_token token{id, piece.c_str(), piece.size()};
                return on_token(&token, user);
            },
            &measured);
        if (stats != nullptr && (status.ok() || absl::IsCancelled(status))) write_result(stats, to_c(measured));
        return status;
    });
}

strata_status strata_embed(strata_session * session, const char * text, float * embedding, size_t count) {
    return guarded([&]() -> absl::Status {
        STRATA_REQUIRE_ARGUMENT(session);
        STRATA_REQUIRE_ARGUMENT(embedding);
        const size_t size = session->session->embedding_size();
        if (count != size) {
            return absl::InvalidArgumentError(
                fmt::format("count is {}; the model's embeddings have {} numbers", count, size));
        }
        std::fill_n(embedding, count, 0.0F);
        STRATA_ASSIGN_OR_RETURN(const std::string_view input, bounded_string(text, kMaxTextBytes, "text"));
        STRATA_ASSIGN_OR_RETURN(const std::vector<float> result, session->session->embed(input));
        std::copy(result.begin(), result.end(), embedding);
        return absl::OkStatus();
    });
}

void strata_session_cancel(strata_session * session) {
    if (session != nullptr) session->session->cancel();
}
