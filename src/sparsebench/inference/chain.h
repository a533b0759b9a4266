/* Several products and what is between them, on columns that are independent of each other, or on sequences of them that are: a panel
 * passes through all steps before the next one begins, so that what is between two steps stays in the cache and is never turned
 * around. Included by kernels.c. */

enum { READ, WRITE, PRODUCT, NORMALIZE, ADD, RECTIFY, ATTEND };

/* One step. Matrices within a panel are said by their first feature there: `features` of them follow. */
struct step {
    int64_t kind, from, also, to, features;
    const struct product *product; /* PRODUCT: without x, y and their layouts */
    const float *gain, *shift;     /* NORMALIZE: for each feature, or NULL */
    double epsilon;
    float *memory; /* READ, WRITE: column n begins at memory + n * stride, its features are neighbours */
    int64_t stride;
    /* ATTEND: queries are `from`, keys `also`, values `third`; features of a head are neighbours */
    int64_t third, heads;
    double scale;
    const uint8_t *mask; /* or NULL: keys of sequence n that may be read are not 0 from mask + n * mask_stride on */
    int64_t mask_stride;
};

/* Columns of one panel. */
struct span {
    int64_t vectors, begin, count;
    int64_t length; /* of a sequence; 1 where columns are independent */
};

typedef void (*step_function)(const struct step *, float *panel, const struct span *, int64_t part, int64_t parts);

struct chain {
    const struct step *steps;
    step_function run;
    int64_t step_count, features, columns, width, length, panels, parts;
    int64_t unit, units; /* columns that stay together: a vector or a sequence */
    float *shared; /* scratch for all panels at once, where several threads work on one */
    int64_t next, done;
    int failed;
};

static struct span span_of(const struct chain *c, int64_t panel)
{
    const int64_t first = c->units * panel / c->panels, columns = (c->units * (panel + 1) / c->panels - first) * c->unit;
    const int64_t begin = first * c->unit;
    return (struct span){(columns + c->width - 1) / c->width, begin, at_most(c->columns - begin, columns), c->length};
}

static int64_t panel_bytes(const struct chain *c)
{
    const int64_t most = (c->units + c->panels - 1) / c->panels * c->unit;
    return c->features * ((most + c->width - 1) / c->width) * c->width * (int64_t)sizeof(float);
}

/* Each thread takes whole panels. */
static void take_panels(void *argument)
{
    struct chain *c = argument;
    float *memory = scratch_of_thread(panel_bytes(c));
    if (!memory) {
        __atomic_store_n(&c->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (;;) {
        int64_t panel = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
        if (panel >= c->panels) return;
        const struct span span = span_of(c, panel);
        for (int64_t s = 0; s < c->step_count; ++s) c->run(c->steps + s, memory, &span, 0, 1);
    }
}

/* Threads share panels: a step begins when all parts of the one before are done. However few threads come, those that wait do so for
 * parts that another one has taken. */
static void take_parts(void *argument)
{
    struct chain *c = argument;
    int64_t tasks = c->panels * c->parts;
    for (;;) {
        int64_t task = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED), step = task / tasks;
        if (step >= c->step_count) return;
        for (int tries = 0; __atomic_load_n(&c->done, __ATOMIC_ACQUIRE) < step * tasks;)
            if (tries < 1000) ++tries;
            else sched_yield();
        int64_t panel = task % tasks / c->parts, part = task % c->parts;
        const struct span span = span_of(c, panel);
        c->run(c->steps + step, c->shared + panel * panel_bytes(c) / (int64_t)sizeof(float), &span, part, c->parts);
        __atomic_fetch_add(&c->done, 1, __ATOMIC_RELEASE);
    }
}
