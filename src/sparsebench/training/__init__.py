"""One run: configuration, loop, record. The only place where sparsifiers and workloads meet."""
