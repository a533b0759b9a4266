/* The entry to attention of some queries; included by kernels.c after everything else. */

/* out = softmax(scale * query * key^T) * value, for every head and sequence.
 *
 * instruction_set, threads, parallel: as for sparsebench_csr_product; a narrower set is taken where vectors do not divide `depth`,
 * which must be a multiple of 4. Where no key may be read, zero.
 * Returns 0, or 1 where memory for scratch was not to be had (`out` is then undefined).
 */
int sparsebench_attention(const struct attention *a, int instruction_set, int threads, parallel_function parallel)
{
    if (a->sequences * a->heads * a->queries * a->depth == 0) return 0;
    if (!parallel || threads < 1) threads = 1;
    while (instruction_set > GENERIC && a->depth % widths[instruction_set] != 0) --instruction_set;
    const int64_t width = widths[instruction_set];
    struct attention_work work = {.attention = a, .run = CHOICE(run_attention, instruction_set)};
    work.scratch_bytes = (a->keys / width + 1) * width * (int64_t)sizeof(float);
    /* Two loads of a vector for each key and its value, and what a softmax takes. */
    if (a->sequences * a->heads * a->queries * a->keys * (2 * a->depth / width + 4) < SERIAL_LOADS) threads = 1;
    /* Few tasks, and none much later done than the others. */
    work.at_a_time = at_least(a->sequences / (8 * threads), 1);
    threads = (int)at_most(threads, a->sequences);
    if (threads > 1) parallel(take_sequences, &work, (unsigned)threads, 0);
    else take_sequences(&work);
    return work.failed;
}
