/* Sparse times dense on the CPU: Y = W X + b, optionally rectified, float32. Plain C ABI, no Python, no torch, no OpenMP headers.
 *
 * W is in compressed rows: the entries of row r are values[starts[r] .. starts[r+1]) in columns[...]. Or it is in compressed rows of
 * blocks: ROW_BLOCK rows of W are one row there, and an entry is ROW_BLOCK values of one column. Or it is in tiles of TILE_ROWS x
 * TILE_COLUMNS, one row of tiles after the other. Rows of a tile come in pairs of about as many entries, by how many these are, so that
 * a processor can foresee where they end; rows that W does not have are last. An entry of one row of a pair is followed by one of the
 * other, or by a zero where that has no more. starts[i] says how many entries the rows of pairs before pair i have each, for all pairs
 * and once more; then it has TILE_ROWS elements for each tile that say which rows of the tile these are. columns has one byte for each
 * entry: its place in the tile.
 *
 * X has a row for each feature and a column for each example or pixel; where each element lies is said by strides, so that batches of
 * vectors [batch][features], feature-major matrices and images in either memory format are all read and written in place.
 *
 * How: columns are cut into panels of some vectors. A panel is copied to scratch memory, features one after the other, whatever the
 * layout was; then every output row of it is summed up in registers. Elements of a panel that lie beyond the last column are zero, so
 * that remainders run at full speed. Panels, and where these are few parts of the rows, are the tasks that threads take.
 *
 * csr_panel.h (compressed rows), block_panel.h (blocks) and chain_panel.h (several products and what is between them, attention
 * included, panel by panel) are compiled once for each instruction set, as are convolution_panel.h and few_queries_panel.h; which one
 * runs is chosen by the caller among those that sparsebench_instruction_sets reports.
 */
#if !defined(__GNUC__)
#error "needs the vector extensions of GCC or Clang"
#endif

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* A panel has at most so many columns, and output rows are rearranged so many at a time. */
#define MOST_COLUMNS 64
#define ROW_BLOCK 16
/* Features of a panel take at most so many bytes where more than one vector fits: three quarters of a usual second-level cache. */
#ifndef PANEL_BYTES
#define PANEL_BYTES (768 * 1024)
#endif
/* What so many features of the widest panel take fits a first-level cache and leaves room there. Rows: a multiple of ROW_BLOCK. */
#ifndef TILE_ROWS
#define TILE_ROWS 256
#define TILE_COLUMNS 128
#endif
/* In the order in which they are in memory. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define FIRST_BYTE(both) ((both) >> 8)
#define SECOND_BYTE(both) ((both)&255)
#else
#define FIRST_BYTE(both) ((both)&255)
#define SECOND_BYTE(both) ((both) >> 8)
#endif
#define ALIGNMENT 64
/* With blocks, so many columns or fewer are multiplied where they lie. */
#define FEW_COLUMNS 8
/* Below so many loads, some twenty microseconds of work, waking a second thread costs more than it brings. */
#ifndef SERIAL_LOADS
#define SERIAL_LOADS (1 << 16)
#endif

#if defined(__clang__)
#define SHUFFLE(a, b, mask_type, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, mask_type, ...) __builtin_shuffle(a, b, (mask_type){__VA_ARGS__})
#endif
#define INLINE static inline __attribute__((always_inline))

/* GOMP_parallel of the OpenMP runtime that torch has loaded: the same threads work for both, and never more than torch's number. */
typedef void (*parallel_function)(void (*)(void *), void *, unsigned, unsigned);

/* Where elements of a dense matrix lie, in floats. Column n is position n % positions of image n / positions. */
struct layout {
    int64_t feature, image, position;
};

struct product {
    int64_t rows, features;
    const int32_t *starts;
    const void *columns; /* uint8_t in tiles, int32_t otherwise */
    const float *values, *bias;
    int64_t rectify;
    const float *x;
    float *y;
    struct layout x_layout, y_layout;
    int64_t images, positions;
    int64_t block; /* rows of W in one row of `starts`: 1 or ROW_BLOCK; an entry has as many values, zero where W has no more rows */
    int64_t is_tiled; /* `block` is 1 then */
};

struct work {
    const struct product *product;
    void (*run)(const struct product *, int64_t panel, int64_t part, const struct work *, float *scratch);
    int64_t vectors, panels, parts, scratch_bytes;
    int64_t next;
    int failed;
};

INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows of `starts`. */
INLINE int64_t compressed_rows(const struct product *p) { return (p->rows + p->block - 1) / p->block; }

INLINE int64_t tiles_across(const struct product *p) { return (p->features + TILE_COLUMNS - 1) / TILE_COLUMNS; }

/* Rows of all tiles. */
INLINE int64_t tiled_rows(const struct product *p) { return (p->rows + TILE_ROWS - 1) / TILE_ROWS * tiles_across(p) * TILE_ROWS; }

/* Output rows that are summed before they are rearranged. */
INLINE int64_t rows_of_scratch(const struct product *p) { return p->is_tiled ? TILE_ROWS : ROW_BLOCK; }

/* Part `part` of the rows, such that all parts have about as many entries. */
static int64_t first_of_part(const int32_t *starts, int64_t rows, int64_t block, int64_t part, int64_t parts)
{
    if (part <= 0) return 0;
    if (part >= parts) return rows;
    /* A row costs about as much as four entries besides its own. */
    int64_t in_starts = (rows + block - 1) / block, all = starts[in_starts] + 4 * in_starts, wanted = all * part / parts;
    int64_t low = 0, high = in_starts;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (starts[middle] + 4 * middle < wanted) low = middle + 1;
        else high = middle;
    }
    /* Whole blocks, so that no two threads write to one line of the cache. */
    return at_most((low * block + ROW_BLOCK - 1) / ROW_BLOCK * ROW_BLOCK, rows);
}

/* Entries of all rows, zeros that pairs are filled up with included. */
INLINE int64_t entries(const struct product *p)
{
    return p->is_tiled ? 2 * (int64_t)p->starts[tiled_rows(p) / 2] : p->starts[compressed_rows(p)];
}

static int64_t first_row(const struct product *p, int64_t part, int64_t parts)
{
    if (p->is_tiled) /* Whole tiles, as if all rows had as many entries. */
        return part >= parts ? p->rows : (p->rows * part / parts + TILE_ROWS / 2) / TILE_ROWS * TILE_ROWS;
    return first_of_part(p->starts, p->rows, p->block, part, parts);
}

/* Of each entry its values, and what they are multiplied by. */
static int64_t loads(const struct product *p, int64_t vectors)
{
    return (entries(p) + 4 * compressed_rows(p)) * (p->block + vectors);
}

/* Scratch memory stays with its thread: new memory for every call would cost page faults. */
struct scratch {
    void *memory;
    int64_t bytes;
};
static pthread_key_t scratch_key;
static pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *kept)
{
    free(((struct scratch *)kept)->memory);
    free(kept);
}

static void make_scratch_key(void) { pthread_key_create(&scratch_key, free_scratch); }

static float *scratch_of_thread(int64_t bytes)
{
    pthread_once(&scratch_once, make_scratch_key);
    struct scratch *kept = pthread_getspecific(scratch_key);
    if (!kept) {
        kept = calloc(1, sizeof *kept);
        if (!kept || pthread_setspecific(scratch_key, kept)) {
            free(kept);
            return NULL;
        }
    }
    if (kept->bytes < bytes) {
        free(kept->memory);
        kept->bytes = 0;
        bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        kept->memory = aligned_alloc(ALIGNMENT, (size_t)bytes);
        if (!kept->memory) return NULL;
        kept->bytes = bytes;
    }
    return kept->memory;
}

static void take_tasks(void *argument)
{
    struct work *work = argument;
    float *scratch = scratch_of_thread(work->scratch_bytes);
    if (!scratch) {
        __atomic_store_n(&work->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (;;) {
        int64_t task = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (task >= work->panels * work->parts) return;
        work->run(work->product, task / work->parts, task % work->parts, work, scratch);
    }
}

/* One column whose features are neighbours: no panel, entries are summed one by one. */
static void run_vector(const struct product *p, int64_t panel, int64_t part, const struct work *work, float *scratch)
{
    (void)panel, (void)scratch;
    int64_t end = first_row(p, part + 1, work->parts);
    const float *x = p->x;
    const int32_t *columns = p->columns;
    for (int64_t row = first_row(p, part, work->parts); row < end; ++row) {
        float sums[4] = {0, 0, 0, 0};
        int32_t j = p->starts[row], last = p->starts[row + 1];
        for (; j + 4 <= last; j += 4)
            for (int u = 0; u < 4; ++u) sums[u] += p->values[j + u] * x[columns[j + u]];
        for (; j < last; ++j) sums[0] += p->values[j] * x[columns[j]];
        float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        if (p->bias) sum += p->bias[row];
        if (p->rectify && sum < 0) sum = 0;
        p->y[row * p->y_layout.feature] = sum;
    }
}

/* Columns of `length` neighbouring numbers each that are wanted soon, and how far they were asked for. */
struct ahead {
    const float *const *columns;
    int64_t next, end, at, length;
};

/* Asks memory for some more lines of the cache, one column after the other: what is asked for in order comes faster than what is read
 * here and there. */
INLINE void fetch_ahead(struct ahead *a, int64_t lines)
{
    for (; lines > 0 && a->next < a->end; --lines) {
        __builtin_prefetch(a->columns[a->next] + a->at);
        a->at += ALIGNMENT / (int64_t)sizeof(float);
        if (a->at >= a->length) a->at = 0, ++a->next;
    }
}

#include "chain.h"
#include "convolution.h"
#include "few_queries.h"

/* The same code for each instruction set. Registers decide how many vectors of a row are summed at a time. */
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(name) JOIN(name, SUFFIX)

#define SUFFIX _generic
#define WIDTH 4
#include "csr_panel.h"
#include "chain_panel.h"
#include "convolution_panel.h"
#include "few_queries_panel.h"
#undef SUFFIX
#undef WIDTH

#if defined(__x86_64__) || defined(__i386__)
#define HAS_X86 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define SUFFIX _avx2
#define WIDTH 8
#include "csr_panel.h"
#include "chain_panel.h"
#include "convolution_panel.h"
#include "few_queries_panel.h"
#undef SUFFIX
#undef WIDTH
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define SUFFIX _avx512
#define WIDTH 16
#include "csr_panel.h"
#include "chain_panel.h"
#include "convolution_panel.h"
#include "few_queries_panel.h"
#undef SUFFIX
#undef WIDTH
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

/* Of the functions' arguments: a library that was built from another revision must not be called. */
int sparsebench_kernels_revision(void) { return 6; }

enum { GENERIC, AVX2, AVX512 };
static const int64_t widths[] = {4, 8, 16};
#ifdef HAS_X86
#define CHOICE(name, set) ((set) == AVX512 ? name##_avx512 : (set) == AVX2 ? name##_avx2 : name##_generic)
#else
#define CHOICE(name, set) ((void)(set), name##_generic)
#endif

/* Bits of what this processor can run: 1 generic, 2 AVX2 with FMA, 4 AVX-512. */
int sparsebench_instruction_sets(void)
{
    int sets = 1 << GENERIC;
#ifdef HAS_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        sets |= 1 << AVX2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
            sets |= 1 << AVX512;
    }
#endif
    return sets;
}

/* Y = W X + b.
 *
 * instruction_set: one that sparsebench_instruction_sets has; a narrower one is taken where the columns do not fill its vectors.
 * threads: at most so many; parallel may be NULL, then one.
 * In each layout, position or feature must be 1; y must not overlap x.
 * Returns 0, or 1 where memory for scratch was not to be had (y is then undefined).
 */
int sparsebench_csr_product(const struct product *p, int instruction_set, int threads, parallel_function parallel)
{
    int64_t columns = p->images * p->positions;
    if (p->rows == 0 || columns == 0) return 0;
    if (!parallel || threads < 1) threads = 1;
    struct work work = {.product = p, .panels = 1, .vectors = 1, .scratch_bytes = ALIGNMENT, .run = run_vector};
    int64_t width = 1;
    const int few = p->block > 1 && columns <= FEW_COLUMNS && (p->images == 1 || p->positions == 1);
    if (few && p->x_layout.feature == 1 && p->y_layout.feature == 1) {
        work.run = CHOICE(run_few_columns, instruction_set);
    } else if (columns > 1 || p->block > 1 || p->is_tiled || p->x_layout.feature != 1) {
        while (instruction_set > GENERIC && columns <= widths[instruction_set] / 2) --instruction_set;
        width = widths[instruction_set];
        work.vectors = (columns + width - 1) / width;
    }
    if (loads(p, work.vectors) < SERIAL_LOADS) threads = 1;
    if (width > 1) {
        int64_t most = MOST_COLUMNS / width;
        if (width == 4) most /= 2; /* sixteen registers of four */
        while (most > 1 && p->features * most * width * (int64_t)sizeof(float) > PANEL_BYTES) most /= 2;
        work.panels = (work.vectors + most - 1) / most;
        /* A multiple of the threads, where there are enough vectors: nobody waits for the last panel. */
        if (work.panels > threads) work.panels = at_most((work.panels + threads - 1) / threads * threads, work.vectors);
        work.scratch_bytes = (p->features * most * width + MOST_COLUMNS * rows_of_scratch(p)) * (int64_t)sizeof(float);
        work.run = CHOICE(run_panel, instruction_set);
    }
    work.parts = at_most((threads + work.panels - 1) / work.panels, (p->rows + ROW_BLOCK - 1) / ROW_BLOCK);
    threads = (int)at_most(threads, work.panels * work.parts);
    if (threads > 1) parallel(take_tasks, &work, (unsigned)threads, 0);
    else take_tasks(&work);
    return work.failed;
}

/* Runs steps on all columns.
 *
 * features: of a panel, all matrices in it together. length: columns of a sequence, 1 where all columns are independent; at most
 * MOST_COLUMNS. Other arguments and the result as for sparsebench_csr_product; what is written must not overlap what is read.
 */
int sparsebench_chain(
    const struct step *steps, int64_t step_count, int64_t features, int64_t columns, int64_t length, int instruction_set, int threads,
    parallel_function parallel)
{
    if (columns == 0 || step_count == 0) return 0;
    if (!parallel || threads < 1) threads = 1;
    while (instruction_set > GENERIC && columns <= widths[instruction_set] / 2) --instruction_set;
    const int64_t width = widths[instruction_set], unit = length > 1 ? length : width;
    int64_t most = MOST_COLUMNS, all = 0;
    if (width == 4 && length == 1) most /= 2; /* sixteen registers of four */
    while (most > width && features * most * (int64_t)sizeof(float) > PANEL_BYTES) most /= 2;
    struct chain c = {.steps = steps, .step_count = step_count, .features = features, .columns = columns, .width = width};
    c.length = length, c.unit = unit, c.units = (columns + unit - 1) / unit;
    const int64_t together = most < unit ? 1 : most / unit;
    c.panels = (c.units + together - 1) / together;
    for (int64_t s = 0; s < step_count; ++s)
        if (steps[s].kind == PRODUCT) all += loads(steps[s].product, (columns + width - 1) / width);
    if (all < SERIAL_LOADS) threads = 1;
    c.panels = at_most((c.panels + threads - 1) / threads * threads, c.units);
    c.parts = c.panels < threads ? (threads + c.panels - 1) / c.panels : 1;
    c.run = CHOICE(run_step, instruction_set);
    void (*take)(void *) = take_panels;
    if (c.parts > 1) {
        c.shared = scratch_of_thread(c.panels * panel_bytes(&c));
        if (!c.shared) return 1;
        take = take_parts;
    }
    if (threads > 1) parallel(take, &c, (unsigned)threads, 0);
    else take(&c);
    return c.failed;
}

#include "convolution_call.h"
#include "few_queries_call.h"
