#include "engine/llama_args.h"

#include "base/text.h"
#include "engine/driver_limits.h"
#include "engine/limits.h"

#include <arg.h>
#include <common.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

namespace strata::engine {

namespace {

// Arguments that a user may not give: what the driver sets by itself, what concerns a server process with a port (there
// is none here), what changes the whole process or ends it, what downloads.
constexpr std::array kRefused = {
    // options of the driver
    "--model",
    "--alias",
    "--tags",
    "--ctx-size",
    "--parallel",
    "--threads",
    "--batch-size",
    "--ubatch-size",
    "--gpu-layers",
    "--embeddings",
    "--kv-unified-per-slot",
    "--slots",
    "--metrics",
    "--props",
    "--fit",
    "--fit-print",
    "--fit-target",
    "--fit-ctx",
    "--sleep-idle-seconds",
    "--warmup",
    // the server process
    "--host",
    "--port",
    "--reuse-port",
    "--api-key",
    "--api-prefix",
    "--cors-origins",
    "--cors-methods",
    "--cors-headers",
    "--cors-credentials",
    "--timeout",
    "--threads-http",
    "--ui",
    "--ui-config",
    "--ui-mcp-proxy",
    "--tools",
    "--tools-runtime",
    "--mcp-servers-json",
    "--agent",
    "--models-max",
    "--models-autoload",
    "--server-base",
    // the whole process
    "--help",
    "--version",
    "--cache-list",
    "--completion-bash",
    "--list-devices",
    "--numa",
    "--prio",
    "--prio-batch",
    "--log-disable",
    "--log-jsonl",
    "--log-colors",
    "--log-prefix",
    "--log-timestamps",
    "--verbose",
    "--verbosity",
    // the network
    "--rpc",
    "--hf-repo",
    "--hf-token",
    "--hf-repo-draft",
    "--offline",
    "--mmproj-auto",
};

// Paths are for the person who runs the daemon, not for whoever may set the options of a deployment.
bool takes_path(const common_arg & option) {
    const std::string_view hint = option.value_hint == nullptr ? "" : option.value_hint;
    for (const char * word : {"FNAME", "FILE", "PATH", "DIR", "URL", "<user>"}) {
        if (hint.find(word) != std::string_view::npos) return true;
    }
    return false;
}

bool is_refused(const common_arg & option) {
    for (const char * name : option.args) {
        if (std::find(kRefused.begin(), kRefused.end(), std::string_view(name)) != kRefused.end()) return true;
        // presets that download a model
        if (std::string_view(name).ends_with("-default") || std::string_view(name).starts_with("--fim-")) return true;
    }
    return takes_path(option);
}

absl::Status bad_argument(std::string_view argument, std::string_view why) {
    return absl::InvalidArgumentError(fmt::format("llama.cpp argument '{}' {}", printable(argument), why));
}

bool is_named(const common_arg & option, std::string_view name, bool & positive) {
    const auto has = [&](const std::vector<const char *> & names) {
        return std::any_of(names.begin(), names.end(), [&](const char * other) { return name == other; });
    };
    positive = has(option.args);
    return positive || has(option.args_neg);
}

const common_arg * find_option(const common_params_context & table, std::string_view name, bool & positive) {
    for (const common_arg & option : table.options) {
        if (is_named(option, name, positive)) return &option;
    }
    return nullptr;
}

// One pass over arguments with llama.cpp's handlers, which throw.
absl::Status apply(common_params_context & table, const std::vector<std::string> & arguments, bool from_user) {
    for (size_t i = 0; i < arguments.size(); ++i) {
        std::string name = arguments[i];
        if (name.starts_with("--")) std::replace(name.begin(), name.end(), '_', '-');
        bool positive = true;
        const common_arg * option = find_option(table, name, positive);
        if (option == nullptr) return bad_argument(name, "is unknown to llama.cpp's server");
        if (from_user && is_refused(*option)) return bad_argument(name, "can't be set for a deployment");
        const int values = option->handler_str_str ? 2 : option->handler_void || option->handler_bool ? 0 : 1;
        if (arguments.size() - i - 1 < static_cast<size_t>(values)) return bad_argument(name, "lacks its value");
        try {
            common_params & params = table.params;
            if (option->handler_void)
                option->handler_void(params);
            else if (option->handler_bool)
                option->handler_bool(params, positive);
            else if (option->handler_int)
                option->handler_int(params, std::stoi(arguments[i + 1]));
            else if (option->handler_string)
                option->handler_string(params, arguments[i + 1]);
            else if (option->handler_str_str)
                option->handler_str_str(params, arguments[i + 1], arguments[i + 2]);
        } catch (const std::exception & e) {
            return bad_argument(name, fmt::format("has a bad value: {}", printable(e.what(), 300)));
        }
        i += static_cast<size_t>(values);
    }
    return absl::OkStatus();
}

// What common_params_parse does after the last argument, as far as a server with one local model needs it.
void complete(common_params & params) {
    postprocess_cpu_params(params.cpuparams, nullptr);
    postprocess_cpu_params(params.cpuparams_batch, &params.cpuparams);
    postprocess_cpu_params(params.speculative.draft.cpuparams, &params.cpuparams);
    postprocess_cpu_params(params.speculative.draft.cpuparams_batch, &params.cpuparams_batch);
    for (std::string & breaker : params.sampling.dry_sequence_breakers) string_process_escapes(breaker);
    if (!params.kv_overrides.empty()) {
        params.kv_overrides.emplace_back();
        params.kv_overrides.back().key[0] = 0;
    }
    while (params.tensor_buft_overrides.size() < llama_max_tensor_buft_overrides()) {
        params.tensor_buft_overrides.push_back({nullptr, nullptr});
    }
    params.default_template_kwargs.emplace("preserve_reasoning", "true");
}

int64_t prompt_cache_mib() {
    const int64_t memory_mib = static_cast<int64_t>(::sysconf(_SC_PHYS_PAGES)) * ::sysconf(_SC_PAGESIZE) >> 20;
    return std::clamp<int64_t>(memory_mib / 8, 0, kMaxPromptCacheMib);
}

absl::Status check_range(std::string_view name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return absl::OkStatus();
    return absl::InvalidArgumentError(fmt::format("{} is {}; it must be from {} to {}", name, value, low, high));
}

} // namespace

absl::StatusOr<DriverOptions> with_defaults(DriverOptions options, uint64_t trained_context_tokens) {
    STRATA_RETURN_IF_ERROR(check_range("context_tokens", options.context_tokens, 0, kMaxContextTokens));
    STRATA_RETURN_IF_ERROR(check_range("slots", options.slots, 0, kMaxSlots));
    STRATA_RETURN_IF_ERROR(check_range("threads", options.threads, 0, kMaxThreads));
    STRATA_RETURN_IF_ERROR(check_range("batch_tokens", options.batch_tokens, 0, kMaxBatchTokens));
    STRATA_RETURN_IF_ERROR(check_range("gpu_layers", options.gpu_layers, -1, 1 << 16));
    STRATA_RETURN_IF_ERROR(check_range("max_waiting", options.max_waiting, 0, 1 << 20));
    STRATA_RETURN_IF_ERROR(check_range("max_waiting_bytes", options.max_waiting_bytes, 0, int64_t{1} << 40));
    STRATA_RETURN_IF_ERROR(
        check_range("the number of llama_args", static_cast<int64_t>(options.llama_args.size()), 0, kMaxLlamaArgs));
    if (options.context_tokens == 0) {
        options.context_tokens = kDefaultContextTokens;
        if (trained_context_tokens > 0 && trained_context_tokens < static_cast<uint64_t>(kDefaultContextTokens)) {
            options.context_tokens = static_cast<int32_t>(trained_context_tokens);
        }
    }
    if (options.slots == 0) options.slots = kDefaultSlots;
    if (options.lanes == 0)
        options.lanes = std::clamp<int32_t>(static_cast<int32_t>(options.on.size()), 1, options.slots);
    STRATA_RETURN_IF_ERROR(check_range("lanes", options.lanes, 1, options.on.empty() ? 1 : options.slots));
    options.slots = (options.slots + options.lanes - 1) / options.lanes * options.lanes;
    if (options.batch_tokens == 0) {
        // An encoder looks at an input as a whole.
        options.batch_tokens = options.embeddings && trained_context_tokens > 0
                                   ? std::min(options.context_tokens, kMaxEmbeddingBatchTokens)
                                   // A pipeline of executors is full when it has many micro-batches to work on.
                                   : (options.on.size() > 1 ? kPipelineBatchTokens : kDefaultBatchTokens);
    }
    if (options.max_waiting == 0) options.max_waiting = kDefaultMaxWaiting;
    if (options.max_waiting_bytes == 0) options.max_waiting_bytes = kDefaultMaxWaitingBytes;
    const int64_t context = int64_t{options.context_tokens} * options.slots;
    STRATA_RETURN_IF_ERROR(check_range("context_tokens times slots", context, 1, INT32_MAX / 2));
    return options;
}

absl::Status make_server_params(const DriverOptions & options, const std::filesystem::path & model,
                                common_params & params) {
    common_params_context table = common_params_parser_init(params, LLAMA_EXAMPLE_SERVER);
    const std::string batch = std::to_string(options.batch_tokens);
    const int32_t slots = options.slots_per_lane();
    std::vector<std::string> arguments = {
        "--model", model.string(),
        // llama.cpp divides the context among the slots
        "--ctx-size", std::to_string(int64_t{options.context_tokens} * slots), "--parallel", std::to_string(slots),
        "--no-kv-unified",
        // one batch is one micro-batch, so that a cancelled prompt ends with the running one
        "--batch-size", batch, "--ubatch-size", batch,
        // fitting swaps the log function of the process, and refuses nothing that a failed allocation wouldn't
        "--fit", "off", "--jinja", "--slots", "--metrics", "--no-ui"};
    const auto add = [&](std::string name, std::string value) {
        arguments.push_back(std::move(name));
        arguments.push_back(std::move(value));
    };
    if (options.threads > 0) add("--threads", std::to_string(options.threads));
    if (!options.device.empty()) {
        add("--device", options.device);
        add("--gpu-layers", "all");
        // Both would bring state from executors to this process and back.
        add("--cache-ram", "0");
        add("--ctx-checkpoints", "0");
    } else {
        add("--cache-ram", std::to_string(prompt_cache_mib()));
        if (options.gpu_layers != 0)
            add("--gpu-layers", options.gpu_layers < 0 ? "all" : std::to_string(options.gpu_layers));
    }
    if (options.embeddings) arguments.push_back("--embeddings");
    params.model_alias = {options.alias};
    STRATA_RETURN_IF_ERROR(apply(table, arguments, false));
    STRATA_RETURN_IF_ERROR(apply(table, options.llama_args, true));
    complete(params);
    return absl::OkStatus();
}

} // namespace strata::engine
