/* One panel of a sparse product, for vectors of WIDTH floats; included by kernels.c once for each instruction set. */

typedef float NAME(vector) __attribute__((vector_size(4 * WIDTH), may_alias));
typedef float NAME(loose) __attribute__((vector_size(4 * WIDTH), may_alias, aligned(4)));
typedef int32_t NAME(integers) __attribute__((vector_size(4 * WIDTH)));
typedef uint32_t NAME(naturals) __attribute__((vector_size(4 * WIDTH)));
#define VECTOR NAME(vector)
#define LOOSE NAME(loose)
#define INTEGERS NAME(integers)

/* The first halves of two vectors dealt one by one, and the second ones. */
INLINE VECTOR NAME(deal_first)(VECTOR a, VECTOR b)
{
#if WIDTH == 4
    return SHUFFLE(a, b, INTEGERS, 0, 4, 1, 5);
#elif WIDTH == 8
    return SHUFFLE(a, b, INTEGERS, 0, 8, 1, 9, 2, 10, 3, 11);
#else
    return SHUFFLE(a, b, INTEGERS, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#endif
}

INLINE VECTOR NAME(deal_second)(VECTOR a, VECTOR b)
{
#if WIDTH == 4
    return SHUFFLE(a, b, INTEGERS, 2, 6, 3, 7);
#elif WIDTH == 8
    return SHUFFLE(a, b, INTEGERS, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    return SHUFFLE(a, b, INTEGERS, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#endif
}

/* Rows of a square of WIDTH x WIDTH become its columns: log2(WIDTH) times, row i and row i + WIDTH / 2 are dealt one by one. */
INLINE void NAME(transpose)(VECTOR *square)
{
    for (int round = 1; round < WIDTH; round *= 2) {
        VECTOR dealt[WIDTH];
        for (int i = 0; i < WIDTH / 2; ++i) {
            dealt[2 * i] = NAME(deal_first)(square[i], square[i + WIDTH / 2]);
            dealt[2 * i + 1] = NAME(deal_second)(square[i], square[i + WIDTH / 2]);
        }
        for (int i = 0; i < WIDTH; ++i) square[i] = dealt[i];
    }
}

/* Reads features that are neighbours in memory: from one pointer for each column to a row of the panel for each feature. */
static void NAME(pack_transposed)(const float *const *column, int64_t count, int64_t features, float *panel, int64_t pitch)
{
    for (int64_t n = 0; n < pitch; n += WIDTH) {
        int64_t here = at_most(count - n, WIDTH), f = 0;
        VECTOR square[WIDTH];
        struct ahead ahead = {column, n + WIDTH, at_most(n + 2 * WIDTH, count), 0, features};
        for (; f + WIDTH <= features; f += WIDTH) {
            fetch_ahead(&ahead, WIDTH);
            if (here == WIDTH)
                for (int i = 0; i < WIDTH; ++i) square[i] = *(const LOOSE *)(column[n + i] + f);
            else
                for (int i = 0; i < WIDTH; ++i) square[i] = i < here ? *(const LOOSE *)(column[n + i] + f) : (LOOSE){0};
            NAME(transpose)(square);
            for (int i = 0; i < WIDTH; ++i) *(VECTOR *)(panel + (f + i) * pitch + n) = square[i];
        }
        for (; f < features; ++f)
            for (int64_t i = 0; i < WIDTH; ++i) panel[f * pitch + n + i] = i < here ? column[n + i][f] : 0.0f;
    }
}

/* Writes output rows that are neighbours in memory: the other way round. */
static void NAME(unpack_transposed)(const float *block, int64_t pitch, int64_t rows, int64_t count, float *const *column)
{
    for (int64_t n = 0; n < count; n += WIDTH) {
        int64_t here = at_most(count - n, WIDTH), r = 0;
        VECTOR square[WIDTH];
        struct ahead ahead = {(const float *const *)column, n + WIDTH, at_most(n + 2 * WIDTH, count), 0, rows};
        for (; r + WIDTH <= rows; r += WIDTH) {
            fetch_ahead(&ahead, WIDTH);
            for (int i = 0; i < WIDTH; ++i) square[i] = *(const VECTOR *)(block + (r + i) * pitch + n);
            NAME(transpose)(square);
            for (int64_t i = 0; i < here; ++i) *(LOOSE *)(column[n + i] + r) = square[i];
        }
        for (; r < rows; ++r)
            for (int64_t i = 0; i < here; ++i) column[n + i][r] = block[r * pitch + n + i];
    }
}

/* Adds entries [j, last) of a row to its sums. `vectors` and `steps` are constants where this is inlined; `steps` entries are summed
 * apart from each other, because a sum cannot go on before the last addition to it is done. */
INLINE void NAME(add_entries)(
    const struct product *p, int32_t j, int32_t last, const float *panel, int64_t pitch, VECTOR *sums, const int vectors, const int steps)
{
    const int32_t *columns = p->columns;
    for (; j + steps <= last; j += steps)
        for (int u = 0; u < steps; ++u) {
            const float value = p->values[j + u], *x = panel + columns[j + u] * pitch;
            for (int v = 0; v < vectors; ++v) sums[u * vectors + v] += value * *(const LOOSE *)(x + v * WIDTH);
        }
    for (; j < last; ++j) {
        const float value = p->values[j], *x = panel + columns[j] * pitch;
        for (int v = 0; v < vectors; ++v) sums[v] += value * *(const LOOSE *)(x + v * WIDTH);
    }
    for (int u = 1; u < steps; ++u)
        for (int v = 0; v < vectors; ++v) sums[v] += sums[u * vectors + v];
}

/* Writes the sums of a row, whose bias is still missing. */
INLINE void NAME(finish_row)(const struct product *p, int64_t row, const VECTOR *sums, float *out, const int vectors)
{
    const float bias = p->bias ? p->bias[row] : 0.0f;
    for (int v = 0; v < vectors; ++v) {
        VECTOR sum = sums[v] + bias;
        /* Zero where negative: a NaN stays one, as in torch. */
        if (p->rectify) sum = (VECTOR)((INTEGERS)sum & ~(sum < (VECTOR){0}));
        *(LOOSE *)(out + v * WIDTH) = sum;
    }
}

/* One output row of the panel. */
INLINE void NAME(sum_row)(
    const struct product *p, int64_t row, const float *panel, int64_t pitch, float *out, const int vectors, const int steps)
{
    VECTOR sums[8];
    for (int i = 0; i < vectors * steps; ++i) sums[i] = (VECTOR){0};
    NAME(add_entries)(p, p->starts[row], p->starts[row + 1], panel, pitch, sums, vectors, steps);
    NAME(finish_row)(p, row, sums, out, vectors);
}

/* Rows [row, end) tile by tile; row is the first of a tile, and so is end, or it is the last of W. The part of the panel that the
 * entries of a tile read stays in the first-level cache for all of them, and the sums of the rows wait in the output. Two rows are
 * summed together, apart from each other. `vectors` is a constant where this is inlined. */
INLINE void NAME(sum_tiles)(
    const struct product *p, int64_t row, int64_t end, const float *panel, int64_t pitch, float *out, int64_t out_pitch, const int vectors)
{
    const int64_t across = tiles_across(p);
    const uint8_t *places = p->columns;
    for (; row < end; row += TILE_ROWS, out += TILE_ROWS * out_pitch)
        for (int64_t t = 0; t < across; ++t) {
            const int64_t first = (row / TILE_ROWS * across + t) * TILE_ROWS;
            const int32_t *steps = p->starts + first / 2, *rows = p->starts + tiled_rows(p) / 2 + 1 + first;
            const float *x = panel + t * TILE_COLUMNS * pitch;
            for (int64_t i = 0; i < at_most(end - row, TILE_ROWS); i += 2) {
                const int number = row + rows[i + 1] < p->rows ? 2 : 1; /* the last may have no second row */
                float *to[2] = {out + rows[i] * out_pitch, out + rows[number == 2 ? i + 1 : i] * out_pitch};
                VECTOR sums[2][4];
                for (int r = 0; r < 2; ++r)
                    for (int v = 0; v < vectors; ++v) sums[r][v] = t > 0 ? *(const LOOSE *)(to[r] + v * WIDTH) : (LOOSE){0};
                for (int32_t j = steps[i / 2]; j < steps[i / 2 + 1]; ++j) {
                    uint16_t both; /* one load for two places */
                    memcpy(&both, places + 2 * (int64_t)j, sizeof both);
                    const int64_t read[2] = {FIRST_BYTE(both) * pitch, SECOND_BYTE(both) * pitch};
                    for (int r = 0; r < 2; ++r) {
                        const float value = p->values[2 * (int64_t)j + r];
                        for (int v = 0; v < vectors; ++v) sums[r][v] += value * *(const LOOSE *)(x + read[r] + v * WIDTH);
                    }
                }
                for (int r = 0; r < number; ++r)
                    if (t + 1 == across) NAME(finish_row)(p, row + rows[i + r], sums[r], to[r], vectors);
                    else
                        for (int v = 0; v < vectors; ++v) *(LOOSE *)(to[r] + v * WIDTH) = sums[r][v];
            }
        }
}

#include "block_panel.h"

/* Output rows [row, end) of a panel, `pitch` floats apart in the panel and `out_pitch` in the output. */
static void NAME(sum_rows)(
    const struct product *p, int64_t row, int64_t end, const float *panel, int64_t pitch, float *out, int64_t out_pitch, int64_t vectors)
{
    if (p->block > 1) {
        NAME(sum_blocks)(p, row, end, panel, pitch, out, out_pitch, vectors);
        return;
    }
    if (p->is_tiled) {
        for (int64_t v = 0; v < vectors; v += 4)
            switch (at_most(vectors - v, 4)) {
#define TILES(count) \
    case count: NAME(sum_tiles)(p, row, end, panel + v * WIDTH, pitch, out + v * WIDTH, out_pitch, count); break
                TILES(1);
                TILES(2);
                TILES(3);
                TILES(4);
#undef TILES
            }
        return;
    }
#define ROWS(count, steps) \
    case count: \
        for (; row < end; ++row, out += out_pitch) NAME(sum_row)(p, row, panel, pitch, out, count, steps); \
        break
    switch (vectors) {
        ROWS(1, 8);
        ROWS(2, 4);
        ROWS(3, 2);
        ROWS(4, 2);
#if WIDTH < 16
        ROWS(5, 1);
        ROWS(6, 1);
        ROWS(7, 1);
        ROWS(8, 1);
#endif
    }
#undef ROWS
}

static void NAME(run_panel)(const struct product *p, int64_t panel, int64_t part, const struct work *work, float *scratch)
{
    int64_t first = work->vectors * panel / work->panels, vectors = work->vectors * (panel + 1) / work->panels - first;
    int64_t begin = first * WIDTH, pitch = vectors * WIDTH, count = at_most(p->images * p->positions - begin, pitch);
    const int64_t rows_at_a_time = rows_of_scratch(p);
    float *block = scratch, *packed = scratch + MOST_COLUMNS * rows_at_a_time;
    const float *x[MOST_COLUMNS];
    float *y[MOST_COLUMNS];
    for (int64_t n = 0; n < count; ++n) {
        int64_t image = (begin + n) / p->positions, position = (begin + n) % p->positions;
        x[n] = p->x + image * p->x_layout.image + position * p->x_layout.position;
        y[n] = p->y + image * p->y_layout.image + position * p->y_layout.position;
    }
    /* Columns up to here are of the first column's image. */
    int64_t same = at_most(count, p->positions - begin % p->positions);

    const float *source = packed;
    if (p->x_layout.position != 1) {
        NAME(pack_transposed)(x, count, p->features, packed, pitch);
    } else if (same == pitch && p->x_layout.feature == pitch) {
        source = x[0]; /* It is such a panel already. */
    } else {
        for (int64_t n = 0; n < count;) {
            int64_t length = at_most(count - n, p->positions - (begin + n) % p->positions);
            for (int64_t f = 0; f < p->features; ++f)
                memcpy(packed + f * pitch + n, x[n] + f * p->x_layout.feature, (size_t)length * sizeof(float));
            n += length;
        }
        if (count < pitch)
            for (int64_t f = 0; f < p->features; ++f)
                memset(packed + f * pitch + count, 0, (size_t)(pitch - count) * sizeof(float));
    }

    int64_t row = first_row(p, part, work->parts), end = first_row(p, part + 1, work->parts);
    if (p->y_layout.position == 1 && same == pitch) {
        NAME(sum_rows)(p, row, end, source, pitch, y[0] + row * p->y_layout.feature, p->y_layout.feature, vectors);
        return;
    }
    for (int64_t rows; row < end; row += rows) {
        rows = at_most(end, (row / rows_at_a_time + 1) * rows_at_a_time) - row;
        NAME(sum_rows)(p, row, row + rows, source, pitch, block, pitch, vectors);
        if (p->y_layout.position == 1) {
            for (int64_t n = 0; n < count;) {
                int64_t length = at_most(count - n, p->positions - (begin + n) % p->positions);
                for (int64_t r = 0; r < rows; ++r)
                    memcpy(y[n] + (row + r) * p->y_layout.feature, block + r * pitch, (size_t)length * sizeof(float));
                n += length;
                block += length;
            }
            block = scratch;
        } else {
            float *columns[MOST_COLUMNS];
            for (int64_t n = 0; n < count; ++n) columns[n] = y[n] + row;
            NAME(unpack_transposed)(block, pitch, rows, count, columns);
        }
    }
}

#undef VECTOR
#undef LOOSE
#undef INTEGERS
