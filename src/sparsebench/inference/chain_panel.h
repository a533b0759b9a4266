/* The steps of a chain on one panel, for vectors of WIDTH floats; included by kernels.c once for each instruction set. */

#include "attention_panel.h"

/* Of a product at a time, as many as there are registers for. */
#define VECTORS_AT_ONCE (WIDTH == 16 ? 4 : 8)
#define VECTOR NAME(vector)
#define LOOSE NAME(loose)

/* Normalizes every column over its features: (x - mean) / sqrt(variance + epsilon), scaled and shifted feature by feature. */
static void NAME(normalize)(const struct step *s, const float *from, float *to, int64_t pitch)
{
    for (int64_t n = 0; n < pitch; n += WIDTH) {
        VECTOR mean = {0}, square = {0}, drift = {0};
        for (int64_t f = 0; f < s->features; ++f) mean += *(const VECTOR *)(from + f * pitch + n);
        mean /= (float)s->features;
        for (int64_t f = 0; f < s->features; ++f) {
            const VECTOR centred = *(const VECTOR *)(from + f * pitch + n) - mean;
            square += centred * centred;
            drift += centred;
        }
        /* A large mean is rounded while it is summed up; by how much the sum of what was centred tells. */
        drift /= (float)s->features;
        mean += drift;
        VECTOR scale = square / (float)s->features - drift * drift + (float)s->epsilon;
        for (int i = 0; i < WIDTH; ++i) scale[i] = 1.0f / __builtin_sqrtf(scale[i]);
        for (int64_t f = 0; f < s->features; ++f) {
            VECTOR y = (*(const VECTOR *)(from + f * pitch + n) - mean) * scale;
            if (s->gain) y *= s->gain[f];
            if (s->shift) y += s->shift[f];
            *(VECTOR *)(to + f * pitch + n) = y;
        }
    }
}

static void NAME(run_step)(const struct step *s, float *panel, const struct span *span, int64_t part, int64_t parts)
{
    const int64_t pitch = span->vectors * WIDTH, begin = span->begin, count = span->count;
    const float *from = panel + s->from * pitch;
    float *to = panel + s->to * pitch;
    if (s->kind == PRODUCT) {
        int64_t row = first_row(s->product, part, parts), end = first_row(s->product, part + 1, parts);
        for (int64_t v = 0; v < span->vectors; v += VECTORS_AT_ONCE)
            NAME(sum_rows)(
                s->product, row, end, from + v * WIDTH, pitch, to + row * pitch + v * WIDTH, pitch, at_most(span->vectors - v, VECTORS_AT_ONCE));
        return;
    }
    if (s->kind == ATTEND) {
        NAME(attend)(s, panel, pitch, count, span->length, begin / span->length, s->heads * part / parts, s->heads * (part + 1) / parts);
        return;
    }
    if (part != 0) return; /* What costs little is done by one. */
    if (s->kind == NORMALIZE) {
        NAME(normalize)(s, from, to, pitch);
    } else if (s->kind == ADD) {
        const float *also = panel + s->also * pitch;
        for (int64_t i = 0; i < s->features * pitch; i += WIDTH)
            *(VECTOR *)(to + i) = *(const VECTOR *)(from + i) + *(const VECTOR *)(also + i);
    } else if (s->kind == RECTIFY) {
        for (int64_t i = 0; i < s->features * pitch; i += WIDTH) {
            const VECTOR x = *(const VECTOR *)(from + i);
            *(VECTOR *)(to + i) = (VECTOR)((NAME(integers))x & ~(x < (VECTOR){0}));
        }
    } else if (s->kind == READ) {
        const float *columns[MOST_COLUMNS];
        for (int64_t n = 0; n < count; ++n) columns[n] = s->memory + (begin + n) * s->stride;
        NAME(pack_transposed)(columns, count, s->features, to, pitch);
    } else {
        float *columns[MOST_COLUMNS];
        for (int64_t n = 0; n < count; ++n) columns[n] = s->memory + (begin + n) * s->stride;
        NAME(unpack_transposed)(from, pitch, s->features, count, columns);
    }
}

#undef VECTORS_AT_ONCE
#undef VECTOR
#undef LOOSE
