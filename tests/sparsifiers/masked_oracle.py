"""Magnitude pruning in NumPy, written from the formulas of Zhu and Gupta (2017): what the engine is compared with."""

import math

import numpy as np


def update_steps(begin, end, frequency):
    return {*range(begin, end, frequency), end}


def cubic(step, begin, end, final, initial=0.0):
    if begin == end:
        return final
    return final + (min(initial, final) - final) * (1 - (step - begin) / (end - begin)) ** 3


def dropped_count(sparsity, units):
    return math.floor(sparsity * units + 0.5)


def highest(scores, keep):
    """Masks of the `keep` highest of all scores; of equal ones the first in row-major order are kept."""
    flat = np.concatenate([np.asarray(score, dtype=np.float64).reshape(-1) for score in scores])
    mask = np.zeros(flat.size, dtype=bool)
    mask[np.argsort(-flat, kind="stable")[:keep]] = True
    parts = np.split(mask, np.cumsum([score.size for score in scores])[:-1])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def best(score, allowed, count):
    """The `count` allowed places of highest score; of equal ones the first."""
    return highest([np.where(allowed, score.astype(np.float64), -np.inf)], count)[0] & allowed


def erdos_renyi_kernel(shapes, sparsity):
    """Sparsity by name: density scale * sum(shape) / prod(shape), one layer after the other made dense where that exceeds 1."""
    dense = []
    while True:
        others = [name for name in shapes if name not in dense]
        budget = (1 - sparsity) * sum(np.prod(shape) for shape in shapes.values()) - sum(np.prod(shapes[n]) for n in dense)
        scale = budget / sum(sum(shapes[name]) for name in others) if others else 0.0
        density = {name: scale * sum(shapes[name]) / np.prod(shapes[name]) for name in others}
        worst = max(density, key=density.get, default=None)
        if worst is None or density[worst] <= 1:
            return {name: 0.0 if name in dense else 1 - density[name] for name in shapes}
        dense.append(worst)


class MagnitudePruning:
    """The method, told of the weights after every optimizer step.

    Args:
        weights: Arrays by name, in the model's order.
        groups: Pairs of names that share a budget, and their final sparsity.
    """

    def __init__(self, weights, groups, begin, end, frequency, returning, initial=0.0):
        self.groups, self.begin, self.end, self.initial, self.returning = groups, begin, end, initial, returning
        self.updates = update_steps(begin, end, frequency)
        self.masks = {name: np.ones(weight.shape, dtype=bool) for name, weight in weights.items()}
        self.aside = {name: np.zeros_like(weight) for name, weight in weights.items()}

    def after_step(self, step, weights):
        """What the weights must be after `step`, given what the optimizer left."""
        values = {name: np.where(self.masks[name], weight, self.aside[name]) for name, weight in weights.items()}
        if step in self.updates:
            for names, final in self.groups:
                scores = [np.abs(values[name]) for name in names]
                if not self.returning:
                    scores = [np.where(self.masks[name], score, -1.0) for name, score in zip(names, scores, strict=True)]
                units = sum(score.size for score in scores)
                keep = units - dropped_count(cubic(step, self.begin, self.end, final, self.initial), units)
                self.masks |= dict(zip(names, highest(scores, keep), strict=True))
            if self.returning:
                self.aside = {name: np.where(self.masks[name], 0, value) for name, value in values.items()}
        return {name: np.where(self.masks[name], value, 0) for name, value in values.items()}
