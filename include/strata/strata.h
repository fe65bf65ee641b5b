/*
 * libstrata: the strata engine as a library.
 *
 * A plain C interface: opaque handles, no exception and no C++ type crosses it. Every function that can fail returns a
 * strata_status; strata_last_error() then has a sentence that says what happened, to what, and what can be done.
 *
 * Thread-safety: a strata_model and a strata_driver may be used from any thread at the same time. A strata_session is
 * used by one thread at a time, except for strata_session_cancel. A handle must not be used during or after its close.
 *
 * Versioning: the struct_size member of an options struct must be set to its sizeof (STRATA_INIT does it), so that a
 * program built against an older header keeps working; members it does not know take their default. For all options,
 * zero means the default. STRATA_API_VERSION changes only when something here changes its meaning.
 */
#ifndef STRATA_STRATA_H
#define STRATA_STRATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define STRATA_API __attribute__((visibility("default")))
#define STRATA_API_VERSION 1

/* Zeroes an options struct and sets its size: strata_model_options options; STRATA_INIT(&options); */
#define STRATA_INIT(pointer) strata_init_struct((pointer), sizeof(*(pointer)))
STRATA_API void strata_init_struct(void * options, size_t size);

typedef enum strata_status {
    STRATA_OK = 0,
    STRATA_INVALID_ARGUMENT = 1, /* the caller's input, a malformed file included */
    STRATA_NOT_FOUND = 2,
    STRATA_CORRUPT = 3, /* stored bytes do not match their digest */
    STRATA_CANCELLED = 4,
    STRATA_RESOURCE_EXHAUSTED = 5, /* memory, disk or a queue is full */
    STRATA_UNAVAILABLE = 6,        /* not now: shutting down, or not reachable */
    STRATA_INTERNAL = 7
} strata_status;

/* The last failure of a call on this thread, never NULL; valid until the next failing call on this thread. */
STRATA_API const char * strata_last_error(void);
/* The STRATA_API_VERSION that the library was built with. */
STRATA_API uint32_t strata_api_version(void);
/* "0.1.0" */
STRATA_API const char * strata_version(void);
/* Names the engine build; only engines of equal builds work on one model together. */
STRATA_API const char * strata_engine_build(void);
/* Frees a string that a function of this library returned. NULL is allowed. */
STRATA_API void strata_free(void * pointer);

typedef enum strata_log_level { STRATA_LOG_DEBUG, STRATA_LOG_INFO, STRATA_LOG_WARN, STRATA_LOG_ERROR } strata_log_level;
typedef void (*strata_log_fn)(strata_log_level level, const char * text, void * user);
/* Where messages of the library and of llama.cpp go; NULL silences them, which is the default. Process-wide. */
STRATA_API void strata_set_log(strata_log_fn log, void * user);

/* Called with the done and total bytes (or any unit); return false to cancel the operation. */
typedef bool (*strata_progress_fn)(const char * phase, uint64_t done, uint64_t total, void * user);

/* ------------------------------------------------------------------------------------------------ models ------- */

typedef struct strata_model strata_model;

typedef struct strata_model_options {
    size_t struct_size;
    const char * store; /* folder of the layer store; NULL: $STRATA_HOME/store or the user's default */
    const char * views; /* folder for the view of a stored model that llama.cpp maps; NULL: beside the store */
    int32_t gpu_layers; /* layers on a GPU, -1 for all */
    bool no_mmap;       /* read the weights instead of mapping them */
    bool verify;        /* hash before use every blob whose file changed since it was hashed last */
    strata_progress_fn progress;
    void * user;
} strata_model_options;

/* Opens NAME[:TAG] of the store, or, when `model` ends in ".gguf", that file (the first one of a split model). */
STRATA_API strata_status strata_model_open(const char * model, const strata_model_options * options,
                                           strata_model ** out);
STRATA_API void strata_model_close(strata_model * model);

typedef struct strata_layer_info {
    const char * kind;   /* "head", "embedding", "block", "tail" */
    int32_t block;       /* number of the transformer block, -1 for the others */
    const char * digest; /* "sha256:…", empty for a model opened from a file */
    uint64_t size_bytes; /* of the blob; for a file: of the tensors */
    uint32_t tensor_count;
} strata_layer_info; /* strings live as long as the model */

STRATA_API size_t strata_model_layer_count(const strata_model * model);
STRATA_API strata_status strata_model_layer(const strata_model * model, size_t index, strata_layer_info * out);
/* A value of the model's metadata as text, e.g. "general.architecture". Caller frees *out with strata_free. */
STRATA_API strata_status strata_model_metadata(const strata_model * model, const char * key, char ** out);
STRATA_API int32_t strata_model_vocab_size(const strata_model * model);
STRATA_API int32_t strata_model_embedding_size(const strata_model * model);
STRATA_API int32_t strata_model_context_size(const strata_model * model); /* trained context, tokens */

/* Token ids of text. *tokens is freed with strata_free. special: whether "<|im_end|>" and the like are parsed. */
STRATA_API strata_status strata_tokenize(const strata_model * model, const char * text, size_t text_bytes,
                                         bool add_special, bool special, int32_t ** tokens, size_t * count);
/* Text of token ids; UTF-8 may be cut at the end of a token. *text is NUL-terminated, freed with strata_free. */
STRATA_API strata_status strata_detokenize(const strata_model * model, const int32_t * tokens, size_t count,
                                           char ** text, size_t * text_bytes);

typedef struct strata_chat_message {
    const char * role; /* "system", "user", "assistant" */
    const char * content;
} strata_chat_message;
/* The prompt that the model's own chat template makes of the messages, ready for an answer. Freed with strata_free. */
STRATA_API strata_status strata_apply_chat_template(const strata_model * model, const strata_chat_message * messages,
                                                    size_t count, char ** prompt);

/* ---------------------------------------------------------------------------------------------- sessions ------- */

typedef struct strata_session strata_session;

typedef struct strata_session_options {
    size_t struct_size;
    int32_t context_tokens; /* default: the model's, at most 4096 */
    int32_t batch_tokens;   /* default 512 */
    int32_t threads;        /* default: physical cores */
    bool embeddings;        /* for strata_embed instead of strata_generate */
} strata_session_options;

STRATA_API strata_status strata_session_open(strata_model * model, const strata_session_options * options,
                                             strata_session ** out);
STRATA_API void strata_session_close(strata_session * session); /* before its model */

typedef struct strata_sampling {
    size_t struct_size;
    int32_t max_tokens;   /* default: until the end of the text or of the context */
    float temperature;    /* 0: greedy (the default); negative is refused */
    int32_t top_k;        /* 0: off */
    float top_p;          /* 0 or 1: off */
    float min_p;          /* 0: off */
    float repeat_penalty; /* 0 or 1: off */
    uint32_t seed;        /* equal seeds give equal text; 0 is a seed like any other */
    const char * grammar; /* GBNF, NULL: none */
    bool no_reuse;        /* compute the whole prompt anew: equal bits whatever the session did before */
} strata_sampling;

typedef struct strata_token {
    int32_t id;
    const char * text; /* complete UTF-8 only; a character split over tokens comes with its last one */
    size_t text_bytes;
} strata_token;
/* Called for each token but the one that ends the text, from within strata_generate; return false to end the generation
 * (with STRATA_OK). It must not use the session, except for strata_session_cancel. */
typedef bool (*strata_token_fn)(const strata_token * token, void * user);

typedef struct strata_stats {
    size_t struct_size;
    int32_t prompt_tokens;
    int32_t reused_tokens; /* of the prompt, already in the session's KV */
    int32_t generated_tokens;
    double prompt_ms;
    double generate_ms;
} strata_stats;

/* Continues the prompt. The session keeps its KV: a prompt that begins like the last text is not computed again.
 * STRATA_CANCELLED after strata_session_cancel, *stats is then filled too; STRATA_INVALID_ARGUMENT when the prompt does
 * not fit the context. sampling, on_token and stats may be NULL; the struct_size of stats must be set. */
STRATA_API strata_status strata_generate(strata_session * session, const char * prompt,
                                         const strata_sampling * sampling, strata_token_fn on_token, void * user,
                                         strata_stats * stats);
/* The embedding of text, pooled as the model says and of length 1. count must be strata_model_embedding_size. */
STRATA_API strata_status strata_embed(strata_session * session, const char * text, float * embedding, size_t count);
/* Ends the running strata_generate or strata_embed of the session at the next token or sooner; from any thread. Without
 * a running call it does nothing. */
STRATA_API void strata_session_cancel(strata_session * session);

/* ----------------------------------------------------------------------------------------------- drivers ------- */

/* A driver answers API requests (OpenAI and Anthropic shapes) for one model, many at a time. Memory and threads do not
 * grow with the number of waiting requests beyond the limits given. */
typedef struct strata_driver strata_driver;
typedef struct strata_request strata_request;

typedef struct strata_driver_options {
    size_t struct_size;
    const char * store;
    const char * views;
    const char * alias;     /* the name that responses carry; default: the model's */
    int32_t context_tokens; /* per slot */
    int32_t slots;          /* default 4 */
    int32_t threads;
    int32_t batch_tokens; /* default 512 */
    int32_t gpu_layers;
    bool embeddings;
    int32_t max_waiting;             /* default 4096 requests */
    int64_t max_waiting_bytes;       /* default 256 MiB of bodies */
    const char * const * llama_args; /* NULL-terminated, more arguments in llama-server's syntax; NULL: none */
    strata_progress_fn progress;
    void * user;
    bool verify;             /* hash before use every blob whose file changed since it was hashed last */
    const char * const * on; /* NULL-terminated, executors ("host:port") that run the layers; NULL: none */
    const double * split;    /* as many as `on`: their shares of the model; NULL: equal ones */
    int32_t lanes;        /* independent batches over the executors, which the slots are shared out to; default: as many
                           * as executors */
    const char * on_loss; /* of an executor: "rebind" (its layers go to the others), "wait" (for strata_driver_bind),
                           * "fail"; NULL: rebind */
    const char * tls;     /* folder of the certificates for executors: ca.pem, cert.pem, key.pem; NULL: without TLS */
} strata_driver_options;

/* Loads; one driver at a time loads in a process. */
STRATA_API strata_status strata_driver_open(const char * model, const strata_driver_options * options,
                                            strata_driver ** out);
/* Cancels what runs, waits for its callbacks to return, frees everything. */
STRATA_API void strata_driver_close(strata_driver * driver);

typedef struct strata_response_fns {
    /* HTTP status and content type; once, first. */
    void (*on_head)(int32_t status, const char * content_type, void * user);
    /* Whole SSE events, or a piece of the body. */
    void (*on_data)(const void * data, size_t bytes, void * user);
    /* Once, last, always, also after an error or a cancel. No callback follows; the handle is released by
     * strata_request_release whenever the caller wants. */
    void (*on_end)(int32_t prompt_tokens, int32_t generated_tokens, double queue_ms, void * user);
} strata_response_fns;

/* Starts a request and returns at once. The callbacks come from the driver's threads, one at a time for a request; a
 * callback that blocks holds back one of the driver's few workers. body is copied.
 * path: "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
 * "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/apply-template", "/v1/rerank", "/props", ...; method
 * "POST" or "GET". A request that can't be taken (unknown path, full queue) is answered through the callbacks like any
 * other. */
STRATA_API strata_status strata_driver_request(strata_driver * driver, const char * method, const char * path,
                                               const void * body, size_t body_bytes, int64_t deadline_ms,
                                               const strata_response_fns * fns, void * user, strata_request ** out);
/* Ends the request: a waiting one at once, a running one after its micro-batch. on_end still comes. */
STRATA_API void strata_request_cancel(strata_request * request);
STRATA_API void strata_request_release(strata_request * request);

/* Waits until no request runs or waits; new ones are refused from the call on. STRATA_UNAVAILABLE after the timeout. */
STRATA_API strata_status strata_driver_drain(strata_driver * driver, int64_t timeout_ms);
/* Binds layers of a model on executors to the one at "host:port", between two steps: their weights and state follow,
 * and requests go on. last_layer: the tail counts as one more than the last block. Returns when it is done. */
STRATA_API strata_status strata_driver_bind(strata_driver * driver, int32_t first_layer, int32_t last_layer,
                                            const char * executor);
/* State as JSON, within milliseconds also during a decode: {"waiting":0,"active":1,"slots":[{"id":0,"busy":true,
 * "context_tokens":4096,"used_tokens":12}],"prompt_tokens_total":..,"generated_tokens_total":..,"requests_total":..,
 * "prompt_tokens_per_second":..,"generated_tokens_per_second":..,"idle_ms":..,"weights_bytes":..,"draining":false,
 * "options":{the options in force}}. Freed with strata_free. */
STRATA_API strata_status strata_driver_status(strata_driver * driver, char ** json);

/* ------------------------------------------------------------------------------------------------- store ------- */

/* Imports GGUF files (one, or every file of a split model in any order), or with one source "oci:DIR[:REF]" an OCI
 * layout, under NAME[:TAG]; NULL takes a name from the file. *reference is "NAME:TAG@DIGEST", with the manifest's
 * digest; freed with strata_free. */
STRATA_API strata_status strata_import(const char * store, const char * const * sources, size_t count,
                                       const char * name, strata_progress_fn progress, void * user, char ** reference);
/* Fetches "hf://ORG/REPO/FILE" and imports it. Resumes an earlier attempt. The token is $HF_TOKEN. */
STRATA_API strata_status strata_pull(const char * store, const char * url, const char * name,
                                     strata_progress_fn progress, void * user, char ** reference);
/* Hashes every blob of a model, or with NULL of the whole store. *problems_json: a list of sentences, empty when all is
 * well; the call is STRATA_CORRUPT when it is not. Freed with strata_free. */
STRATA_API strata_status strata_verify(const char * store, const char * model, strata_progress_fn progress, void * user,
                                       char ** problems_json);

#ifdef __cplusplus
}
#endif
#endif
