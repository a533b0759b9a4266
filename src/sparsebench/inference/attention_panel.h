/* Attention of every head within sequences whose columns are neighbours in a panel, for vectors of WIDTH floats; included by kernels.c
 * once for each instruction set. Queries are columns: scores, their softmax and what is read are vectors of queries, and both products
 * are sums of rows of the panel, weighed by single elements of it. */

#define VECTOR NAME(vector)
#define LOOSE NAME(loose)
#define INTEGERS NAME(integers)
/* Vectors of queries that pass through a head together, and keys or features summed at a time: sums fill half of the registers. */
#define QUERY_VECTORS (WIDTH == 16 ? 4 : 2)
#define SUMMED 4

/* sums[i][v] = for each k below `depth`, weights[i * row + k * column] times the vector of queries v of row k of x, added up. */
INLINE void NAME(weigh)(
    const float *weights, int64_t row, int64_t column, int64_t depth, const float *x, int64_t pitch, const int64_t *begins,
    VECTOR sums[SUMMED][QUERY_VECTORS], const int count, const int vectors)
{
    for (int i = 0; i < count; ++i)
        for (int v = 0; v < vectors; ++v) sums[i][v] = (VECTOR){0};
    for (int64_t k = 0; k < depth; ++k, x += pitch, weights += column)
        for (int i = 0; i < count; ++i)
            for (int v = 0; v < vectors; ++v) sums[i][v] += weights[i * row] * *(const LOOSE *)(x + begins[v]);
}

/* e^x for x of 0 or less, to a relative error of 2e-7: 2^n e^r with |r| <= ln 2 / 2. Below -87 it is zero; a NaN stays one. */
INLINE VECTOR NAME(exponential)(VECTOR x)
{
    const float shift = 12582912.0f; /* adding it rounds to the integer that the lowest bits then are */
    const INTEGERS tiny = x < (VECTOR){0} - 87.0f;
    const VECTOR n = x * 1.44269504f + shift, whole = n - shift;
    const VECTOR r = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    VECTOR y = r * 1.9875691e-4f + 1.3981999e-3f;
    y = y * r + 8.3334519e-3f;
    y = y * r + 4.1665795e-2f;
    y = y * r + 1.6666665e-1f;
    y = y * r + 5.0000001e-1f;
    y = y * r * r + r + 1.0f;
    /* The exponent of 2^n; other bits of n are shifted out. */
    const NAME(naturals) power = ((NAME(naturals))n << 23) + (127u << 23);
    return (VECTOR)((INTEGERS)(y * (VECTOR)power) & ~tiny);
}

/* The greater one of each two numbers; the second where the first is none. */
INLINE VECTOR NAME(greater)(VECTOR a, VECTOR b)
{
    const INTEGERS above = a > b;
    return (VECTOR)(((INTEGERS)a & above) | ((INTEGERS)b & ~above));
}

/* One head of one sequence: `vectors` vectors of its queries, which begin at `begins` in the rows of the panel. */
INLINE void NAME(attend_to)(
    const struct step *s, const float *queries, const float *keys, const float *values, const uint8_t *mask, int64_t length, float *to,
    int64_t pitch, int64_t first, const int64_t *begins, const int vectors)
{
    const int64_t depth = s->features / s->heads;
    VECTOR weights[MOST_COLUMNS][QUERY_VECTORS], most[QUERY_VECTORS], total[QUERY_VECTORS], sums[SUMMED][QUERY_VECTORS];
    for (int v = 0; v < vectors; ++v) most[v] = (VECTOR){0} - __builtin_inff(), total[v] = (VECTOR){0};
    for (int64_t j = 0; j < length;) {
        const int64_t count = length - j < SUMMED ? 1 : SUMMED;
        if (count == 1) NAME(weigh)(keys + j, 1, pitch, depth, queries, pitch, begins, sums, 1, vectors);
        else NAME(weigh)(keys + j, 1, pitch, depth, queries, pitch, begins, sums, SUMMED, vectors);
        for (int64_t i = 0; i < count; ++i, ++j) {
            if (mask && !mask[j]) continue;
            for (int v = 0; v < vectors; ++v) {
                const VECTOR score = sums[i][v] * (float)s->scale;
                most[v] = NAME(greater)(score, most[v]);
                weights[j][v] = score;
            }
        }
    }
    for (int64_t j = 0; j < length; ++j)
        for (int v = 0; v < vectors; ++v) {
            if (mask && !mask[j]) {
                weights[j][v] = (VECTOR){0};
                continue;
            }
            weights[j][v] = NAME(exponential)(weights[j][v] - most[v]);
            total[v] += weights[j][v];
        }
    /* Where no key may be read, zero, as in torch. */
    for (int v = 0; v < vectors; ++v) total[v] = (VECTOR)((INTEGERS)(1.0f / total[v]) & (total[v] != (VECTOR){0}));
    static const int64_t in_order[] = {0, WIDTH, 2 * WIDTH, 3 * WIDTH};
    for (int64_t f = 0; f < depth;) {
        const int64_t count = depth - f < SUMMED ? 1 : SUMMED;
        const float *row = values + f * pitch, *x = (const float *)weights;
        if (count == 1) NAME(weigh)(row, pitch, 1, length, x, QUERY_VECTORS * WIDTH, in_order, sums, 1, vectors);
        else NAME(weigh)(row, pitch, 1, length, x, QUERY_VECTORS * WIDTH, in_order, sums, SUMMED, vectors);
        for (int64_t i = 0; i < count; ++i, ++f)
            for (int v = 0; v < vectors; ++v) {
                const VECTOR read = sums[i][v] * total[v];
                float *out = to + f * pitch + begins[v];
                const int64_t low = first > begins[v] ? first - begins[v] : 0, high = at_most(first + length - begins[v], WIDTH);
                if (low == 0 && high == WIDTH) *(LOOSE *)out = read;
                else memcpy(out + low, (const float *)&read + low, (size_t)(high - low) * sizeof(float));
            }
    }
}

/* Heads [head, last) of the sequences of a panel, of which the first is number `sequence` of all. */
static void NAME(attend)(
    const struct step *s, float *panel, int64_t pitch, int64_t count, int64_t length, int64_t sequence, int64_t head, int64_t last)
{
    const int64_t depth = s->features / s->heads;
    for (int64_t first = 0; first < count; first += length, ++sequence) {
        const uint8_t *mask = s->mask ? s->mask + sequence * s->mask_stride : NULL;
        for (int64_t h = head; h < last; ++h) {
            const float *queries = panel + (s->from + h * depth) * pitch, *keys = panel + (s->also + h * depth) * pitch + first;
            const float *values = panel + (s->third + h * depth) * pitch + first;
            float *to = panel + (s->to + h * depth) * pitch;
            for (int64_t begin = 0; begin < length; begin += QUERY_VECTORS * WIDTH) {
                const int64_t vectors = at_most((length - begin + WIDTH - 1) / WIDTH, QUERY_VECTORS);
                int64_t begins[QUERY_VECTORS] = {0};
                /* No vector goes beyond the row: the last may compute queries once more, also of the sequence before. */
                for (int64_t v = 0; v < vectors; ++v) begins[v] = at_most(first + begin + v * WIDTH, pitch - WIDTH);
#define QUERIES(number) \
    case number: NAME(attend_to)(s, queries, keys, values, mask, length, to, pitch, first, begins, number); break
                switch (vectors) {
                    QUERIES(1);
                    QUERIES(2);
#if WIDTH == 16
                    QUERIES(3);
                    QUERIES(4);
#endif
                }
#undef QUERIES
            }
        }
    }
}

#undef QUERY_VECTORS
#undef SUMMED
#undef VECTOR
#undef LOOSE
#undef INTEGERS
