/* Several products and what is between them, on columns that are independent of each other: a panel passes through all steps before
 * the next one begins, so that what is between two steps stays in the cache and is never turned around. Included by kernels.c. */

enum { READ, WRITE, PRODUCT, NORMALIZE, ADD, RECTIFY };

/* One step. Matrices within a panel are said by their first feature there: `features` of them follow. */
struct step {
    int64_t kind, from, also, to, features;
    const struct product *product; /* PRODUCT: without x, y and their layouts */
    const float *gain, *shift;     /* NORMALIZE: for each feature, or NULL */
    double epsilon;
    float *memory; /* READ, WRITE: column n begins at memory + n * stride, its features are neighbours */
    int64_t stride;
};

typedef void (*step_function)(const struct step *, float *panel, int64_t vectors, int64_t begin, int64_t count, int64_t part, int64_t parts);

struct chain {
    const struct step *steps;
    step_function run;
    int64_t step_count, features, columns, width, vectors, panels, parts;
    float *shared; /* scratch for all panels at once, where several threads work on one */
    int64_t next, done;
    int failed;
};

static void run_on_panel(const struct chain *c, const struct step *step, float *memory, int64_t panel, int64_t part)
{
    int64_t first = c->vectors * panel / c->panels, vectors = c->vectors * (panel + 1) / c->panels - first, begin = first * c->width;
    c->run(step, memory, vectors, begin, at_most(c->columns - begin, vectors * c->width), part, c->parts);
}

static int64_t panel_bytes(const struct chain *c)
{
    int64_t most = (c->vectors + c->panels - 1) / c->panels;
    return c->features * most * c->width * (int64_t)sizeof(float);
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
        for (int64_t s = 0; s < c->step_count; ++s) run_on_panel(c, c->steps + s, memory, panel, 0);
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
        run_on_panel(c, c->steps + step, c->shared + panel * panel_bytes(c) / (int64_t)sizeof(float), panel, part);
        __atomic_fetch_add(&c->done, 1, __ATOMIC_RELEASE);
    }
}
