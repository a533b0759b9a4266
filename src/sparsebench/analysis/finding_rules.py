"""The paper's six findings: what they say, and the rule by which each is judged on the runs of a study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsebench.analysis.finding_statements import (
    Judged,
    StudyFacts,
    close_but_dearer,
    complex_techniques,
    costs,
    from_masks,
    highest_sparsities,
    l0_unusable,
)

__all__ = ["RULES", "Rule"]


@dataclass(frozen=True)
class Rule:
    """A finding of the paper.

    Args:
        number: Its number.
        text: What the paper found.
        rule: When it is supported and when refuted, for a reader.
        figure: The id of the part of the page that shows it.
        judge: Its statements on a study.
    """

    number: int
    text: str
    rule: str
    figure: str
    judge: Callable[[StudyFacts], Judged]


RULES = (
    Rule(
        1,
        "Magnitude pruning matches or beats the two complex techniques; all beat random pruning.",
        "Supported where at every sparsity asked about magnitude pruning (the best of its rules for spreading zeros "
        "over layers, by validation) is shown to be no more than 1 % of the dense value below variational dropout and "
        "L0, and all three are shown to be more than 1 % above random pruning. Refuted where the opposite of any of "
        "these is shown.",
        "trade-off",
        complex_techniques,
    ),
    Rule(
        2,
        "The three are close; L0 and variational dropout lose ground at the highest sparsities or cost more to train "
        "(found on the Transformer).",
        "Supported where every two of uniform magnitude pruning, variational dropout and L0 are shown to be within 3 "
        "% of the dense value of each other at every sparsity up to 80 %, and each of the other two is shown to be "
        "more than 1 % below magnitude pruning at some sparsity from 90 % on (Holm's correction over these), or takes "
        "at least 1.2 times its processor time for a step. Refuted where two are shown to be further apart, or where "
        "one is shown to be neither behind at any of these sparsities nor dearer.",
        "trade-off",
        close_but_dearer,
    ),
    Rule(
        3,
        "Variational dropout wins at the highest sparsities, where uniform magnitude pruning collapses; magnitude "
        "pruning that is not uniform closes that gap (found on ResNet-50).",
        "Supported where at every sparsity from 95 % on variational dropout is shown to be more than 1 % of the dense "
        "value above uniform magnitude pruning, and the best non-uniform magnitude pruning by validation no more than "
        "1 % below variational dropout. Refuted where the opposite of any of these is shown.",
        "layers",
        highest_sparsities,
    ),
    Rule(
        4,
        "L0 regularization gives no usable network (found on ResNet-50).",
        "Supported where no network of L0 with at least 50 % sparsity (mean over its seeds) keeps half of the dense "
        "value on the test split; refuted where one does. Halves are far more than seeds differ by: nothing is "
        "tested, and one seed is enough.",
        "trade-off",
        l0_unusable,
    ),
    Rule(
        5,
        "A sparse architecture found by pruning cannot be trained from scratch or as a lottery ticket to the accuracy "
        "of pruning during training.",
        "Supported where at every sparsity networks from scratch and lottery tickets, which have the masks of uniform "
        "magnitude pruning, are shown to be more than 1 % of the dense value below it. Refuted where one is shown not "
        "to be.",
        "from-masks",
        from_masks,
    ),
    Rule(
        6,
        "Variational dropout and L0 need about twice the memory and arithmetic in training; magnitude pruning almost "
        "nothing more.",
        "Supported where the measured processor time of a training step (median over runs, evaluation left out) is at "
        "least 1.5 times that of dense training with variational dropout and L0, and at most 1.2 times with magnitude "
        "pruning. Refuted where one of the two is below 1.2 times, or magnitude pruning above 1.5. Times hold for the "
        "machine they were measured on; memory is told and decides nothing, because on small networks activations "
        "hide it.",
        "cost",
        costs,
    ),
)
