/*
 * Opens a model, prints its layers, and streams the answer to a question.
 *
 *   generate MODEL [QUESTION]
 *
 * MODEL is a GGUF file, or NAME[:TAG] of a model in the layer store (strata import, strata pull).
 */
#include <stdio.h>
#include <stdlib.h>
#include <strata/strata.h>

static int fail(const char * what) {
    fprintf(stderr, "\n%s: %s\n", what, strata_last_error());
    return EXIT_FAILURE;
}

static bool on_progress(const char * phase, uint64_t done, uint64_t total, void * user) {
    int * shown = user;
    const int percent = total == 0 ? 0 : (int)(100.0 * (double)done / (double)total);
    if (percent / 10 > *shown / 10) fprintf(stderr, "%s %d %%\n", phase, percent);
    *shown = percent;
    return true; /* false would cancel the loading */
}

static bool on_token(const strata_token * token, void * user) {
    (void)user;
    fwrite(token->text, 1, token->text_bytes, stdout); /* whole characters only, may be none */
    fflush(stdout);
    return true; /* false would end the answer */
}

static int print_layers(const strata_model * model) {
    for (size_t i = 0; i < strata_model_layer_count(model); ++i) {
        strata_layer_info layer;
        if (strata_model_layer(model, i, &layer) != STRATA_OK) return fail("layer");
        if (layer.block >= 0) {
            printf("%-9s %3d", layer.kind, layer.block);
        } else {
            printf("%-9s    ", layer.kind);
        }
        printf("  %4u tensors  %9.3f MB  %.19s\n", layer.tensor_count, (double)layer.size_bytes / 1e6, layer.digest);
    }
    return EXIT_SUCCESS;
}

static int answer(const strata_model * model, strata_session * session, const char * question) {
    const strata_chat_message message = {"user", question};
    char * prompt = NULL;
    if (strata_apply_chat_template(model, &message, 1, &prompt) != STRATA_OK) return fail("chat template");

    strata_sampling sampling; /* greedy; see strata.h for temperature, top_p, seed, grammar, … */
    STRATA_INIT(&sampling);
    sampling.max_tokens = 64;
    strata_stats stats;
    STRATA_INIT(&stats);
    const strata_status status = strata_generate(session, prompt, &sampling, on_token, NULL, &stats);
    strata_free(prompt);
    if (status != STRATA_OK) return fail("generate");

    printf("\n\nprompt: %d tokens in %.0f ms, answer: %d tokens, %.1f tokens/s\n", stats.prompt_tokens, stats.prompt_ms,
           stats.generated_tokens, 1e3 * stats.generated_tokens / stats.generate_ms);
    return EXIT_SUCCESS;
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [QUESTION]\n", argv[0]);
        return 2;
    }
    const char * question = argc > 2 ? argv[2] : "Why is the sky blue?";
    printf("strata %s, engine build %s\n", strata_version(), strata_engine_build());

    strata_model_options options;
    STRATA_INIT(&options);
    int shown = 0;
    options.progress = on_progress;
    options.user = &shown;
    strata_model * model = NULL;
    if (strata_model_open(argv[1], &options, &model) != STRATA_OK) return fail(argv[1]);

    strata_session * session = NULL;
    int result = EXIT_FAILURE;
    if (print_layers(model) != EXIT_SUCCESS) {
        /* said already */
    } else if (strata_session_open(model, NULL, &session) != STRATA_OK) { /* NULL: default options */
        fail("session");
    } else {
        printf("\n> %s\n", question);
        result = answer(model, session, question);
    }
    strata_session_close(session);
    strata_model_close(model);
    return result;
}
