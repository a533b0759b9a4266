/* Sparse convolutions of images: where everything lies. Included by kernels.c before convolution_panel.h, which computes.
 *
 * Every input channel is copied, padded, into rows of one number after another, all images below each other, so that an element of
 * the kernel is one shift of such a row: out[q] += weight * row[q + shift]. Rows of the image are `pitch` apart: zeros to the right of
 * one are those to the left of the next. With a stride, the pixels that one element of the kernel meets are every second (third, ...)
 * one: each remainder is a row of its own, a phase. Outputs q that are no pixels are computed and not written.
 *
 * A panel is some neighbouring q, with as much to both sides as the shifts need: what a task copies to its scratch memory.
 */

/* Elements of a kernel are numbered in the low bits of an entry. */
#define TAP_BITS 8
#define MOST_TAPS (1 << TAP_BITS)
/* Of a row are at most so many vectors summed at a time. */
#define MOST_VECTORS 8
/* A group of vectors has at most so many numbers. */
#define MOST_GROUP (MOST_VECTORS * 16)
/* Outputs whose sums wait for the next tile: what these take is a small part of the second-level cache. */
#ifndef TILE_OUTPUTS
#define TILE_OUTPUTS 128
#endif

/* Distances in floats. */
struct planes {
    int64_t image, channel, row, column;
};

/* One dimension of the images: pixels before and after, and the kernel. */
struct axis {
    int64_t in, out, kernel, stride, padding, dilation;
};

struct convolution {
    int64_t outputs, inputs;
    /* Entries of output r that read the input channels [tile * t, tile * (t + 1)) are starts[t * outputs + r] up to the next of
     * starts: input channel << TAP_BITS | element of the kernel. */
    int64_t tile;
    const int32_t *starts, *entries;
    const float *values, *bias;
    int64_t rectify;
    /* `added`, NULL or laid out as y, is added before rectifying. */
    const float *x, *added;
    float *y;
    struct planes x_planes, y_planes;
    int64_t images;
    struct axis rows, columns;
};

/* What one dimension becomes in scratch memory. */
struct shifts {
    int64_t phases, least, most, pitch;
    /* Of each phase: its first pixel, and how many pixels it has. */
    int64_t first[MOST_TAPS], length[MOST_TAPS];
    /* Of each element of the kernel. */
    int64_t phase[MOST_TAPS], shift[MOST_TAPS];
};

/* `length` numbers from `source` in the image to `target` in scratch memory, or back. */
struct segment {
    int64_t source, target, length;
};

struct convolution_work {
    const struct convolution *convolution;
    void (*run)(const struct convolution_work *, int64_t panel, int64_t part, float *scratch);
    struct shifts rows, columns;
    int64_t total, vectors, panels, parts, next;
    /* Of all shifts, the least, and how far the greatest is from it. */
    int64_t least, span;
    int64_t phase_pitch, channel_pitch;
    int32_t taps[MOST_TAPS];
    int64_t scratch_bytes;
    int failed;
};

INLINE int64_t input_tiles(const struct convolution *p) { return (p->inputs + p->tile - 1) / p->tile; }

/* Outputs that are summed before they are written: of channels that are neighbours in memory, several lines of the cache. */
INLINE int64_t outputs_at_a_time(const struct convolution *p)
{
    return input_tiles(p) > 1 || p->y_planes.column != 1 ? TILE_OUTPUTS : ROW_BLOCK;
}

/* Part `part` of the outputs; in tiles as if all had as many entries. */
static int64_t first_output(const struct convolution *p, int64_t part, int64_t parts)
{
    if (input_tiles(p) == 1) return first_of_part(p->starts, p->outputs, 1, part, parts);
    return part >= parts ? p->outputs : p->outputs * part / parts / ROW_BLOCK * ROW_BLOCK;
}

INLINE int64_t floor_divided(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

static void find_shifts(struct shifts *s, const struct axis *a)
{
    s->phases = s->least = s->most = 0;
    for (int64_t k = 0; k < a->kernel; ++k) {
        int64_t at = k * a->dilation - a->padding, shift = floor_divided(at, a->stride), first = at - shift * a->stride, phase = 0;
        while (phase < s->phases && s->first[phase] != first) ++phase;
        if (phase == s->phases) s->first[s->phases++] = first;
        s->phase[k] = phase;
        s->shift[k] = shift;
        s->least = at_most(s->least, shift);
        s->most = at_least(s->most, shift);
    }
    s->pitch = a->out + s->most;
    for (int64_t phase = 0; phase < s->phases; ++phase) {
        int64_t length = a->in > s->first[phase] ? (a->in - s->first[phase] + a->stride - 1) / a->stride : 0;
        s->length[phase] = at_most(length, a->out + s->most);
        s->pitch = at_least(s->pitch, s->length[phase] - s->least);
    }
}

/* Appends the part of one image row, at `q` for so many pixels `step` apart, that lies in [begin, end); neighbours are joined. */
static struct segment *append_segment(
    struct segment *list, struct segment *last, int64_t begin, int64_t end, int64_t q, int64_t pixels, int64_t source, int64_t step)
{
    int64_t from = at_least(q, begin), to = at_most(q + pixels, end);
    if (from >= to) return last;
    struct segment made = {source + (from - q) * step, from - begin, to - from};
    if (last > list && step == 1 && last[-1].target + last[-1].length == made.target &&
        last[-1].source + last[-1].length == made.source) {
        last[-1].length += made.length;
        return last;
    }
    *last = made;
    return last + 1;
}

/* What of the input fills `length` numbers from q on in each phase; returns the end of the list. */
static struct segment *input_segments(const struct convolution_work *work, int64_t begin, int64_t length, struct segment *list)
{
    const struct convolution *p = work->convolution;
    struct segment *last = list;
    int64_t pitch = work->columns.pitch, end = begin + length;
    int64_t first = at_least(floor_divided(begin, pitch), 0);
    int64_t stop = at_most(floor_divided(end - 1, pitch) + 1, p->images * work->rows.pitch);
    for (int64_t row_phase = 0; row_phase < work->rows.phases; ++row_phase)
        for (int64_t column_phase = 0; column_phase < work->columns.phases; ++column_phase) {
            struct segment *here = last;
            for (int64_t r = first; r < stop; ++r) {
                int64_t image = r / work->rows.pitch, row = r % work->rows.pitch;
                if (row >= work->rows.length[row_phase]) continue;
                int64_t source = image * p->x_planes.image +
                                 (row * p->rows.stride + work->rows.first[row_phase]) * p->x_planes.row +
                                 work->columns.first[column_phase] * p->x_planes.column;
                last = append_segment(here, last, begin, end, r * pitch, work->columns.length[column_phase], source,
                                      p->columns.stride * p->x_planes.column);
            }
            for (int64_t phase = row_phase * work->columns.phases + column_phase; here < last; ++here)
                here->target += phase * work->phase_pitch;
        }
    return last;
}

/* Which of the outputs [begin, begin + length) are pixels, and where in the output they are; returns the end of the list. */
static struct segment *output_segments(const struct convolution_work *work, int64_t begin, int64_t length, struct segment *list)
{
    const struct convolution *p = work->convolution;
    struct segment *last = list;
    int64_t pitch = work->columns.pitch, end = at_most(begin + length, work->total);
    for (int64_t r = begin / pitch; r * pitch < end; ++r) {
        int64_t image = r / work->rows.pitch, row = r % work->rows.pitch;
        if (row < p->rows.out)
            last = append_segment(list, last, begin, end, r * pitch, p->columns.out,
                                  image * p->y_planes.image + row * p->y_planes.row, p->y_planes.column);
    }
    return last;
}
