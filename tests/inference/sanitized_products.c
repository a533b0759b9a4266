/* Random products and convolutions against their definition, in memory of exactly the size needed: built with sanitizers by
 * test_sanitized_kernels.py, any read or write out of bounds ends the program. */
#define SERIAL_LOADS 1000 /* two threads for small products too */
#define TILE_ROWS 32      /* and several tiles in them */
#define TILE_COLUMNS 24
#define TILE_OUTPUTS 16
#include "kernels.c"

#include <math.h>
#include <stdio.h>

static uint64_t state = 1;

static int64_t drawn(int64_t least, int64_t most)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return least + (int64_t)((state >> 33) % (uint64_t)(most - least + 1));
}

static void in_two_threads(void (*function)(void *), void *argument, unsigned threads, unsigned flags)
{
    (void)threads, (void)flags;
    pthread_t other;
    pthread_create(&other, NULL, (void *(*)(void *))(void *)function, argument);
    function(argument);
    pthread_join(other, NULL);
}

static float *numbers(int64_t count)
{
    float *made = malloc((size_t)count * sizeof(float));
    for (int64_t i = 0; i < count; ++i) made[i] = (float)drawn(-8, 8) / 4;
    return made;
}

static struct layout layout(int64_t features, int64_t positions, int features_last)
{
    if (features_last && positions > 1 && features > 1) return (struct layout){1, features * positions, features};
    if (positions == 1) return (struct layout){1, features, 0};
    return (struct layout){positions, features * positions, 1};
}

/* A matrix [rows][features] in compressed rows of blocks. */
static struct product compressed(const float *dense, int64_t rows, int64_t features, int64_t block)
{
    int64_t compressed = (rows + block - 1) / block, entries = 0;
    int32_t *starts = malloc((size_t)(compressed + 1) * sizeof(int32_t)), *columns = malloc((size_t)(compressed * features) * sizeof(int32_t));
    float *values = calloc((size_t)(compressed * features * block), sizeof(float));
    for (int64_t r = 0; r < compressed; ++r) {
        starts[r] = (int32_t)entries;
        for (int64_t f = 0; f < features; ++f) {
            int kept = 0;
            for (int64_t i = r * block; i < at_most((r + 1) * block, rows); ++i) kept |= dense[i * features + f] != 0;
            if (!kept) continue;
            for (int64_t i = r * block; i < at_most((r + 1) * block, rows); ++i)
                values[entries * block + i % block] = dense[i * features + f];
            columns[entries++] = (int32_t)f;
        }
    }
    starts[compressed] = (int32_t)entries;
    /* Of exactly the size needed. */
    columns = realloc(columns, (size_t)(entries + !entries) * sizeof(int32_t));
    values = realloc(values, (size_t)(entries * block + !entries) * sizeof(float));
    return (struct product){.rows = rows, .features = features, .starts = starts, .columns = columns, .values = values, .block = block};
}

/* A matrix [rows][features] in tiles. */
static struct product tiled(const float *dense, int64_t rows, int64_t features)
{
    struct product p = {.rows = rows, .features = features, .block = 1, .is_tiled = 1};
    const int64_t all = tiled_rows(&p), across = tiles_across(&p), most = all * TILE_COLUMNS;
    int32_t *starts = malloc((size_t)(all / 2 + 1 + all) * sizeof(int32_t)), *order = starts + all / 2 + 1;
    uint8_t *columns = calloc((size_t)most, 1);
    float *values = calloc((size_t)most, sizeof(float));
    int64_t steps = 0;
    for (int64_t tile = 0; tile < all / TILE_ROWS; ++tile) {
        const int64_t top = tile / across * TILE_ROWS, left = tile % across * TILE_COLUMNS;
        int64_t place = tile * TILE_ROWS, counts[TILE_ROWS] = {0};
        for (int64_t r = 0; r < TILE_ROWS && top + r < rows; ++r)
            for (int64_t f = left; f < at_most(left + TILE_COLUMNS, features); ++f) counts[r] += dense[(top + r) * features + f] != 0;
        /* Counts one after the other, then what W does not have. */
        for (int64_t wanted = 0; wanted <= TILE_COLUMNS + 1; ++wanted)
            for (int64_t r = 0; r < TILE_ROWS; ++r)
                if (wanted == (top + r < rows ? counts[r] : TILE_COLUMNS + 1)) order[place++] = (int32_t)r;
        for (int64_t pair = tile * TILE_ROWS / 2; pair < (tile + 1) * TILE_ROWS / 2; ++pair) {
            starts[pair] = (int32_t)steps;
            int64_t longer = 0;
            for (int64_t r = 0; r < 2; ++r) {
                int64_t step = 0, row = top + order[2 * pair + r];
                for (int64_t f = left; row < rows && f < at_most(left + TILE_COLUMNS, features); ++f)
                    if (dense[row * features + f] != 0) {
                        columns[2 * (steps + step) + r] = (uint8_t)(f - left);
                        values[2 * (steps + step++) + r] = dense[row * features + f];
                    }
                longer = step > longer ? step : longer;
            }
            steps += longer;
        }
    }
    starts[all / 2] = (int32_t)steps;
    p.columns = realloc(columns, (size_t)(2 * steps + !steps));
    p.values = realloc(values, (size_t)(2 * steps + !steps) * sizeof(float));
    p.starts = starts;
    return p;
}

/* In any of the ways. */
static struct product held(const float *dense, int64_t rows, int64_t features)
{
    int64_t way = drawn(0, 2);
    return way == 2 ? tiled(dense, rows, features) : compressed(dense, rows, features, way ? 1 : ROW_BLOCK);
}

static void release(struct product *p) { free((void *)p->starts), free((void *)p->columns), free((void *)p->values); }

static int check(int instruction_set, int threads)
{
    int64_t rows = drawn(1, 70), features = drawn(1, 90), images = drawn(1, 3), positions = drawn(1, drawn(0, 1) ? 9 : 200);
    int64_t zeros = drawn(0, 100);
    float *dense = numbers(rows * features), *bias = numbers(rows), *x = numbers(images * features * positions);
    float *y = numbers(images * rows * positions);
    for (int64_t i = 0; i < rows * features; ++i)
        if (drawn(0, 99) < zeros) dense[i] = 0;
    struct product p = held(dense, rows, features);
    p.bias = drawn(0, 1) ? bias : NULL, p.rectify = drawn(0, 1), p.x = x, p.y = y, p.images = images, p.positions = positions;
    p.x_layout = layout(features, positions, (int)drawn(0, 1)), p.y_layout = layout(rows, positions, (int)drawn(0, 1));
    int wrong = sparsebench_csr_product(&p, instruction_set, threads, in_two_threads);
    for (int64_t b = 0; b < images; ++b)
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t n = 0; n < positions; ++n) {
                /* Multiples of 1/16: exact in any order. */
                float sum = p.bias ? bias[r] : 0;
                for (int64_t f = 0; f < features; ++f)
                    sum += dense[r * features + f] * x[b * p.x_layout.image + f * p.x_layout.feature + n * p.x_layout.position];
                if (p.rectify && sum < 0) sum = 0;
                wrong |= y[b * p.y_layout.image + r * p.y_layout.feature + n * p.y_layout.position] != sum;
            }
    free(dense), free(bias), free(x), free(y), release(&p);
    return wrong;
}

/* y = W norm(x) + x and z = V max(y, 0), all columns at once. */
static int check_chain(int instruction_set, int threads)
{
    int64_t width = drawn(1, 90), outputs = drawn(1, 70), columns = drawn(1, drawn(0, 1) ? 9 : 200), stride = width + drawn(0, 3);
    float *w = numbers(width * width), *v = numbers(outputs * width), *x = numbers((columns - 1) * stride + width);
    float *y = numbers(columns * width), *z = numbers(columns * outputs), *gain = numbers(width), *shift = numbers(width);
    struct product first = held(w, width, width);
    struct product second = held(v, outputs, width);
    struct step steps[] = {
        {.kind = READ, .to = 0, .features = width, .memory = x, .stride = stride},
        {.kind = NORMALIZE, .from = 0, .to = width, .features = width, .gain = gain, .shift = shift, .epsilon = 1e-2},
        {.kind = PRODUCT, .from = width, .to = 2 * width, .features = width, .product = &first},
        {.kind = ADD, .from = 2 * width, .also = 0, .to = width, .features = width},
        {.kind = RECTIFY, .from = width, .to = 0, .features = width},
        {.kind = PRODUCT, .from = 0, .to = 3 * width, .features = width, .product = &second},
        {.kind = WRITE, .from = width, .features = width, .memory = y, .stride = width},
        {.kind = WRITE, .from = 3 * width, .features = outputs, .memory = z, .stride = outputs},
    };
    int wrong = sparsebench_chain(steps, 8, 3 * width + outputs, columns, 1, instruction_set, threads, in_two_threads);
    double *normed = malloc((size_t)width * sizeof(double));
    for (int64_t n = 0; n < columns; ++n) {
        double mean = 0, variance = 0, most = 1;
        for (int64_t f = 0; f < width; ++f) mean += x[n * stride + f] / (double)width;
        for (int64_t f = 0; f < width; ++f) variance += pow(x[n * stride + f] - mean, 2) / (double)width;
        for (int64_t f = 0; f < width; ++f) normed[f] = (x[n * stride + f] - mean) / sqrt(variance + 1e-2) * gain[f] + shift[f];
        for (int64_t f = 0; f < width; ++f) {
            double sum = x[n * stride + f];
            for (int64_t g = 0; g < width; ++g) sum += w[f * width + g] * normed[g];
            wrong |= !(fabs(sum - y[n * width + f]) <= 1e-3 * (1 + fabs(sum)));
            most = fmax(most, fabs(sum));
        }
        for (int64_t r = 0; r < outputs; ++r) {
            double sum = 0;
            for (int64_t f = 0; f < width; ++f) sum += v[r * width + f] * fmax(y[n * width + f], 0);
            wrong |= !(fabs(sum - z[n * outputs + r]) <= 1e-4 * (double)width * most);
        }
    }
    free(normed), free(w), free(v), free(x), free(y), free(z), free(gain), free(shift), release(&first), release(&second);
    return wrong;
}

/* Queries x and keys and values made of it, in heads; masked or not. */
static int check_attention(int instruction_set, int threads)
{
    const int64_t heads = drawn(1, 3), depth = drawn(1, 20), width = heads * depth, length = drawn(2, 64), sequences = drawn(1, 5);
    const int64_t columns = sequences * length, shared_mask = drawn(0, 1);
    float *x = numbers(columns * width), *w = numbers(2 * width * width), *y = malloc((size_t)(columns * width) * sizeof(float));
    for (int64_t i = 0; i < 2 * width * width; ++i) w[i] /= 8;
    uint8_t *mask = malloc((size_t)columns);
    for (int64_t i = 0; i < columns; ++i) mask[i] = (uint8_t)drawn(0, 2);
    struct product product = held(w, 2 * width, width);
    const int masked = (int)drawn(0, 1);
    struct step steps[] = {
        {.kind = READ, .to = 0, .features = width, .memory = x, .stride = width},
        {.kind = PRODUCT, .from = 0, .to = width, .features = width, .product = &product},
        {.kind = ATTEND, .from = 0, .also = width, .third = 2 * width, .to = 3 * width, .features = width, .heads = heads, .scale = 0.25,
         .mask = masked ? mask : NULL, .mask_stride = shared_mask ? 0 : length},
        {.kind = WRITE, .from = 3 * width, .features = width, .memory = y, .stride = width},
    };
    int wrong = sparsebench_chain(steps, 4, 4 * width, columns, length, instruction_set, threads, in_two_threads);
    double *read = malloc((size_t)(columns * 2 * width) * sizeof(double)), weights[64];
    for (int64_t n = 0; n < columns; ++n)
        for (int64_t r = 0; r < 2 * width; ++r) {
            read[n * 2 * width + r] = 0;
            for (int64_t f = 0; f < width; ++f) read[n * 2 * width + r] += w[r * width + f] * x[n * width + f];
        }
    for (int64_t n = 0; n < columns; ++n)
        for (int64_t h = 0; h < heads; ++h) {
            const double *keys = read + n / length * length * 2 * width + h * depth, *values = keys + width;
            const uint8_t *allowed = mask + (shared_mask ? 0 : n / length * length);
            double most = -INFINITY, total = 0;
            for (int64_t j = 0; j < length; ++j) {
                weights[j] = 0;
                for (int64_t f = 0; f < depth; ++f) weights[j] += 0.25 * keys[j * 2 * width + f] * x[n * width + h * depth + f];
                if (masked && !allowed[j]) weights[j] = -INFINITY;
                most = fmax(most, weights[j]);
            }
            for (int64_t j = 0; j < length; ++j) total += weights[j] = most == -INFINITY ? 0 : exp(weights[j] - most);
            for (int64_t f = 0; f < depth; ++f) {
                double sum = 0;
                for (int64_t j = 0; j < length; ++j) sum += weights[j] * values[j * 2 * width + f];
                if (total != 0) sum /= total;
                wrong |= !(fabs(sum - y[n * width + h * depth + f]) <= 1e-4 * (1 + fabs(sum)));
            }
        }
    free(x), free(w), free(y), free(mask), free(read), release(&product);
    return wrong;
}

static struct places places(int64_t heads, int64_t positions, int64_t depth, int heads_first)
{
    if (heads_first) return (struct places){heads * positions * depth, positions * depth, depth};
    return (struct places){heads * positions * depth, depth, heads * depth};
}

static int check_few_queries(int instruction_set, int threads)
{
    const int64_t heads = drawn(1, 3), depth = 4 * drawn(1, 20), queries = drawn(1, 8), keys = drawn(1, 50), sequences = drawn(1, 40);
    const int64_t out_count = sequences * heads * queries * depth, read_count = sequences * heads * keys * depth;
    float *query = numbers(out_count), *key = numbers(read_count), *value = numbers(read_count);
    float *out = malloc((size_t)out_count * sizeof(float));
    const int shared = (int)drawn(0, 1), masked = (int)drawn(0, 1);
    uint8_t *mask = malloc((size_t)((shared ? 1 : sequences) * keys));
    for (int64_t i = 0; i < (shared ? 1 : sequences) * keys; ++i) mask[i] = (uint8_t)drawn(0, 2);
    const struct places few = places(heads, queries, depth, (int)drawn(0, 1));
    const struct places many = places(heads, keys, depth, (int)drawn(0, 1));
    const struct attention a = {sequences, heads, queries, keys, depth, query, key, value, out, few, many, many, few, 0.25,
                                masked ? mask : NULL, shared ? 0 : keys};
    int wrong = sparsebench_attention(&a, instruction_set, threads, in_two_threads);
    double weights[50];
    for (int64_t n = 0; n < sequences; ++n)
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t q = 0; q < queries; ++q) {
                const int64_t at = n * few.sequence + h * few.head + q * few.position, read = n * many.sequence + h * many.head;
                double most = -INFINITY, total = 0;
                for (int64_t j = 0; j < keys; ++j) {
                    weights[j] = 0;
                    for (int64_t f = 0; f < depth; ++f) weights[j] += 0.25 * query[at + f] * key[read + j * many.position + f];
                    if (masked && !mask[(shared ? 0 : n * keys) + j]) weights[j] = -INFINITY;
                    most = fmax(most, weights[j]);
                }
                for (int64_t j = 0; j < keys; ++j) total += weights[j] = most == -INFINITY ? 0 : exp(weights[j] - most);
                for (int64_t f = 0; f < depth; ++f) {
                    double sum = 0;
                    for (int64_t j = 0; j < keys; ++j) sum += weights[j] * value[read + j * many.position + f];
                    if (total != 0) sum /= total;
                    wrong |= !(fabs(sum - out[at + f]) <= 1e-4 * (1 + fabs(sum)));
                }
            }
    free(query), free(key), free(value), free(out), free(mask);
    return wrong;
}

static struct axis axis(void)
{
    struct axis a = {.kernel = drawn(1, 4), .stride = drawn(1, 3), .padding = drawn(0, 4), .dilation = drawn(1, 2)};
    int64_t extent = a.dilation * (a.kernel - 1) + 1;
    a.in = drawn(extent > 2 * a.padding ? extent - 2 * a.padding : 1, drawn(0, 1) ? extent + 5 : 40 + extent);
    a.out = (a.in + 2 * a.padding - extent) / a.stride + 1;
    return a;
}

static struct planes planes(int64_t channels, int64_t rows, int64_t columns, int channels_last)
{
    if (channels_last) return (struct planes){channels * rows * columns, 1, columns * channels, channels};
    return (struct planes){channels * rows * columns, rows * columns, columns, 1};
}

static int check_convolution(int instruction_set, int threads)
{
    struct axis rows = axis(), columns = axis();
    int64_t outputs = drawn(1, 40), inputs = drawn(1, 20), images = drawn(1, 3), taps = rows.kernel * columns.kernel;
    int64_t zeros = drawn(0, 100), entries = 0, pixels = rows.in * columns.in, results = images * outputs * rows.out * columns.out;
    float *dense = numbers(outputs * inputs * taps), *bias = numbers(outputs), *x = numbers(images * inputs * pixels);
    float *y = numbers(results), *added = numbers(results);
    const int64_t tile = drawn(1, inputs), tiles = (inputs + tile - 1) / tile;
    int32_t *starts = malloc((size_t)(tiles * outputs + 1) * sizeof(int32_t));
    for (int64_t i = 0; i < outputs * inputs * taps; ++i) {
        if (drawn(0, 99) < zeros) dense[i] = 0;
        entries += dense[i] != 0;
    }
    int32_t *codes = malloc((size_t)entries * sizeof(int32_t));
    float *values = malloc((size_t)entries * sizeof(float));
    entries = 0;
    for (int64_t t = 0; t < tiles; ++t)
        for (int64_t o = 0; o < outputs; ++o) {
            starts[t * outputs + o] = (int32_t)entries;
            for (int64_t i = t * tile * taps; i < at_most((t + 1) * tile, inputs) * taps; ++i)
                if (dense[o * inputs * taps + i] != 0) {
                    codes[entries] = (int32_t)((i / taps) << TAP_BITS | i % taps);
                    values[entries++] = dense[o * inputs * taps + i];
                }
        }
    starts[tiles * outputs] = (int32_t)entries;
    struct convolution p = {
        outputs, inputs, tile, starts, codes, values, drawn(0, 1) ? bias : NULL, drawn(0, 1), x, drawn(0, 1) ? added : NULL, y,
        planes(inputs, rows.in, columns.in, (int)drawn(0, 1)), planes(outputs, rows.out, columns.out, (int)drawn(0, 1)), images, rows,
        columns};
    int wrong = sparsebench_convolution(&p, instruction_set, threads, in_two_threads);
    for (int64_t b = 0; b < images; ++b)
        for (int64_t o = 0; o < outputs; ++o)
            for (int64_t i = 0; i < rows.out * columns.out; ++i) {
                int64_t row = i / columns.out, column = i % columns.out;
                int64_t at = b * p.y_planes.image + o * p.y_planes.channel + row * p.y_planes.row + column * p.y_planes.column;
                float sum = (p.bias ? bias[o] : 0) + (p.added ? added[at] : 0);
                for (int64_t c = 0; c < inputs; ++c)
                    for (int64_t t = 0; t < taps; ++t) {
                        int64_t above = row * rows.stride - rows.padding + t / columns.kernel * rows.dilation;
                        int64_t left = column * columns.stride - columns.padding + t % columns.kernel * columns.dilation;
                        if (above >= 0 && above < rows.in && left >= 0 && left < columns.in)
                            sum += dense[(o * inputs + c) * taps + t] * x[b * p.x_planes.image + c * p.x_planes.channel +
                                                                          above * p.x_planes.row + left * p.x_planes.column];
                    }
                if (p.rectify && sum < 0) sum = 0;
                wrong |= y[at] != sum;
            }
    free(dense), free(bias), free(x), free(y), free(added), free(starts), free(codes), free(values);
    return wrong;
}

int main(void)
{
    int sets = sparsebench_instruction_sets(), checked = 0;
    for (int set = 0; set < 3; ++set)
        for (int trial = 0; (sets >> set & 1) && trial < 150; ++trial, ++checked)
            if (check(set, 1 + trial % 2) || check_convolution(set, 1 + trial % 2) || check_chain(set, 1 + trial % 2) ||
                check_attention(set, 1 + trial % 2) || check_few_queries(set, 1 + trial % 2)) {
                printf("instruction set %d, trial %d: wrong\n", set, trial);
                return 1;
            }
    free_scratch(pthread_getspecific(scratch_key)); /* the main thread ends without it */
    printf("%d products, convolutions and chains\n", checked);
    return 0;
}
