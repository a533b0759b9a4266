/* Products with blocks of ROW_BLOCK rows; included by csr_panel.h for vectors of WIDTH floats. A value is used for all columns of a
 * vector and an element of the panel for all rows of a block, so that additions, not loads, set the pace. */

/* Rows of a block summed at a time: with one vector each they fill the registers. */
#define BLOCK_SUMS (WIDTH == 16 ? 16 : 8)

/* Rows [row, end) of a panel, as NAME(sum_rows); row is the first of a block. */
static void NAME(sum_blocks)(
    const struct product *p, int64_t row, int64_t end, const float *panel, int64_t pitch, float *out, int64_t out_pitch, int64_t vectors)
{
    const int32_t *columns = p->columns;
    for (; row < end; row += ROW_BLOCK, out += ROW_BLOCK * out_pitch) {
        const int32_t first = p->starts[row / ROW_BLOCK], last = p->starts[row / ROW_BLOCK + 1];
        for (int64_t begin = 0; begin < at_most(end - row, ROW_BLOCK); begin += BLOCK_SUMS)
            for (int64_t v = 0; v < vectors; ++v) {
                VECTOR sums[BLOCK_SUMS];
                for (int i = 0; i < BLOCK_SUMS; ++i) sums[i] = (VECTOR){0};
                for (int32_t j = first; j < last; ++j) {
                    const VECTOR x = *(const LOOSE *)(panel + columns[j] * pitch + v * WIDTH);
                    const float *values = p->values + (int64_t)j * ROW_BLOCK + begin;
                    for (int i = 0; i < BLOCK_SUMS; ++i) sums[i] += values[i] * x;
                }
                const int64_t rows = at_most(end - row - begin, BLOCK_SUMS);
                for (int i = 0; i < BLOCK_SUMS; ++i) {
                    if (i >= rows) break;
                    VECTOR sum = sums[i];
                    if (p->bias) sum += p->bias[row + begin + i];
                    if (p->rectify) sum = (VECTOR)((INTEGERS)sum & ~(sum < (VECTOR){0}));
                    *(LOOSE *)(out + (begin + i) * out_pitch + v * WIDTH) = sum;
                }
            }
    }
}

/* One block of outputs for a few columns, from the columns where they lie: a vector holds rows. `count` and `steps` are constants
 * where this is inlined; `steps` entries are summed apart from each other. */
INLINE void NAME(block_of_columns)(
    const struct product *p, int64_t row, const float *x, float *y, int64_t x_pitch, int64_t y_pitch, const int count, const int steps)
{
    enum { PARTS = ROW_BLOCK / WIDTH };
    const int32_t *columns = p->columns;
    VECTOR sums[8][PARTS];
    for (int i = 0; i < count * steps; ++i)
        for (int k = 0; k < PARTS; ++k) sums[i][k] = (VECTOR){0};
    int32_t j = p->starts[row / ROW_BLOCK], last = p->starts[row / ROW_BLOCK + 1];
    for (; j + steps <= last; j += steps)
        for (int u = 0; u < steps; ++u) {
            const float *values = p->values + (int64_t)(j + u) * ROW_BLOCK, *element = x + columns[j + u];
            for (int k = 0; k < PARTS; ++k) {
                const VECTOR weights = *(const LOOSE *)(values + k * WIDTH);
                for (int n = 0; n < count; ++n) sums[u * count + n][k] += weights * element[n * x_pitch];
            }
        }
    for (; j < last; ++j) {
        const float *values = p->values + (int64_t)j * ROW_BLOCK, *element = x + columns[j];
        for (int k = 0; k < PARTS; ++k) {
            const VECTOR weights = *(const LOOSE *)(values + k * WIDTH);
            for (int n = 0; n < count; ++n) sums[n][k] += weights * element[n * x_pitch];
        }
    }
    const int64_t rows = at_most(p->rows - row, ROW_BLOCK);
    for (int n = 0; n < count; ++n) {
        float out[ROW_BLOCK] __attribute__((aligned(ALIGNMENT)));
        for (int k = 0; k < PARTS; ++k) {
            VECTOR sum = sums[n][k];
            for (int u = 1; u < steps; ++u) sum += sums[u * count + n][k];
            *(VECTOR *)(out + k * WIDTH) = sum;
        }
        for (int64_t i = 0; i < rows; ++i) {
            float sum = out[i] + (p->bias ? p->bias[row + i] : 0.0f);
            y[n * y_pitch + row + i] = p->rectify && sum < 0 ? 0.0f : sum;
        }
    }
}

/* Few columns whose features, and those of the output, are neighbours: no panel. */
static void NAME(run_few_columns)(const struct product *p, int64_t panel, int64_t part, const struct work *work, float *scratch)
{
    (void)panel, (void)scratch;
    const int64_t end = first_row(p, part + 1, work->parts), columns = p->images * p->positions;
    const int64_t x_pitch = p->positions == 1 ? p->x_layout.image : p->x_layout.position;
    const int64_t y_pitch = p->positions == 1 ? p->y_layout.image : p->y_layout.position;
    for (int64_t row = first_row(p, part, work->parts); row < end; row += ROW_BLOCK)
        for (int64_t n = 0; n < columns;) {
            const float *x = p->x + n * x_pitch;
            float *y = p->y + n * y_pitch;
#define COLUMNS(count, steps) NAME(block_of_columns)(p, row, x, y, x_pitch, y_pitch, count, steps), n += count
#if WIDTH == 16
            if (columns - n >= 8) COLUMNS(8, 1);
            else
#endif
#if WIDTH >= 8
            if (columns - n >= 4) COLUMNS(4, WIDTH / 8);
            else
#endif
            if (columns - n >= 2) COLUMNS(2, WIDTH / 4);
            else COLUMNS(1, WIDTH / 4);
#undef COLUMNS
        }
}
#undef BLOCK_SUMS
