#include "engine/request_check.h"

#include "base/api_error.h"
#include "base/text.h"
#include "engine/driver_limits.h"
#include "engine/grammar_check.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <string>

namespace strata::engine {

namespace {

using Json = nlohmann::ordered_json;

template <typename... Args>
absl::Status refused(fmt::format_string<Args...> format, Args &&... args) {
    return absl::InvalidArgumentError(fmt::format(format, std::forward<Args>(args)...));
}

// "FIELD must be …": `rest` goes on after the field's name.
template <typename... Args>
absl::Status bad_field(std::string_view field, fmt::format_string<Args...> rest, Args &&... args) {
    return about_field(refused("{} {}", field, fmt::format(rest, std::forward<Args>(args)...)), field);
}

// ---------------------------------------------------------------------------------------------------- JSON itself

// The parser keeps its own stack, but what walks, copies or prints the result calls itself for each level.
bool is_too_deep(std::string_view text) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\')
                ++i;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > kMaxJsonDepth) return true;
        } else if (c == '}' || c == ']') {
            --depth;
        }
    }
    return false;
}

// Finds where a text stops to be JSON.
struct ErrorPosition : nlohmann::json_sax<Json> {
    size_t position = 0;
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(number_integer_t) override { return true; }
    bool number_unsigned(number_unsigned_t) override { return true; }
    bool number_float(number_float_t, const string_t &) override { return true; }
    bool string(string_t &) override { return true; }
    bool binary(binary_t &) override { return true; }
    bool start_object(size_t) override { return true; }
    bool key(string_t &) override { return true; }
    bool end_object() override { return true; }
    bool start_array(size_t) override { return true; }
    bool end_array() override { return true; }
    bool parse_error(size_t at, const std::string &, const nlohmann::detail::exception &) override {
        position = at;
        return false;
    }
};

absl::StatusOr<Json> parse(std::string_view body) {
    if (is_too_deep(body)) return refused("the JSON body is nested more than {} levels deep", kMaxJsonDepth);
    Json json = Json::parse(body, nullptr, false);
    if (json.is_discarded()) {
        ErrorPosition error;
        (void)Json::sax_parse(body, &error);
        return refused("malformed JSON in the body at byte {}", error.position);
    }
    if (!json.is_object()) return refused("the body must be a JSON object");
    return json;
}

// ------------------------------------------------------------------------------------------------------- numbers

struct IntegerField {
    const char * name;
    int64_t low;
    int64_t high;
};

// Integers that the server casts to 32 bits, allocates or multiplies by. The upper bounds of plain counts are what int
// holds.
constexpr std::array kIntegers = {
    IntegerField{"n_predict", -1, INT32_MAX},
    IntegerField{"max_tokens", -1, INT32_MAX},
    IntegerField{"max_completion_tokens", -1, INT32_MAX},
    IntegerField{"max_output_tokens", -1, INT32_MAX},
    IntegerField{"n_indent", 0, 1 << 20},
    IntegerField{"n_keep", -1, 1 << 30},   // n_keep + 1 is computed
    IntegerField{"n_discard", 0, 1 << 30}, // CVE-2026-21869
    IntegerField{"n_cache_reuse", 0, 1 << 30},
    IntegerField{"top_k", INT32_MIN, INT32_MAX},
    IntegerField{"repeat_last_n", -1, kMaxPenaltyWindow},
    IntegerField{"dry_penalty_last_n", -1, kMaxPenaltyWindow},
    IntegerField{"dry_allowed_length", 0, 1 << 30},
    IntegerField{"min_keep", 0, 1 << 30},
    IntegerField{"mirostat", 0, 2},
    IntegerField{"n_probs", 0, kMaxLogprobs}, // each is JSON for each token: memory
    IntegerField{"top_logprobs", 0, kMaxLogprobs},
    IntegerField{"seed", INT32_MIN, UINT32_MAX},
    IntegerField{"top_n", 0, INT32_MAX}, // CVE-2026-52132
    IntegerField{"embd_normalize", -1, 1 << 10},
    IntegerField{"sse_ping_interval", -1, 1 << 20},
    IntegerField{"reasoning_budget_tokens", -1, INT32_MAX},
    IntegerField{"thinking_budget_tokens", -1, INT32_MAX},
};

// An integer of any JSON kind; nullopt-like: false when it is none or beyond 64 bits.
bool to_integer(const Json & value, int64_t & out) {
    if (value.is_number_unsigned()) {
        const auto number = value.get<uint64_t>();
        if (number > INT64_MAX) return false;
        out = static_cast<int64_t>(number);
        return true;
    }
    if (value.is_number_integer()) {
        out = value.get<int64_t>();
        return true;
    }
    if (value.is_number_float()) { // "max_tokens": 16.0 comes from languages with one kind of number
        const double number = value.get<double>();
        if (!(std::abs(number) < 9e15) || number != std::floor(number)) return false;
        out = static_cast<int64_t>(number);
        return true;
    }
    return false;
}

absl::Status check_integer(const Json & body, const IntegerField & field) {
    const auto found = body.find(field.name);
    if (found == body.end() || found->is_null()) return absl::OkStatus();
    int64_t number = 0;
    if (!to_integer(*found, number) || number < field.low || number > field.high) {
        return bad_field(field.name, "must be an integer from {} to {}", field.low, field.high);
    }
    return absl::OkStatus();
}

struct RealField {
    const char * name;
    double low;
    double high;
};

// Infinities and what becomes one in a float end as NaN in the probabilities. What makes no sense the server clamps, or
// takes as it comes, without a word.
constexpr std::array kReals = {
    RealField{"temperature", 0, kMaxSamplerNumber},
    RealField{"top_p", 0, 1},
    RealField{"min_p", 0, 1},
    RealField{"typical_p", 0, 1},
    RealField{"top_n_sigma", -kMaxSamplerNumber, kMaxSamplerNumber}, // negative: off
    RealField{"xtc_probability", 0, 1},
    RealField{"xtc_threshold", 0, 1}, // above 0.5: off
    RealField{"dynatemp_range", 0, kMaxSamplerNumber},
    RealField{"dynatemp_exponent", 0, kMaxSamplerNumber},
    RealField{"repeat_penalty", 0, kMaxSamplerNumber},
    RealField{"frequency_penalty", -kMaxSamplerNumber, kMaxSamplerNumber},
    RealField{"presence_penalty", -kMaxSamplerNumber, kMaxSamplerNumber},
    RealField{"dry_multiplier", -kMaxSamplerNumber, kMaxSamplerNumber},
    RealField{"dry_base", -kMaxSamplerNumber, kMaxSamplerNumber}, // below 1: the default
    RealField{"mirostat_tau", 0, kMaxSamplerNumber},
    RealField{"mirostat_eta", 0, 1},
    RealField{"adaptive_target", -kMaxSamplerNumber, 1}, // negative: off
    RealField{"adaptive_decay", 0, 0.99},
};

absl::Status check_real(const Json & body, const RealField & field) {
    const auto found = body.find(field.name);
    if (found == body.end() || found->is_null()) return absl::OkStatus();
    const bool fits = found->is_number() && found->get<double>() >= field.low && found->get<double>() <= field.high;
    if (!fits) {
        return bad_field(field.name, "must be a number from {} to {}", field.low, field.high);
    }
    return absl::OkStatus();
}

absl::Status check_count(const Json & body, const char * name, size_t limit) {
    const auto found = body.find(name);
    if (found == body.end()) return absl::OkStatus();
    size_t count = 0;
    if (found->is_array() || found->is_object())
        count = found->size();
    else if (found->is_string() && std::string_view(name) == "samplers")
        count = found->get_ref<const std::string &>().size();
    if (count > limit) return bad_field(name, "has {} entries, more than the limit of {}", count, limit);
    return absl::OkStatus();
}

// -------------------------------------------------------------------------------------------------------- texts

// Bytes of all strings in a value.
size_t text_bytes(const Json & value) {
    if (value.is_string()) return value.get_ref<const std::string &>().size();
    size_t bytes = 0;
    if (value.is_structured()) {
        for (const Json & item : value) bytes += text_bytes(item);
    }
    return bytes;
}

// Tokenizing a text of many megabytes would hold a worker for minutes only to find that it is too long.
absl::Status check_text(const Json & value, std::string_view name, const ModelBounds & bounds) {
    const size_t bytes = text_bytes(value);
    if (bytes > bounds.max_prompt_bytes) {
        return about_field(absl::OutOfRangeError(fmt::format(
                               "{} has {} bytes of text, more than the available context size can hold", name, bytes)),
                           name);
    }
    return absl::OkStatus();
}

// -1 stands for a piece of an image in the server's token lists; others are looked up in the vocabulary.
absl::Status check_tokens(const Json & list, std::string_view name, const ModelBounds & bounds) {
    for (const Json & item : list) {
        if (!item.is_number()) continue;
        int64_t token = 0;
        if (!to_integer(item, token) || token < 0 || token >= bounds.vocab_tokens) {
            return bad_field(name, "holds {}, which is no token of the model (0 to {})", item.dump(),
                             bounds.vocab_tokens - 1);
        }
    }
    return absl::OkStatus();
}

// "text" or a list of texts. The server ignores anything else.
absl::Status check_stops(const Json & body, const char * name) {
    const auto found = body.find(name);
    if (found == body.end() || found->is_null() || found->is_string()) return absl::OkStatus();
    bool texts = found->is_array();
    for (const Json & item : *found) texts &= item.is_string();
    if (!texts) return bad_field(name, "must be a string or a list of strings");
    return check_count(body, name, kMaxStops);
}

absl::Status check_bias(const Json & bias) {
    if (bias == false) return absl::OkStatus(); // never
    if (!bias.is_number() || !(std::abs(bias.get<double>()) <= kMaxSamplerNumber)) {
        return bad_field("logit_bias", "must be numbers from {} to {}, or false", -kMaxSamplerNumber,
                         kMaxSamplerNumber);
    }
    return absl::OkStatus();
}

absl::Status no_biased_token(std::string_view token, const ModelBounds & bounds) {
    return bad_field("logit_bias", "names {}, which is no token of the model (0 to {})", printable(token, 60),
                     bounds.vocab_tokens - 1);
}

// {"5": 1, "text": false} or [[5, 1], ["text", false]]. The server ignores entries that it can't use, and cuts numbers
// to 32 bits.
absl::Status check_logit_bias(const Json & body, const ModelBounds & bounds) {
    const auto found = body.find("logit_bias");
    if (found == body.end() || found->is_null()) return absl::OkStatus();
    STRATA_RETURN_IF_ERROR(check_count(body, "logit_bias", kMaxLogitBiases));
    if (found->is_object()) {
        for (const auto & [token, bias] : found->items()) {
            char * end = nullptr;
            const long number = std::strtol(token.c_str(), &end, 10); // as the server reads it
            const bool is_number = *end == '\0';
            if (token.empty() || (is_number && (number < 0 || number >= bounds.vocab_tokens))) {
                return no_biased_token(token.empty() ? "an empty text" : token, bounds);
            }
            STRATA_RETURN_IF_ERROR(check_bias(bias));
        }
        return absl::OkStatus();
    }
    if (!found->is_array()) return bad_field("logit_bias", "must be an object or a list of [token, bias]");
    for (const Json & entry : *found) {
        if (!entry.is_array() || entry.size() != 2 || !(entry[0].is_number_integer() || entry[0].is_string())) {
            return bad_field("logit_bias", "must be an object or a list of [token, bias]");
        }
        int64_t number = 0;
        if (entry[0] == "") return no_biased_token("an empty text", bounds);
        if (entry[0].is_number() && (!to_integer(entry[0], number) || number < 0 || number >= bounds.vocab_tokens)) {
            return no_biased_token(entry[0].dump(), bounds);
        }
        STRATA_RETURN_IF_ERROR(check_bias(entry[1]));
    }
    return absl::OkStatus();
}

// [{"id": 0, "scale": 1}]. An engine loads no adapters (--lora takes a path, which is refused), so there is no id that
// is right; the server ignores them.
absl::Status check_lora(const Json & body) {
    const auto found = body.find("lora");
    if (found == body.end() || found->is_null() || (found->is_array() && found->empty())) return absl::OkStatus();
    if (!found->is_array()) return bad_field("lora", "must be a list of objects with id and scale");
    const Json & first = found->front();
    if (!first.is_object() || !first.contains("id"))
        return bad_field("lora", "must be a list of objects with id and scale");
    return bad_field("lora", "names the adapter {}, but no adapters are loaded", printable(first["id"].dump(), 60));
}

bool holds_numbers(const Json & list) {
    for (const Json & item : list) {
        if (item.is_number()) return true;
    }
    return false;
}

bool is_empty_prompt(const Json & prompt) {
    if (prompt.is_string() || prompt.is_array()) return prompt.empty() || prompt == "";
    if (prompt.is_object()) return prompt.contains("prompt_string") && is_empty_prompt(prompt["prompt_string"]);
    return false;
}

struct Prompts {
    size_t count = 1;
    bool any_empty = false;
};

// "text", [1, 2], [1, "text"], {"prompt_string": …} or a list of these.
absl::StatusOr<Prompts> check_prompts(const Json & prompt, std::string_view name, size_t limit,
                                      const ModelBounds & bounds) {
    Prompts prompts;
    if (!prompt.is_array() || holds_numbers(prompt)) {
        if (prompt.is_array()) STRATA_RETURN_IF_ERROR(check_tokens(prompt, name, bounds));
        STRATA_RETURN_IF_ERROR(check_text(prompt, name, bounds));
        prompts.any_empty = is_empty_prompt(prompt);
        return prompts;
    }
    prompts.count = prompt.size();
    if (prompts.count == 0) return bad_field(name, "is an empty list");
    if (prompts.count > limit)
        return bad_field(name, "has {} entries, more than the limit of {}", prompts.count, limit);
    for (const Json & item : prompt) {
        if (item.is_array()) STRATA_RETURN_IF_ERROR(check_tokens(item, name, bounds));
        STRATA_RETURN_IF_ERROR(check_text(item, name, bounds));
        prompts.any_empty |= is_empty_prompt(item);
    }
    return prompts;
}

// The server would fetch it from wherever the client says, also from inside of the operator's network.
absl::Status check_media(const Json & value) {
    if (value.is_object()) {
        for (const char * key : {"url", "data", "image_url"}) {
            const auto found = value.find(key);
            if (found == value.end() || !found->is_string()) continue;
            const auto & url = found->get_ref<const std::string &>();
            if (url.starts_with("http") || url.starts_with("file:")) {
                return refused("media is not fetched from '{}'; send it inside of the request as a data: URL",
                               printable(url, 60));
            }
        }
    }
    if (value.is_structured()) {
        for (const Json & item : value) STRATA_RETURN_IF_ERROR(check_media(item));
    }
    return absl::OkStatus();
}

// --------------------------------------------------------------------------------------------------- generation

// What a JSON schema asks of the server's converter, which copies the names of an object's properties for each pair of
// them.
struct SchemaWork {
    double cubes = 0;      // of the number of properties, over all objects
    size_t properties = 0; // in all
    bool merges = false;   // allOf makes one object of several

    void look_at(const Json & value) {
        if (value.is_object()) {
            if (const auto found = value.find("properties"); found != value.end() && found->is_object()) {
                const auto count = static_cast<double>(found->size());
                cubes += count * count * count;
                properties += found->size();
            }
            merges |= value.contains("allOf");
        }
        if (value.is_structured()) {
            for (const Json & item : value) look_at(item);
        }
    }
    double total() const {
        const auto all = static_cast<double>(properties);
        return merges ? all * all * all : cubes;
    }
};

// The converter runs on a worker and can't be stopped.
absl::Status check_schemas(const Json & body) {
    double work = 0;
    const auto add = [&work](const Json & schema) {
        SchemaWork one;
        one.look_at(schema);
        work += one.total();
    };
    for (const char * name : {"json_schema", "response_format", "text", "output_config", "output_format"}) {
        if (body.contains(name)) add(body[name]);
    }
    if (const auto tools = body.find("tools"); tools != body.end() && tools->is_array()) {
        for (const Json & tool : *tools) add(tool);
    }
    constexpr double kMax = static_cast<double>(kMaxSchemaProperties);
    if (work > kMax * kMax * kMax) {
        return refused("the JSON schemas are too large: one object may have about {} properties", kMaxSchemaProperties);
    }
    return absl::OkStatus();
}

// Fields through which the server's parts talk to each other; taken from a client they reach asserts (grammar_triggers,
// grammar with backend_sampling), a regular expression of the client's (grammar_triggers) or a serialized parser
// (chat_parser).
constexpr std::array kInternal = {"grammar_triggers", "chat_parser", "chat_format", "grammar_type",
                                  "message_delimiters"};

absl::Status check_sampling(const Json & body, const ModelBounds & bounds) {
    for (const IntegerField & field : kIntegers) STRATA_RETURN_IF_ERROR(check_integer(body, field));
    for (const RealField & field : kReals) STRATA_RETURN_IF_ERROR(check_real(body, field));
    for (const char * name : kInternal) {
        if (body.contains(name)) return bad_field(name, "is not a parameter of a request");
    }
    if (const auto found = body.find("backend_sampling"); found != body.end() && *found != false && !found->is_null()) {
        return bad_field("backend_sampling", "is not supported");
    }
    // true (chat) or a number (completions)
    if (const auto found = body.find("logprobs"); found != body.end() && !found->is_boolean()) {
        STRATA_RETURN_IF_ERROR(check_integer(body, {"logprobs", 0, kMaxLogprobs}));
    }
    STRATA_RETURN_IF_ERROR(check_stops(body, "stop"));
    STRATA_RETURN_IF_ERROR(check_stops(body, "stop_sequences"));
    STRATA_RETURN_IF_ERROR(check_count(body, "samplers", kMaxSamplers));
    STRATA_RETURN_IF_ERROR(check_count(body, "dry_sequence_breakers", kMaxSequenceBreakers));
    STRATA_RETURN_IF_ERROR(check_logit_bias(body, bounds));
    STRATA_RETURN_IF_ERROR(check_lora(body));
    STRATA_RETURN_IF_ERROR(check_count(body, "response_fields", kMaxStops));
    STRATA_RETURN_IF_ERROR(check_schemas(body));
    // CVE-2026-52130, CVE-2026-2069
    if (const auto found = body.find("grammar"); found != body.end() && found->is_string()) {
        STRATA_RETURN_IF_ERROR(about_field(check_grammar(found->get_ref<const std::string &>()), "grammar"));
    }
    return absl::OkStatus();
}

// The server knows no shorter vectors and ignores the wish.
absl::Status check_dimensions(const Json & body, const ModelBounds & bounds) {
    const auto found = body.find("dimensions");
    if (found == body.end() || found->is_null() || *found == bounds.embedding_size) return absl::OkStatus();
    return bad_field("dimensions", "must be {}, the size of the model's vectors, or left out", bounds.embedding_size);
}

bool is_chat(BodyKind kind) {
    return kind == BodyKind::kChat || kind == BodyKind::kMessages;
}

// What OpenAI and Anthropic refuse in a chat. The server answers it with what the template makes of nothing, or with
// one token for 0.
absl::Status check_chat(BodyKind kind, const Json & body) {
    // Responses have `input`. That it is missing or of another type is the server's to say.
    const char * conversation = body.contains("messages") ? "messages" : "input";
    if (body.contains(conversation) && is_empty_prompt(body[conversation])) return bad_field(conversation, "is empty");
    if (kind == BodyKind::kMessages) {
        if (!body.contains("max_tokens") || body["max_tokens"].is_null()) return bad_field("max_tokens", "is required");
        return check_integer(body, {"max_tokens", 1, INT32_MAX});
    }
    for (const char * name : {"max_tokens", "max_completion_tokens", "max_output_tokens"}) {
        if (body.contains(name) && body[name] == 0) return bad_field(name, "must be 1 or more, or -1 for no limit");
    }
    return absl::OkStatus();
}

absl::StatusOr<CheckedRequest> check_generation(BodyKind kind, const Json & body, const ModelBounds & bounds) {
    STRATA_RETURN_IF_ERROR(check_sampling(body, bounds));
    STRATA_RETURN_IF_ERROR(check_integer(body, {"id_slot", -1, bounds.slots - 1}));
    int64_t choices = 1;
    for (const char * name : {"n", "n_cmpl"}) {
        STRATA_RETURN_IF_ERROR(check_integer(body, {name, 1, bounds.slots}));
        int64_t number = 1;
        if (body.contains(name) && to_integer(body[name], number)) choices = std::max(choices, number);
    }

    Prompts prompts;
    if (is_chat(kind)) {
        STRATA_RETURN_IF_ERROR(check_chat(kind, body));
        for (const char * name : {"messages", "input"}) {
            if (!body.contains(name)) continue;
            STRATA_RETURN_IF_ERROR(about_field(check_media(body[name]), name));
        }
    } else if (body.contains("prompt")) {
        STRATA_ASSIGN_OR_RETURN(prompts, check_prompts(body["prompt"], "prompt", kMaxPrompts, bounds));
    }
    // The choices beside the first would wait for ever for the first one's prompt.
    if (choices > 1 && prompts.any_empty) return bad_field("n", "must be 1 when prompt is empty");

    CheckedRequest checked;
    checked.stream = body.contains("stream") && body["stream"] == true;
    if (choices > 1) checked.width = prompts.count > 1 ? bounds.slots + 1 : static_cast<int32_t>(choices);
    return checked;
}

} // namespace

absl::StatusOr<CheckedRequest> check_request(BodyKind kind, std::string_view body, const ModelBounds & bounds) {
    if (body.size() > kMaxBodyBytes) {
        return refused("the body has {} bytes, more than the limit of {}", body.size(), kMaxBodyBytes);
    }
    STRATA_ASSIGN_OR_RETURN(const Json json, parse(body));
    switch (kind) {
    case BodyKind::kChat:
    case BodyKind::kMessages:
        for (const char * name : {"messages", "system", "input", "instructions", "tools"}) {
            if (json.contains(name)) STRATA_RETURN_IF_ERROR(check_text(json[name], name, bounds));
        }
        return check_generation(kind, json, bounds);
    case BodyKind::kInfill:
        // The server goes on after it has found these wrong.
        for (const char * name : {"input_prefix", "input_suffix"}) {
            if (!json.contains(name)) return bad_field(name, "is required");
            STRATA_RETURN_IF_ERROR(check_prompts(json[name], name, 1, bounds).status());
        }
        if (json.contains("prompt") && !json["prompt"].is_string()) return bad_field("prompt", "must be a string");
        if (json.contains("input_extra"))
            STRATA_RETURN_IF_ERROR(check_text(json["input_extra"], "input_extra", bounds));
        return check_generation(kind, json, bounds);
    case BodyKind::kCompletion:
        if (!json.contains("prompt")) return bad_field("prompt", "is required");
        return check_generation(kind, json, bounds);
    case BodyKind::kEmbedding:
        STRATA_RETURN_IF_ERROR(check_integer(json, {"embd_normalize", -1, 1 << 10}));
        STRATA_RETURN_IF_ERROR(check_dimensions(json, bounds));
        for (const char * name : {"input", "content"}) {
            if (!json.contains(name)) continue;
            STRATA_RETURN_IF_ERROR(check_prompts(json[name], name, kMaxInputs, bounds).status());
        }
        return CheckedRequest{};
    case BodyKind::kRerank:
        STRATA_RETURN_IF_ERROR(check_integer(json, {"top_n", 0, INT32_MAX})); // CVE-2026-52132
        for (const char * name : {"documents", "texts"}) {
            if (!json.contains(name)) continue;
            STRATA_RETURN_IF_ERROR(check_prompts(json[name], name, kMaxInputs, bounds).status());
        }
        if (json.contains("query")) STRATA_RETURN_IF_ERROR(check_text(json["query"], "query", bounds));
        return CheckedRequest{};
    case BodyKind::kTokens:
        if (json.contains("tokens")) {
            if (!json["tokens"].is_array()) return bad_field("tokens", "must be a list of integers");
            STRATA_RETURN_IF_ERROR(check_tokens(json["tokens"], "tokens", bounds));
        }
        if (json.contains("content") && json["content"].is_array()) {
            STRATA_RETURN_IF_ERROR(check_tokens(json["content"], "content", bounds));
        }
        if (json.contains("content")) STRATA_RETURN_IF_ERROR(check_text(json["content"], "content", bounds));
        return CheckedRequest{};
    case BodyKind::kOther:
        return CheckedRequest{};
    }
    return CheckedRequest{};
}

} // namespace strata::engine
