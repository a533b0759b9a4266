"""The methods that studies and the command line know by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsebench.registry import Registry
from sparsebench.sparsifiers import at_initialization, inherited, methods, sparse_training
from sparsebench.sparsifiers.sparsifier import Sparsifier

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A named method: how its sparsifier is built, from which arguments.

    Attributes:
        name: As studies and the command line name it.
        summary: One line for lists and reports.
        paper: Its source.
        build: Makes the sparsifier from keyword arguments with annotated types; arguments annotated `Steps` and `Penalty` are
            given by studies relative to the training's length and set. An argument `seed` gets the run's seed; one called
            `inherited` gets the network of the finished run that a run goes on from, one called `beginning` the run's loss and
            first batches.
        defaults: Values, as a study would write them, of arguments that a study leaves out.
        revision: Raised when the same arguments begin to mean something else, so that old results are not taken for new ones.
        auxiliary: Whether it learns parameters of its own, which have their own learning rate.
    """

    name: str
    summary: str
    paper: str
    build: Callable[..., Sparsifier]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1
    auxiliary: bool = False


def _unstructured(build: Callable[..., Sparsifier], **given: Any) -> Callable[..., Sparsifier]:
    """A pruning method with values given, and without its later argument `structure`.

    Results are found again by a hash over all arguments: one more would orphan those that there are.
    """
    fixed = functools.partial(build, **given)
    signature = inspect.signature(fixed)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "structure"]
    fixed.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return fixed


_PRUNING = {"begin": 0.0, "end": 0.5, "frequency": 0.02}
_MOVING = {"begin": 0.0, "end": 0.75, "frequency": 0.02}
_RAMP = {"begin": 0.0, "end": 0.4}
_RIGL = "Evci et al. 2020, arXiv:1911.11134"
_SCRATCH = "Liu et al. 2019, arXiv:1810.05270"
_GALE = "Gale, Elsen and Hooker 2019, arXiv:1902.09574"

METHODS: Registry[Method] = Registry(
    "method",
    "sparsebench.methods",
    [
        Method("dense", "no sparsity: the baseline", _GALE, methods.dense),
        Method(
            "random",
            "gradual random pruning, every layer alike: the control that other methods must beat",
            _GALE,
            _unstructured(methods.random_pruning),
            _PRUNING,
        ),
        Method(
            "magnitude",
            "gradual magnitude pruning, every layer alike; dropped weights may return",
            "Zhu and Gupta 2017, arXiv:1710.01878",
            _unstructured(methods.magnitude_pruning),
            _PRUNING,
        ),
        Method(
            "magnitude-global",
            "gradual magnitude pruning, all layers in one ranking",
            "Zhu and Gupta 2017, arXiv:1710.01878; Han et al. 2015, arXiv:1506.02626",
            _unstructured(methods.magnitude_pruning, allocation="global"),
            _PRUNING,
        ),
        Method(
            "magnitude-erk",
            "gradual magnitude pruning, small layers denser (Erdos-Renyi-kernel)",
            "Zhu and Gupta 2017, arXiv:1710.01878; Evci et al. 2020, arXiv:1911.11134",
            _unstructured(methods.magnitude_pruning, allocation="erdos-renyi-kernel"),
            _PRUNING,
        ),
        Method(
            "magnitude-structured",
            "gradual magnitude pruning of blocks, whole output channels or n:m patterns",
            "Narang et al. 2017, arXiv:1711.02782; Mishra et al. 2021, arXiv:2104.08378",
            methods.magnitude_pruning,
            _PRUNING | {"structure": "block:4x4"},
        ),
        Method(
            "random-structured",
            "gradual random pruning of blocks, whole output channels or n:m patterns: the control of magnitude-structured",
            _GALE,
            methods.random_pruning,
            _PRUNING | {"structure": "block:4x4"},
        ),
        Method(
            "magnitude-one-shot",
            "magnitude pruning at once, all layers in one ranking, then fine-tuning",
            "Han et al. 2015, arXiv:1506.02626",
            methods.one_shot_pruning,
            {"step": 0.5},
        ),
        Method(
            "snip",
            "pruning at initialization: the weights that the first batches' loss depends on most are kept",
            "Lee et al. 2019, arXiv:1810.02340",
            at_initialization.snip,
        ),
        Method(
            "grasp",
            "pruning at initialization: the weights that the gradient's norm grows with most are kept",
            "Wang et al. 2020, arXiv:2002.07376",
            at_initialization.grasp,
        ),
        Method(
            "synflow",
            "pruning at initialization: the weights that most flows through are kept, without data",
            "Tanaka et al. 2020, arXiv:2006.05467",
            at_initialization.synflow,
        ),
        Method(
            "static",
            "static sparse training: a random sparse network, trained as it is",
            _RIGL,
            sparse_training.static_sparse_training,
        ),
        Method(
            "set",
            "dynamic sparse training: the smallest weights move to random places",
            "Mocanu et al. 2018, arXiv:1707.04780",
            sparse_training.set_training,
            _MOVING,
        ),
        Method(
            "rigl",
            "dynamic sparse training: the smallest weights move to where the gradient is largest",
            _RIGL,
            sparse_training.rigl,
            _MOVING,
        ),
        Method(
            "snfs",
            "dynamic sparse training: the smallest weights move to where the momentum is largest, in any layer",
            "Dettmers and Zettlemoyer 2019, arXiv:1907.04840",
            sparse_training.snfs,
            _MOVING,
        ),
        Method(
            "variational-dropout",
            "sparse variational dropout: learns each weight's noise, drops the weights that are only noise",
            "Molchanov et al. 2017, arXiv:1701.05369",
            methods.variational_dropout,
            _RAMP | {"penalty": 1.0},
            auxiliary=True,
        ),
        Method(
            "l0",
            "L0 regularization: a learned hard-concrete gate on each weight",
            "Louizos et al. 2018, arXiv:1712.01312",
            methods.l0_regularization,
            _RAMP | {"penalty": 1.0},
            auxiliary=True,
        ),
        # Stages of a study alone run these.
        Method(
            "lottery-ticket",
            "in stages of studies: masks of a trained network, trained again from its own initial or early weights",
            "Frankle and Carbin 2019, arXiv:1803.03635",
            inherited.lottery_ticket,
        ),
        Method(
            "scratch-e",
            "in stages of studies: masks of a trained network, trained from new weights for as many steps",
            _SCRATCH,
            inherited.scratch,
        ),
        Method(
            "scratch-b",
            "in stages of studies: masks of a trained network, trained from new weights, for up to twice the steps",
            _SCRATCH,
            inherited.scratch,
        ),
        Method(
            "iterative-magnitude",
            "in stages of studies: weights dropped in rounds, each trained from the initial or early weights",
            "Frankle and Carbin 2019, arXiv:1803.03635; Frankle et al. 2020, arXiv:1912.05671",
            inherited.iterative_magnitude,
        ),
    ],
)
