"""The methods that every callback is tested with, short enough for a dozen steps."""

import sparsebench

METHODS = {
    "magnitude": lambda: sparsebench.magnitude_pruning(sparsity=0.8, begin=1, end=9, frequency=2),
    "magnitude-gone": lambda: sparsebench.magnitude_pruning(sparsity=0.8, begin=1, end=9, frequency=2, policy="gone"),
    "magnitude-global": lambda: sparsebench.magnitude_pruning(sparsity=0.8, begin=1, end=9, frequency=2, allocation="global"),
    "random": lambda: sparsebench.random_pruning(sparsity=0.8, begin=1, end=9, frequency=2),
    "rigl": lambda: sparsebench.rigl(sparsity=0.8, begin=1, end=9, frequency=2),
    "snfs": lambda: sparsebench.snfs(sparsity=0.8, begin=1, end=9, frequency=2),
    "variational-dropout": lambda: sparsebench.variational_dropout(penalty=0.001, begin=0, end=8),
    "l0": lambda: sparsebench.l0_regularization(penalty=0.001, begin=0, end=8),
}
STOCHASTIC = ("variational-dropout", "l0")
