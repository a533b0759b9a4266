/* The entry to sparse convolutions; included by kernels.c after everything else. */

static void take_convolutions(void *argument)
{
    struct convolution_work *work = argument;
    float *scratch = scratch_of_thread(work->scratch_bytes);
    if (!scratch) {
        __atomic_store_n(&work->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (;;) {
        int64_t task = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (task >= work->panels * work->parts) return;
        work->run(work, task / work->parts, task % work->parts, scratch);
    }
}

/* How many vectors a panel has at most. */
static int64_t panel_vectors(const struct convolution_work *work, int64_t width)
{
    /* What is copied twice, at both ends of a panel, is to be a small part of it, */
    int64_t wanted = (4 * work->span / width + MOST_VECTORS - 1) / MOST_VECTORS * MOST_VECTORS;
    /* and all of it is to fit the cache, unless too few vectors would be left for what is copied with them. */
    int64_t channel = PANEL_BYTES / (int64_t)sizeof(float) / (work->convolution->inputs * work->rows.phases * work->columns.phases);
    int64_t most = at_least((channel - work->span) / width, at_least(work->span / width, MOST_VECTORS / 2));
    return at_most(at_least(wanted, MOST_VECTORS), most);
}

/* Y = W * X + b + added, each output channel the sum over its entries of shifted input channels.
 *
 * instruction_set, threads, parallel: as for sparsebench_csr_product.
 * In x_planes and in y_planes, column or channel must be 1; y must not overlap x, but may be `added`. The kernel has at most MOST_TAPS
 * elements.
 * Returns 0, or 1 where memory for scratch was not to be had (y is then undefined).
 */
int sparsebench_convolution(const struct convolution *p, int instruction_set, int threads, parallel_function parallel)
{
    if (p->outputs == 0 || p->images * p->rows.out * p->columns.out == 0) return 0;
    if (!parallel || threads < 1) threads = 1;
    struct convolution_work work = {.convolution = p};
    find_shifts(&work.rows, &p->rows);
    find_shifts(&work.columns, &p->columns);
    int64_t pitch = work.columns.pitch;
    work.total = ((p->images - 1) * work.rows.pitch + p->rows.out - 1) * pitch + p->columns.out;
    work.least = work.rows.least * pitch + work.columns.least;
    work.span = (work.rows.most - work.rows.least) * pitch + work.columns.most - work.columns.least;

    while (instruction_set > GENERIC && work.total <= widths[instruction_set] / 2) --instruction_set;
    int64_t width = widths[instruction_set];
    work.vectors = (work.total + width - 1) / width;
    if ((p->starts[input_tiles(p) * p->outputs] + 4 * p->outputs) * (1 + work.vectors) < SERIAL_LOADS) threads = 1;
    int64_t most = panel_vectors(&work, width);
    work.panels = (work.vectors + most - 1) / most;
    /* A multiple of the threads, where that leaves each enough vectors; otherwise they share the outputs of a panel. */
    if (work.vectors >= threads * MOST_VECTORS / 2 || work.panels > threads)
        work.panels = at_most((work.panels + threads - 1) / threads * threads, work.vectors);
    work.parts = at_most((threads + work.panels - 1) / work.panels, (p->outputs + ROW_BLOCK - 1) / ROW_BLOCK);

    int64_t longest = (work.vectors + work.panels - 1) / work.panels * width + work.span;
    work.phase_pitch = (longest + width - 1) / width * width;
    work.channel_pitch = work.rows.phases * work.columns.phases * work.phase_pitch;
    /* Channels an even number of lines of the cache apart would share few of its sets. */
    if (work.channel_pitch % 32 == 0 && work.span > 0) work.channel_pitch += 16;
    for (int64_t row = 0, tap = 0; row < p->rows.kernel; ++row)
        for (int64_t column = 0; column < p->columns.kernel; ++column, ++tap)
            work.taps[tap] = (int32_t)((work.rows.phase[row] * work.columns.phases + work.columns.phase[column]) * work.phase_pitch +
                                       work.rows.shift[row] * pitch + work.columns.shift[column] - work.least);
    const int64_t rows = outputs_at_a_time(p), numbers = p->inputs * work.channel_pitch + rows * MOST_GROUP + rows + at_least(p->inputs, rows) + 1;
    work.scratch_bytes = numbers * (int64_t)sizeof(float) +
                         work.channel_pitch * (int64_t)(sizeof(struct segment) + sizeof(float *));
    work.run = CHOICE(run_convolution, instruction_set);
    threads = (int)at_most(threads, work.panels * work.parts);
    if (threads > 1) parallel(take_convolutions, &work, (unsigned)threads, 0);
    else take_convolutions(&work);
    return work.failed;
}
