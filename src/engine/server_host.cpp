#include "engine/server_host.h"

#include "base/api_error.h"
#include "base/text.h"
#include "engine/answer.h"
#include "engine/driver_limits.h"
#include "engine/llama_args.h"
#include "engine/log.h"
#include "engine/runtime.h"

#include <common.h>
#include <fmt/format.h>
#include <llama.h>
#include <server-context.h>
#include <server-http.h>
#include <server-task.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>
#include <thread>

namespace strata::engine {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

using Handler = server_http_context::handler_t;

struct ServerHost::Route {
    const char * method;
    const char * path;
    Need need;
    BodyKind body;
    Handler server_routes::*handler;
};

namespace {

using Routes = server_routes;

// As in llama.cpp's tools/server/server.cpp, without what changes the server for everybody (POST /props,
// /lora-adapters), what touches files (/slots/N), and what is not JSON (audio uploads).
const std::array kRoutes = {
    ServerHost::Route{"POST", "/v1/chat/completions", Need::kSlot, BodyKind::kChat, &Routes::post_chat_completions},
    ServerHost::Route{"POST", "/chat/completions", Need::kSlot, BodyKind::kChat, &Routes::post_chat_completions},
    ServerHost::Route{"POST", "/v1/completions", Need::kSlot, BodyKind::kCompletion, &Routes::post_completions_oai},
    ServerHost::Route{"POST", "/completions", Need::kSlot, BodyKind::kCompletion, &Routes::post_completions},
    ServerHost::Route{"POST", "/completion", Need::kSlot, BodyKind::kCompletion, &Routes::post_completions},
    ServerHost::Route{"POST", "/v1/responses", Need::kSlot, BodyKind::kChat, &Routes::post_responses_oai},
    ServerHost::Route{"POST", "/responses", Need::kSlot, BodyKind::kChat, &Routes::post_responses_oai},
    ServerHost::Route{"POST", "/v1/messages", Need::kSlot, BodyKind::kMessages, &Routes::post_anthropic_messages},
    ServerHost::Route{"POST", "/infill", Need::kSlot, BodyKind::kInfill, &Routes::post_infill},
    ServerHost::Route{"POST", "/v1/embeddings", Need::kSlot, BodyKind::kEmbedding, &Routes::post_embeddings_oai},
    ServerHost::Route{"POST", "/embeddings", Need::kSlot, BodyKind::kEmbedding, &Routes::post_embeddings},
    ServerHost::Route{"POST", "/embedding", Need::kSlot, BodyKind::kEmbedding, &Routes::post_embeddings},
    ServerHost::Route{"POST", "/v1/rerank", Need::kSlot, BodyKind::kRerank, &Routes::post_rerank},
    ServerHost::Route{"POST", "/v1/reranking", Need::kSlot, BodyKind::kRerank, &Routes::post_rerank},
    ServerHost::Route{"POST", "/rerank", Need::kSlot, BodyKind::kRerank, &Routes::post_rerank},
    ServerHost::Route{"POST", "/reranking", Need::kSlot, BodyKind::kRerank, &Routes::post_rerank},
    ServerHost::Route{"POST", "/v1/chat/completions/control", Need::kShort, BodyKind::kOther, &Routes::post_control},
    ServerHost::Route{"POST", "/v1/chat/completions/input_tokens", Need::kShort, BodyKind::kChat,
                      &Routes::post_chat_completions_tok},
    ServerHost::Route{"POST", "/chat/completions/input_tokens", Need::kShort, BodyKind::kChat,
                      &Routes::post_chat_completions_tok},
    ServerHost::Route{"POST", "/v1/responses/input_tokens", Need::kShort, BodyKind::kChat,
                      &Routes::post_responses_tok_oai},
    ServerHost::Route{"POST", "/responses/input_tokens", Need::kShort, BodyKind::kChat,
                      &Routes::post_responses_tok_oai},
    ServerHost::Route{"POST", "/v1/messages/count_tokens", Need::kShort, BodyKind::kChat,
                      &Routes::post_anthropic_count_tokens},
    ServerHost::Route{"POST", "/apply-template", Need::kShort, BodyKind::kChat, &Routes::post_apply_template},
    ServerHost::Route{"POST", "/tokenize", Need::kShort, BodyKind::kTokens, &Routes::post_tokenize},
    ServerHost::Route{"POST", "/detokenize", Need::kShort, BodyKind::kTokens, &Routes::post_detokenize},
    ServerHost::Route{"GET", "/v1/models", Need::kShort, BodyKind::kOther, &Routes::get_models},
    ServerHost::Route{"GET", "/models", Need::kShort, BodyKind::kOther, &Routes::get_models},
    ServerHost::Route{"GET", "/props", Need::kShort, BodyKind::kOther, &Routes::get_props},
    ServerHost::Route{"GET", "/slots", Need::kShort, BodyKind::kOther, &Routes::get_slots},
    ServerHost::Route{"GET", "/metrics", Need::kShort, BodyKind::kOther, &Routes::get_metrics},
    ServerHost::Route{"GET", "/lora-adapters", Need::kShort, BodyKind::kOther, &Routes::get_lora_adapters},
    ServerHost::Route{"GET", "/health", Need::kShort, BodyKind::kOther, &Routes::get_health},
    ServerHost::Route{"GET", "/v1/health", Need::kShort, BodyKind::kOther, &Routes::get_health},
};

std::mutex & load_mutex() {
    static std::mutex mutex;
    return mutex;
}

size_t longest_token_bytes(const llama_vocab * vocab) {
    size_t longest = 1;
    for (int32_t token = 0; token < llama_vocab_n_tokens(vocab); ++token) {
        const char * text = llama_vocab_get_text(vocab, token);
        if (text != nullptr) longest = std::max(longest, std::strlen(text));
    }
    return longest;
}

} // namespace

struct ServerHost::State {
    common_params params;
    server_context context;
    std::unique_ptr<server_routes> routes; // refers to params and context
    std::thread loop;
    ModelBounds bounds;
    uint64_t weights_bytes = 0;
    int32_t slot_context_tokens = 0;

    // Calls a handler. Whatever it throws comes from what the request says, so it is the client's mistake, except for a
    // lack of memory.
    server_http_res_ptr call(const Handler & handler, const server_http_req & request) const {
        int status = 400;
        std::string message;
        try {
            return handler(request);
        } catch (const std::bad_alloc &) {
            status = 503;
            message = "out of memory for this request";
        } catch (const std::exception & e) {
            message = e.what();
        } catch (...) {
            status = 500;
            message = "unknown error";
        }
        auto answer = std::make_unique<server_http_res>();
        answer->status = status;
        answer->data = error_body("", status, message);
        return answer;
    }

    // Asks the loop, which answers during a decode as well; null after the timeout.
    template <typename Result>
    std::unique_ptr<Result> ask(server_task_type type, milliseconds timeout) {
        const auto end = steady_clock::now() + timeout;
        server_response_reader reader = context.get_response_reader();
        server_task task(type);
        task.id = reader.get_new_id();
        reader.post_task(std::move(task), true);
        server_task_result_ptr result = reader.next([&] { return steady_clock::now() >= end; });
        auto * expected = dynamic_cast<Result *>(result.get());
        if (expected != nullptr) (void)result.release();
        return std::unique_ptr<Result>(expected);
    }
};

ServerHost::ServerHost(std::unique_ptr<State> state)
    : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<ServerHost>> ServerHost::load(const DriverOptions & options,
                                                             const std::filesystem::path & model) {
    STRATA_RETURN_IF_ERROR(start_runtime());
    const std::lock_guard one_at_a_time(load_mutex());
    const ErrorCapture errors;
    auto state = std::make_unique<State>();
    STRATA_RETURN_IF_ERROR(make_server_params(options, model, state->params));
    bool give_up = false;
    try {
        state->routes = std::make_unique<server_routes>(state->params, state->context);
        state->context.set_state_callback([&](server_state server_state, json payload) {
            if (server_state != SERVER_STATE_LOADING || !options.progress || give_up) return;
            if (payload.contains("value")) give_up = !options.progress(payload.at("value").get<double>());
        });
        if (!state->context.load_model(state->params)) {
            const std::string reason =
                errors.reason("llama.cpp gave no reason; its chat template may be malformed, which "
                              "the argument \"--chat-template chatml\" goes around");
            return absl::InvalidArgumentError(fmt::format("cannot load {}: {}", model.string(), reason));
        }
        state->context.set_state_callback(nullptr);
        state->routes->update_meta(state->context);
        const server_context_meta meta = state->context.get_meta();
        const llama_model * loaded = llama_get_model(state->context.get_llama_context());
        const llama_vocab * vocab = llama_model_get_vocab(loaded);
        state->weights_bytes = meta.model_size;
        state->slot_context_tokens = meta.slot_n_ctx;
        state->bounds.slots = options.slots_per_lane();
        state->bounds.vocab_tokens = meta.model_vocab_n_tokens;
        state->bounds.max_prompt_bytes =
            (static_cast<size_t>(meta.slot_n_ctx) + 1) * longest_token_bytes(vocab) + kPromptSlackBytes;
        state->bounds.embedding_size = llama_model_n_embd_out(loaded);
    } catch (const std::bad_alloc &) {
        return absl::ResourceExhaustedError(fmt::format("cannot load {}: out of memory", model.string()));
    } catch (const std::exception & e) {
        return absl::InvalidArgumentError(fmt::format("cannot load {}: {}", model.string(), errors.reason(e.what())));
    }
    if (give_up) return absl::CancelledError(fmt::format("loading of {} was cancelled", model.string()));

    server_context & context = state->context;
    state->loop = std::thread([&context] { context.start_loop(); });
    std::unique_ptr<ServerHost> host(new ServerHost(std::move(state)));
    // The loop would not see a terminate() that comes before it has begun.
    while (!host->slots(milliseconds(100))) {
    }
    return host;
}

ServerHost::~ServerHost() {
    if (!state_->loop.joinable()) return;
    state_->context.terminate();
    state_->loop.join();
}

absl::StatusOr<const ServerHost::Route *> ServerHost::find(std::string_view method, std::string_view path) const {
    bool other_method = false;
    for (const Route & route : kRoutes) {
        if (path != route.path) continue;
        if (method == route.method) return &route;
        other_method = true;
    }
    if (other_method) {
        return absl::UnimplementedError(fmt::format("{} does not take {}", path, printable(method, 20)));
    }
    return absl::NotFoundError(fmt::format("there is no {}", printable(path)));
}

Need ServerHost::need(const Route & route) {
    return route.need;
}

BodyKind ServerHost::body_kind(const Route & route) {
    return route.body;
}

RequestQueue::Tokens ServerHost::run(const Route & route, Request & request) {
    const std::function<bool()> should_stop = [&request] { return request.stopped(); };
    const server_http_req http{{}, {}, request.path, {}, request.body, {}, should_stop};
    const server_http_res_ptr answer = state_->call(state_->routes.get()->*route.handler, http);
    TokenCounter tokens;
    AnswerSink & sink = *request.sink;
    if (!answer->is_stream()) {
        if (!request.stopped()) {
            std::string body = std::move(answer->data);
            int status = answer->status;
            if (status >= 400)
                body = corrected_error(request.path, status, std::move(body));
            else
                tokens.read(body);
            sink.on_head(status, answer->content_type);
            sink.on_data(body);
        }
    } else {
        sink.on_head(answer->status, answer->content_type);
        std::string event;
        for (bool more = true; more;) {
            event.clear();
            try {
                more = answer->next(event);
            } catch (const std::exception & e) {
                log_message(STRATA_LOG_ERROR, fmt::format("a stream of {} ended early: {}", request.path, e.what()));
                more = false;
            }
            if (event.empty()) continue;
            tokens.read(event);
            sink.on_data(corrected_event(request.path, std::move(event)));
        }
    }
    answer->on_complete();
    return {tokens.prompt_tokens(), tokens.generated_tokens()};
}

std::optional<std::vector<SlotState>> ServerHost::slots(milliseconds timeout) {
    const auto result = state_->ask<server_task_result_slots>(SERVER_TASK_TYPE_SLOT_GET, timeout);
    if (result == nullptr) return std::nullopt;
    std::vector<SlotState> slots;
    try {
        for (const json & item : result->slots_data) {
            SlotState slot;
            slot.id = json_value(item, "id", 0);
            slot.busy = json_value(item, "is_processing", false);
            slot.context_tokens = json_value(item, "n_ctx", 0);
            slot.used_tokens =
                json_value(item, "n_prompt_tokens", 0); // what is in the KV cache, generated ones included
            slots.push_back(slot);
        }
    } catch (const std::exception &) { // of the JSON library: not the answer that this version gives
        return std::nullopt;
    }
    return slots;
}

std::optional<ServerTotals> ServerHost::totals(milliseconds timeout) {
    const auto result = state_->ask<server_task_result_metrics>(SERVER_TASK_TYPE_METRICS, timeout);
    if (result == nullptr) return std::nullopt;
    ServerTotals totals;
    totals.prompt_tokens = static_cast<int64_t>(result->metrics.prompt.count);
    totals.generated_tokens = static_cast<int64_t>(result->metrics.predict.count);
    totals.generate_steps = static_cast<int64_t>(result->metrics.predict.steps);
    totals.prompt_seconds = static_cast<double>(result->metrics.prompt.time) / 1e6;
    totals.generate_seconds = static_cast<double>(result->metrics.predict.time) / 1e6;
    return totals;
}

const ModelBounds & ServerHost::bounds() const {
    return state_->bounds;
}

uint64_t ServerHost::weights_bytes() const {
    return state_->weights_bytes;
}

int32_t ServerHost::slot_context_tokens() const {
    return state_->slot_context_tokens;
}

int32_t ServerHost::threads() const {
    return state_->params.cpuparams.n_threads;
}

} // namespace strata::engine
