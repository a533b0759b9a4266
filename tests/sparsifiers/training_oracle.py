"""Whole sparse trainings in NumPy, float64: network, derivatives, optimizers and masks, each from its formula.

Written for reading, not for speed. Dropped weights get no gradient and have no optimizer state here, ever.
"""

import math

import numpy as np
import torch
from masked_oracle import cubic, dropped_count, erdos_renyi_kernel, highest, update_steps

from sparsebench.sparsifiers.keyed_generator import keyed_generator


class Perceptron:
    """Linear layers with tanh between them, squared error; arrays by torch's parameter names."""

    def __init__(self, arrays):
        self.arrays = {name: value.copy() for name, value in arrays.items()}
        self.layers = sorted({name.split(".")[0] for name in arrays}, key=int)
        self.weights = [f"{layer}.weight" for layer in self.layers]

    def gradients(self, inputs, targets):
        """Of the mean squared error, by backpropagation."""
        signals = [inputs]
        for position, layer in enumerate(self.layers):
            sums = signals[-1] @ self.arrays[f"{layer}.weight"].T + self.arrays[f"{layer}.bias"]
            signals.append(sums if position == len(self.layers) - 1 else np.tanh(sums))
        back, found = 2 * (signals[-1] - targets) / targets.size, {}
        for position, layer in reversed(list(enumerate(self.layers))):
            found[f"{layer}.weight"], found[f"{layer}.bias"] = back.T @ signals[position], back.sum(0)
            back = (back @ self.arrays[f"{layer}.weight"]) * (1 - signals[position] ** 2)
        return found


class Optimizer:
    """SGD (with momentum, Nesterov's too), Adam (weight decay in the gradient) and AdamW (decoupled), as torch documents them."""

    def __init__(self, kind, options):
        self.kind, self.options, self.state, self.time = kind, options, {}, 0

    def step(self, arrays, gradients):
        options, self.time = self.options, self.time + 1
        rate, decay = options["lr"], options.get("weight_decay", 0.0)
        for name, value in arrays.items():
            gradient = gradients[name]
            if self.kind == "AdamW":
                value *= 1 - rate * decay
            else:
                gradient = gradient + decay * value
            if self.kind == "SGD":
                momentum = options.get("momentum", 0.0)
                state = self.state.setdefault(name, [np.zeros_like(value)])
                state[0] = buffer = momentum * state[0] + gradient
                value -= rate * (gradient + momentum * buffer if options.get("nesterov") else buffer)
                continue
            state = self.state.setdefault(name, [np.zeros_like(value), np.zeros_like(value)])
            state[0] = 0.9 * state[0] + 0.1 * gradient
            state[1] = 0.999 * state[1] + 0.001 * gradient**2
            mean, square = state[0] / (1 - 0.9**self.time), state[1] / (1 - 0.999**self.time)
            value -= rate * mean / (np.sqrt(square) + options["eps"])

    def forget(self, name, keep):
        if name in self.state:
            self.state[name] = [np.where(keep, entry, 0.0) for entry in self.state[name]]


def unit_numbers(shape, structure):
    """The number of each weight's unit, counted in row-major order."""
    rows, columns = np.indices(shape)
    if structure == "channel":
        return rows
    high, wide = (1, 1) if structure == "element" else map(int, structure.removeprefix("block:").split("x"))
    return rows // high * -(-shape[1] // wide) + columns // wide


def unit_means(score, numbers):
    return np.array([score[numbers == unit].mean() for unit in range(numbers.max() + 1)])


def units_kept(mask, numbers):
    return np.array([mask[numbers == unit].any() for unit in range(numbers.max() + 1)])


def n_of_m(scores, candidates, m, sparsity):
    mask = np.zeros(scores.shape, dtype=bool)
    for row in range(scores.shape[0]):
        for begin in range(0, scores.shape[1], m):
            members = range(begin, min(begin + m, scores.shape[1]))
            order = sorted(members, key=lambda column: (not candidates[row, column], -scores[row, column]))
            mask[row, order[: len(members) - dropped_count(sparsity, len(members))]] = True
    return mask & candidates


def best(scores, allowed, count):
    order = [unit for unit in np.argsort(-scores, kind="stable") if allowed[unit]]
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[:count]] = True
    return kept


def largest_remainders(total, shares, room):
    """Whole parts in proportion to shares; whoever's part does not fit is filled first, and the others share the rest."""
    parts, active = [0] * len(shares), [i for i, r in enumerate(room) if r]
    while active:
        left, weight = total - sum(parts), sum(shares[i] for i in active)
        quota = {i: left * shares[i] / weight if weight else left / len(active) for i in active}
        full = [i for i in active if quota[i] >= room[i]]
        if full:
            for i in full:
                parts[i] = room[i]
            active = [i for i in active if i not in full]
            continue
        for i in active:
            parts[i] = math.floor(quota[i])
        ahead = sorted(active, key=lambda i: parts[i] - quota[i])
        for i in ahead[: left - sum(parts[i] for i in active)]:
            parts[i] += 1
        break
    return parts


class SparseTraining:
    """A training of a method given by plain settings.

    Args:
        arrays: The parameters at the start.
        kind: "magnitude", "random", "static", "one-shot", "set", "rigl" or "snfs".
        optimizer: An Optimizer.
        settings: sparsity, allocation, structure, policy, begin, end, frequency, initial, drop_fraction, seed.
    """

    def __init__(self, arrays, kind, optimizer, settings):
        self.network, self.kind, self.optimizer, self.settings = Perceptron(arrays), kind, optimizer, settings
        weights = self.weights = {name: self.network.arrays[name] for name in self.network.weights}
        self.masks = {name: np.ones(weight.shape, dtype=bool) for name, weight in weights.items()}
        self.aside = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.momentum = {name: np.zeros_like(weight) for name, weight in weights.items()}
        self.numbers = {
            name: unit_numbers(weight.shape, settings["structure"]) if ":4" not in settings["structure"] else None
            for name, weight in weights.items()
        }
        self.time = 0
        self.moving = kind in ("set", "rigl", "snfs")
        times = update_steps(settings["begin"], settings["end"], settings["frequency"])
        self.moves_at = times - {0} if self.moving else set()
        self.updates_at = {"static": {0}, "one-shot": {settings["begin"]}}.get(kind, {0} if self.moving else times)
        if 0 in self.updates_at:
            self.update()

    def groups(self):
        final, names = self.settings["sparsity"], list(self.weights)
        if self.settings["allocation"] == "global":
            return [(names, final)]
        if self.settings["allocation"] == "uniform":
            return [([name], final) for name in names]
        each = erdos_renyi_kernel({name: weight.shape for name, weight in self.weights.items()}, final)
        return [([name], each[name]) for name in names]

    def draws(self, name):
        generator = keyed_generator(self.settings["seed"], self.time, name)
        return torch.rand(self.weights[name].shape, generator=generator, dtype=torch.float32).numpy().astype(np.float64)

    def update(self):
        settings, returning = self.settings, self.settings["policy"] == "returning"
        for name, weight in self.weights.items():
            weight += self.aside[name]
        new = {}
        for names, final in self.groups():
            now = final
            if self.kind in ("magnitude", "random"):
                now = cubic(self.time, settings["begin"], settings["end"], final, settings["initial"])
            at_random = self.kind not in ("magnitude", "one-shot")
            scores = [self.draws(name) if at_random else np.abs(self.weights[name]) for name in names]
            candidates = [np.ones_like(self.masks[name]) if returning else self.masks[name] for name in names]
            if settings["structure"] == "2:4":
                new |= {n: n_of_m(s, c, 4, now) for n, s, c in zip(names, scores, candidates, strict=True)}
                continue
            own = [self.numbers[name] for name in names]
            means = [
                np.where(units_kept(candidate, number), unit_means(score, number), -1.0)
                for score, number, candidate in zip(scores, own, candidates, strict=True)
            ]
            units = sum(map(len, means))
            kept = highest(means, units - dropped_count(now, units))
            new |= {name: part[number] for name, part, number in zip(names, kept, own, strict=True)}
        self.install(new)

    def install(self, new):
        for name, weight in self.weights.items():
            self.optimizer.forget(name, self.masks[name] & new[name])
            self.masks[name] = new[name]
            if self.settings["policy"] == "returning":
                self.aside[name] = np.where(new[name], 0.0, weight)
            weight[~new[name]] = 0.0

    def moved(self, gradients):
        """The masks after the step to come, from weights and dense gradients before it."""
        fraction = self.settings["drop_fraction"]
        if self.kind != "set":
            fraction *= 0.5 * (1 + math.cos(math.pi * self.time / self.settings["end"]))
        stay, lost = {}, {}
        for name, mask in self.masks.items():
            kept = units_kept(mask, self.numbers[name])
            lost[name] = math.floor(fraction * kept.sum() + 0.5)
            stay[name] = best(unit_means(np.abs(self.weights[name]), self.numbers[name]), kept, kept.sum() - lost[name])
        grown = list(lost.values())
        if self.kind == "snfs":
            shares = [np.abs(self.momentum[name][mask]).mean() if mask.any() else 0.0 for name, mask in self.masks.items()]
            grown = largest_remainders(sum(grown), shares, [int((~own).sum()) for own in stay.values()])
        new = {}
        for (name, own), count in zip(stay.items(), grown, strict=True):
            score = {
                "set": lambda name=name: self.draws(name),
                "rigl": lambda name=name: np.abs(gradients[name]),
                "snfs": lambda name=name: np.abs(self.momentum[name]),
            }[self.kind]()
            numbers = self.numbers[name]
            new[name] = (own | best(unit_means(score, numbers), ~own, count))[numbers]
        return new

    def step(self, inputs, targets):
        gradients = self.network.gradients(inputs, targets)
        self.time += 1
        for name, momentum in self.momentum.items():
            momentum += (1 - 0.9) * (gradients[name] - momentum)
        new = self.moved(gradients) if self.time in self.moves_at else None
        masked = {name: np.where(self.masks[name], g, 0.0) if name in self.masks else g for name, g in gradients.items()}
        self.optimizer.step(self.network.arrays, masked)
        for name, weight in self.weights.items():
            assert (weight[~self.masks[name]] == 0).all()
        if self.time in self.updates_at:
            self.update()
        if new is not None:
            self.install(new)
