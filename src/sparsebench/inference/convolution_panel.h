/* One panel of a sparse convolution, for vectors of WIDTH floats; included by kernels.c once for each instruction set. */

#define VECTOR NAME(vector)
#define LOOSE NAME(loose)
#define INTEGERS NAME(integers)

/* Some numbers, often fewer than a vector: without a call, and never beyond the last. */
INLINE void NAME(copy)(float *to, const float *from, int64_t count)
{
    typedef float four __attribute__((vector_size(16), may_alias, aligned(4)));
    if (count >= WIDTH) {
        for (int64_t i = 0; i + WIDTH <= count; i += WIDTH) *(LOOSE *)(to + i) = *(const LOOSE *)(from + i);
        *(LOOSE *)(to + count - WIDTH) = *(const LOOSE *)(from + count - WIDTH);
    } else if (count >= 4) {
        for (int64_t i = 0; i + 4 <= count; i += 4) *(four *)(to + i) = *(const four *)(from + i);
        *(four *)(to + count - 4) = *(const four *)(from + count - 4);
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    }
}

INLINE void NAME(clear)(float *to, int64_t count)
{
    if (count >= WIDTH) memset(to, 0, (size_t)count * sizeof(float));
    else
        for (int64_t i = 0; i < count; ++i) to[i] = 0.0f;
}

/* Pixels that are neighbours in memory, or every second one: one channel after the other. */
static void NAME(pack_planes)(
    const struct convolution_work *work, const struct segment *list, const struct segment *end, float *panel)
{
    const struct convolution *p = work->convolution;
    const int64_t step = p->columns.stride;
    for (int64_t channel = 0; channel < p->inputs; ++channel, panel += work->channel_pitch) {
        const float *x = p->x + channel * p->x_planes.channel;
        int64_t filled = 0;
        for (const struct segment *s = list; s < end; filled = s->target + s->length, ++s) {
            NAME(clear)(panel + filled, s->target - filled);
            if (step == 1) NAME(copy)(panel + s->target, x + s->source, s->length);
            else if (step == 2)
                for (int64_t i = 0; i < s->length; ++i) panel[s->target + i] = x[s->source + 2 * i];
            else
                for (int64_t i = 0; i < s->length; ++i) panel[s->target + i] = x[s->source + i * step];
        }
        NAME(clear)(panel + filled, work->channel_pitch - filled);
    }
}

/* Channels that are neighbours in memory: the pixels of a panel are its columns, `zeros` those that are none. */
static void NAME(pack_channels)(
    const struct convolution_work *work, const struct segment *list, const struct segment *end, const float **column,
    const float *zeros, float *panel)
{
    const struct convolution *p = work->convolution;
    for (int64_t i = 0; i < work->channel_pitch; ++i) column[i] = zeros;
    for (const struct segment *s = list; s < end; ++s)
        for (int64_t i = 0; i < s->length; ++i)
            column[s->target + i] = p->x + s->source + i * p->columns.stride * p->x_planes.column;
    NAME(pack_transposed)(column, work->channel_pitch, p->inputs, panel, work->channel_pitch);
}

/* Entries [j, last) of one output row of a group, added to what is at `initial` if anything, to `out`; `bias` is NULL until all are
 * added. `vectors` and `steps` are constants where this is inlined; see sum_row. */
INLINE void NAME(convolve_row)(
    const struct convolution_work *work, int32_t j, int32_t last, const float *panel, const float *initial, float *out, const float *bias,
    const int vectors, const int steps)
{
    const struct convolution *p = work->convolution;
    const int64_t pitch = work->channel_pitch;
    VECTOR sums[MOST_VECTORS];
    for (int i = 0; i < vectors * steps; ++i) sums[i] = (VECTOR){0};
    if (initial)
        for (int v = 0; v < vectors; ++v) sums[v] = *(const LOOSE *)(initial + v * WIDTH);
    for (; j + steps <= last; j += steps)
        for (int u = 0; u < steps; ++u) {
            const float value = p->values[j + u];
            const int32_t entry = p->entries[j + u];
            const float *x = panel + (entry >> TAP_BITS) * pitch + work->taps[entry & (MOST_TAPS - 1)];
            for (int v = 0; v < vectors; ++v) sums[u * vectors + v] += value * *(const LOOSE *)(x + v * WIDTH);
        }
    for (; j < last; ++j) {
        const float value = p->values[j];
        const int32_t entry = p->entries[j];
        const float *x = panel + (entry >> TAP_BITS) * pitch + work->taps[entry & (MOST_TAPS - 1)];
        for (int v = 0; v < vectors; ++v) sums[v] += value * *(const LOOSE *)(x + v * WIDTH);
    }
    for (int v = 0; v < vectors; ++v) {
        VECTOR sum = sums[v];
        for (int u = 1; u < steps; ++u) sum += sums[u * vectors + v];
        if (bias) {
            sum += *bias;
            /* Zero where negative: a NaN stays one, as in torch. */
            if (p->rectify) sum = (VECTOR)((INTEGERS)sum & ~(sum < (VECTOR){0}));
        }
        *(LOOSE *)(out + v * WIDTH) = sum;
    }
}

/* Output rows [row, end) of a group, at most as many as are summed at a time; `added`, if any, and `out` have their rows `out_pitch`
 * apart. What the entries of a tile read of the panel stays in the first-level cache for all rows. */
static void NAME(convolve_rows)(
    const struct convolution_work *work, int64_t row, int64_t end, const float *panel, const float *added, float *out,
    int64_t out_pitch, int64_t vectors)
{
    static const float none = 0.0f;
    const struct convolution *p = work->convolution;
    const int64_t tiles = input_tiles(p);
    for (int64_t t = 0; t < tiles; ++t) {
        const int32_t *starts = p->starts + t * p->outputs;
        const float *initial = t > 0 ? out : added;
#define ROWS(count, steps) \
    case count: \
        for (int64_t r = row; r < end; ++r) { \
            const int64_t at = (r - row) * out_pitch; \
            const float *bias = t + 1 < tiles ? NULL : p->bias ? p->bias + r : &none; \
            NAME(convolve_row)( \
                work, starts[r], starts[r + 1], panel, initial ? initial + at : NULL, out + at, bias, count, steps); \
        } \
        break
        switch (vectors) {
            ROWS(1, 8);
            ROWS(2, 4);
            ROWS(3, 2);
            ROWS(4, 2);
            ROWS(5, 1);
            ROWS(6, 1);
            ROWS(7, 1);
            ROWS(8, 1);
        }
#undef ROWS
    }
}

/* Rows of a group that are not written in place: by way of a block of so many as are summed at a time. */
struct NAME(block) {
    float *numbers, *sink;
    const float *zeros;
    int64_t pitch;
    const struct segment *list, *end;
};

/* What is added to the rows, where the sums are to be found. */
static void NAME(fetch_added)(const struct convolution *p, const struct NAME(block) *block, int64_t row, int64_t rows)
{
    if (p->y_planes.column == 1) {
        for (int64_t r = 0; r < rows; ++r)
            for (const struct segment *s = block->list; s < block->end; ++s)
                NAME(copy)(block->numbers + r * block->pitch + s->target, p->added + (row + r) * p->y_planes.channel + s->source,
                           s->length);
        return;
    }
    const float *columns[MOST_GROUP];
    for (int64_t i = 0; i < block->pitch; ++i) columns[i] = block->zeros;
    for (const struct segment *s = block->list; s < block->end; ++s)
        for (int64_t i = 0; i < s->length; ++i) columns[s->target + i] = p->added + row + s->source + i * p->y_planes.column;
    NAME(pack_transposed)(columns, block->pitch, rows, block->numbers, block->pitch);
}

static void NAME(write_block)(const struct convolution *p, const struct NAME(block) *block, int64_t row, int64_t rows)
{
    if (p->y_planes.column == 1) {
        for (int64_t r = 0; r < rows; ++r)
            for (const struct segment *s = block->list; s < block->end; ++s)
                NAME(copy)(p->y + (row + r) * p->y_planes.channel + s->source, block->numbers + r * block->pitch + s->target,
                           s->length);
        return;
    }
    float *columns[MOST_GROUP];
    for (int64_t i = 0; i < block->pitch; ++i) columns[i] = block->sink;
    for (const struct segment *s = block->list; s < block->end; ++s)
        for (int64_t i = 0; i < s->length; ++i) columns[s->target + i] = p->y + row + s->source + i * p->y_planes.column;
    NAME(unpack_transposed)(block->numbers, block->pitch, rows, block->pitch, columns);
}

/* Output rows [row, end) of `vectors` vectors from output `begin` on; `panel` is where their shift by nothing is. */
static void NAME(convolve_group)(
    const struct convolution_work *work, int64_t row, int64_t end, int64_t begin, int64_t vectors, const float *panel,
    struct NAME(block) *block)
{
    const struct convolution *p = work->convolution;
    struct segment list[MOST_GROUP + 1];
    block->pitch = vectors * WIDTH;
    block->list = list;
    block->end = output_segments(work, begin, block->pitch, list);
    const int in_place = p->y_planes.column == 1 && list[0].length == block->pitch && block->end == list + 1;
    for (int64_t rows; row < end; row += rows) {
        rows = at_most(end - row, outputs_at_a_time(p));
        if (in_place) {
            const int64_t at = list[0].source + row * p->y_planes.channel;
            NAME(convolve_rows)(
                work, row, row + rows, panel, p->added ? p->added + at : NULL, p->y + at, p->y_planes.channel, vectors);
            continue;
        }
        if (p->added) NAME(fetch_added)(p, block, row, rows);
        NAME(convolve_rows)(work, row, row + rows, panel, p->added ? block->numbers : NULL, block->numbers, block->pitch, vectors);
        NAME(write_block)(p, block, row, rows);
    }
}

static void NAME(run_convolution)(const struct convolution_work *work, int64_t panel, int64_t part, float *scratch)
{
    const struct convolution *p = work->convolution;
    int64_t first = work->vectors * panel / work->panels, vectors = work->vectors * (panel + 1) / work->panels - first;
    int64_t begin = first * WIDTH, rows = outputs_at_a_time(p), zeros = at_least(p->inputs, rows);
    float *packed = scratch;
    struct NAME(block) block = {.numbers = packed + p->inputs * work->channel_pitch};
    block.sink = block.numbers + rows * MOST_GROUP;
    block.zeros = block.sink + rows;
    memset(block.sink + rows, 0, (size_t)zeros * sizeof(float));
    struct segment *list = (struct segment *)(block.sink + rows + (zeros + 1) / 2 * 2);
    struct segment *end = input_segments(work, begin + work->least, vectors * WIDTH + work->span, list);
    if (p->x_planes.column == 1) NAME(pack_planes)(work, list, end, packed);
    else NAME(pack_channels)(work, list, end, (const float **)(list + work->channel_pitch), block.zeros, packed);

    int64_t row = first_output(p, part, work->parts), stop = first_output(p, part + 1, work->parts);
    int64_t groups = (vectors + MOST_VECTORS - 1) / MOST_VECTORS;
    for (int64_t group = 0; group < groups; ++group) {
        int64_t at = vectors * group / groups, count = vectors * (group + 1) / groups - at;
        NAME(convolve_group)(work, row, stop, begin + at * WIDTH, count, packed + at * WIDTH, &block);
    }
}

#undef VECTOR
#undef LOOSE
#undef INTEGERS
