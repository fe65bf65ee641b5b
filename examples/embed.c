/*
 * Prints how alike the texts are: the cosine of their embeddings, each with the first one.
 *
 *   embed MODEL TEXT TEXT...
 *
 * MODEL is an embedding model: a GGUF file, or NAME[:TAG] of the layer store.
 */
#include <stdio.h>
#include <stdlib.h>
#include <strata/strata.h>

static int fail(const char * what) {
    fprintf(stderr, "%s: %s\n", what, strata_last_error());
    return EXIT_FAILURE;
}

static int compare(strata_session * session, size_t size, char ** texts, int count) {
    float * first = malloc(size * sizeof(float));
    float * other = malloc(size * sizeof(float));
    int result = EXIT_SUCCESS;
    if (first == NULL || other == NULL) {
        fprintf(stderr, "out of memory\n");
        result = EXIT_FAILURE;
    } else if (strata_embed(session, texts[0], first, size) != STRATA_OK) {
        result = fail(texts[0]);
    }
    for (int i = 1; i < count && result == EXIT_SUCCESS; ++i) {
        if (strata_embed(session, texts[i], other, size) != STRATA_OK) {
            result = fail(texts[i]);
            break;
        }
        double cosine = 0; /* embeddings have length 1 */
        for (size_t k = 0; k < size; ++k) cosine += (double)first[k] * (double)other[k];
        printf("%7.4f  %s\n", cosine, texts[i]);
    }
    free(first);
    free(other);
    return result;
}

int main(int argc, char ** argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL TEXT TEXT...\n", argv[0]);
        return 2;
    }
    strata_model * model = NULL;
    if (strata_model_open(argv[1], NULL, &model) != STRATA_OK) return fail(argv[1]);

    strata_session_options options;
    STRATA_INIT(&options);
    options.embeddings = true;
    strata_session * session = NULL;
    int result = EXIT_FAILURE;
    if (strata_session_open(model, &options, &session) != STRATA_OK) {
        fail("session");
    } else {
        result = compare(session, (size_t)strata_model_embedding_size(model), argv + 2, argc - 2);
    }
    strata_session_close(session);
    strata_model_close(model);
    return result;
}
