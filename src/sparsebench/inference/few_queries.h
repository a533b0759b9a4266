/* Attention of some queries to keys and values that lie in memory row by row, as in decoding: where everything is. Included by
 * kernels.c. */

/* Distances in floats; features of a head are neighbours everywhere. */
struct places {
    int64_t sequence, head, position;
};

struct attention {
    int64_t sequences, heads, queries, keys, depth;
    const float *query, *key, *value;
    float *out;
    struct places query_places, key_places, value_places, out_places;
    double scale;
    const uint8_t *mask; /* or NULL: keys of sequence n that may be read are not 0 from mask + n * mask_stride on */
    int64_t mask_stride;
};

struct attention_work {
    const struct attention *attention;
    void (*run)(const struct attention *, int64_t sequence, float *weights);
    int64_t scratch_bytes, at_a_time, next;
    int failed;
};

static void take_sequences(void *argument)
{
    struct attention_work *work = argument;
    float *weights = scratch_of_thread(work->scratch_bytes);
    if (!weights) {
        __atomic_store_n(&work->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (;;) {
        const int64_t first = __atomic_fetch_add(&work->next, work->at_a_time, __ATOMIC_RELAXED);
        if (first >= work->attention->sequences) return;
        const int64_t end = at_most(first + work->at_a_time, work->attention->sequences);
        for (int64_t sequence = first; sequence < end; ++sequence) work->run(work->attention, sequence, weights);
    }
}
