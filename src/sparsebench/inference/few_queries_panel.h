/* Attention of some queries, one after the other, for vectors of WIDTH floats; included by kernels.c once for each instruction set.
 * Scores are vectors of keys, what is read are vectors of features. */

#define VECTOR NAME(vector)
#define LOOSE NAME(loose)
#define INTEGERS NAME(integers)

/* Products of a query with WIDTH keys, of which `count` are there: the last stands for those that are not. */
INLINE VECTOR NAME(scores_of)(const float *query, const float *keys, int64_t pitch, int64_t count, int64_t depth)
{
    VECTOR square[WIDTH];
    for (int i = 0; i < WIDTH; ++i) square[i] = (VECTOR){0};
    for (int64_t f = 0; f < depth; f += WIDTH) {
        const VECTOR part = *(const LOOSE *)(query + f);
        for (int i = 0; i < WIDTH; ++i) square[i] += part * *(const LOOSE *)(keys + at_most(i, count - 1) * pitch + f);
    }
    /* The sum of each row: as rows are turned into columns, but half of them are left after each round. */
    for (int rows = WIDTH / 2; rows > 0; rows /= 2)
        for (int i = 0; i < rows; ++i)
            square[i] = NAME(deal_first)(square[i], square[i + rows]) + NAME(deal_second)(square[i], square[i + rows]);
    return square[0];
}

/* Scores become the weights of keys, times what is returned: one divided by their sum, zero where no key may be read. */
INLINE VECTOR NAME(weights_of)(float *scores, int64_t keys, const uint8_t *mask)
{
    const float none = -__builtin_inff();
    int64_t allowed = 0;
    for (int64_t j = 0; mask && j < keys; ++j) allowed += mask[j] != 0, scores[j] = mask[j] ? scores[j] : none;
    if (mask && allowed == 0) {
        memset(scores, 0, (size_t)keys * sizeof(float));
        return (VECTOR){0};
    }
    VECTOR most = (VECTOR){0} + none, total = {0};
    for (int64_t j = keys; j % WIDTH != 0; ++j) scores[j] = none;
    for (int64_t j = 0; j < keys; j += WIDTH) most = NAME(greater)(*(const LOOSE *)(scores + j), most);
    for (int round = 1; round < WIDTH; round *= 2)
        most = NAME(greater)(NAME(deal_first)(most, most), NAME(deal_second)(most, most));
    for (int64_t j = 0; j < keys; j += WIDTH) {
        const VECTOR weight = NAME(exponential)(*(const LOOSE *)(scores + j) - most);
        *(LOOSE *)(scores + j) = weight;
        total += weight;
    }
    for (int round = 1; round < WIDTH; round *= 2) total = NAME(deal_first)(total, total) + NAME(deal_second)(total, total);
    return 1.0f / total;
}

/* `vectors` vectors of features, read with weights; `steps` keys are summed apart from each other, see sum_row. */
INLINE void NAME(read_values)(
    const float *weights, VECTOR scale, const float *values, int64_t pitch, int64_t keys, float *out, const int vectors, const int steps)
{
    VECTOR sums[8];
    for (int i = 0; i < vectors * steps; ++i) sums[i] = (VECTOR){0};
    int64_t j = 0;
    for (; j + steps <= keys; j += steps)
        for (int u = 0; u < steps; ++u)
            for (int v = 0; v < vectors; ++v)
                sums[u * vectors + v] += weights[j + u] * *(const LOOSE *)(values + (j + u) * pitch + v * WIDTH);
    for (; j < keys; ++j)
        for (int v = 0; v < vectors; ++v) sums[v] += weights[j] * *(const LOOSE *)(values + j * pitch + v * WIDTH);
    for (int v = 0; v < vectors; ++v) {
        VECTOR sum = sums[v];
        for (int u = 1; u < steps; ++u) sum += sums[u * vectors + v];
        *(LOOSE *)(out + v * WIDTH) = sum * scale;
    }
}

/* All queries and heads of a sequence; `weights` is scratch memory for a number for each key, up to a whole vector. */
static void NAME(run_attention)(const struct attention *a, int64_t sequence, float *weights)
{
    const uint8_t *mask = a->mask ? a->mask + sequence * a->mask_stride : NULL;
    for (int64_t h = 0; h < a->heads; ++h) {
        const float *keys = a->key + sequence * a->key_places.sequence + h * a->key_places.head;
        const float *values = a->value + sequence * a->value_places.sequence + h * a->value_places.head;
        const int64_t key_pitch = a->key_places.position, value_pitch = a->value_places.position;
        for (int64_t q = 0; q < a->queries; ++q) {
            const struct places *from = &a->query_places, *to = &a->out_places;
            const float *query = a->query + sequence * from->sequence + h * from->head + q * from->position;
            float *out = a->out + sequence * to->sequence + h * to->head + q * to->position;
            for (int64_t j = 0; j < a->keys; j += WIDTH)
                *(LOOSE *)(weights + j) =
                    NAME(scores_of)(query, keys + j * key_pitch, key_pitch, at_most(a->keys - j, WIDTH), a->depth) * (float)a->scale;
            const VECTOR scale = NAME(weights_of)(weights, a->keys, mask);
            int64_t f = 0;
            for (; f + 4 * WIDTH <= a->depth; f += 4 * WIDTH)
                NAME(read_values)(weights, scale, values + f, value_pitch, a->keys, out + f, 4, 2);
            for (; f + 2 * WIDTH <= a->depth; f += 2 * WIDTH)
                NAME(read_values)(weights, scale, values + f, value_pitch, a->keys, out + f, 2, 4);
            for (; f < a->depth; f += WIDTH) NAME(read_values)(weights, scale, values + f, value_pitch, a->keys, out + f, 1, 8);
        }
    }
}

#undef VECTOR
#undef LOOSE
#undef INTEGERS
