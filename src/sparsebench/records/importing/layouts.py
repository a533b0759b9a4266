"""The layouts of Gale et al.'s result files, one entry each: which column is what.

Gale, Elsen and Hooker 2019, "The State of Sparsity in Deep Neural Networks", arXiv:1902.09574, and the files published with its
code. A new layout is a new entry; the reader knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from sparsebench.records.importing.cells import Parse, Value, number, one_of, per_cent, text, times_100

__all__ = ["LAYOUTS", "RESNET50", "SPARSITIES", "TRANSFORMER", "Evaluation", "Layout", "Settings"]

RESNET50 = "imagenet/resnet50"
TRANSFORMER = "wmt14-ende/transformer-base"
SPARSITIES: Mapping[str, tuple[float, ...]] = {
    RESNET50: (0.5, 0.7, 0.8, 0.9, 0.95, 0.98),
    TRANSFORMER: (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98),
}
"""The sparsities that the paper asks about, by workload."""

_METRIC = {RESNET50: "accuracy", TRANSFORMER: "bleu"}
_STEPS = {RESNET50: 128_000, TRANSFORMER: 500_000}  # of the reference training; the files of sparse runs do not repeat it

Settings: TypeAlias = Mapping[str, Value | None]
_Column: TypeAlias = tuple[str, Parse]


@dataclass(frozen=True)
class Evaluation:
    """The columns of one evaluation of a run.

    Args:
        value: The column of the metric.
        sparsity: The column of the sparsity; None for dense networks.
        threshold: The log-alpha threshold at which the network was evaluated, None where there is none.
    """

    value: str
    sparsity: str | None
    threshold: float | None = None


@dataclass(frozen=True)
class Layout:
    """How the rows of a file become runs.

    Args:
        columns: The columns in their order; letters' case does not matter, the authors' own varies.
        workload: What was trained.
        settings: For every column that is a setting, the setting's name and how it is read.
        runs: The evaluations of every run that one row holds.
        read_value: How a cell of a metric is read; the result is in per cent or BLEU.
        method: From the settings of a row and the name of the file without its ending, the method and the full settings.
        target: From a row's measured sparsity the sparsity that was asked for, None where the method finds its own.
    """

    columns: tuple[str, ...]
    workload: str
    settings: Mapping[str, _Column]
    runs: tuple[tuple[Evaluation, ...], ...]
    read_value: Parse
    method: Callable[[Settings, str], tuple[str, Settings]]
    target: Callable[[float], float | None] = field(default=lambda sparsity: None)

    @property
    def metric(self) -> str:
        """The metric's name; higher is better."""
        return _METRIC[self.workload]

    def steps(self, settings: Settings) -> int | None:
        """Steps of a run's training, None where neither file nor paper tells."""
        if "steps" in settings:
            return _whole(settings["steps"])
        multiplier = settings.get("time_multiplier", 1)
        return None if multiplier is None else _whole(_STEPS[self.workload] * float(multiplier))


def _whole(steps: Value | None) -> int | None:
    return None if steps is None else round(float(steps))


def _stated(sparsity: float) -> float:
    return sparsity


def _nearest_hundredth(sparsity: float) -> float:
    # The Transformer's files hold measured sparsities, such as 0.600001454353; all that were asked for are whole per cents.
    return round(sparsity, 2)


def _always(method: str) -> Callable[[Settings, str], tuple[str, Settings]]:
    return lambda settings, file_name: (method, settings)


def _scratch(settings: Settings, file_name: str) -> tuple[str, Settings]:
    """Scratch runs of ResNet-50: the learning rate's schedule is told by the file's name alone (rn50_scratch_lr_...)."""
    schedule = file_name.lower().partition("scratch_lr_")[2] or None
    return ("scratch-e" if settings["time_multiplier"] == 1 else "scratch-b"), {**settings, "learning_rate_schedule": schedule}


def _transformer_pruning(settings: Settings, file_name: str) -> tuple[str, Settings]:
    """Pruning by its name; scratch runs repeat the settings of their masks, and the file's name alone tells them."""
    name = file_name.lower()
    for part, method, multiplier in (("scratche", "scratch-e", 1), ("scratchb", "scratch-b", None)):
        if part in name:
            initialization = "sparse" if "augmented_init" in name else "baseline"
            return method, {**settings, "initialization": initialization, "time_multiplier": multiplier}
    return _PRUNING_METHODS[str(settings["hparams"])], settings


_PRUNING_METHODS = {"sparse_transformer_magnitude_pruning": "magnitude", "sparse_transformer_random_pruning": "random"}
_PRUNING: dict[str, _Column] = {
    "begin": ("begin", number),
    "end": ("end", number),
    "freq": ("frequency", number),
    "label smoothing": ("label_smoothing", number),
}
_INITIALIZATION: _Column = ("initialization", one_of("baseline", "sparse"))
_REGULARIZATION: _Column = ("regularization", one_of("dropout+label_smoothing", "label_smoothing", "none"))
_SHAPE: _Column = ("shape", one_of("linear", "cubic"))
_TRANSFORMER_PRUNING: dict[str, _Column] = {
    "begin_pruning_step": ("begin", number),
    "end_pruning_step": ("end", number),
    "pruning_frequency": ("frequency", number),
    "regularization": _REGULARIZATION,
    "threshold_decay": ("threshold_decay", number),
}
_TRANSFORMER_RAMP: dict[str, _Column] = {
    "dkl_weight_start": ("begin", number),
    "dkl_weight_diff": ("ramp", number),
    "regularization": _REGULARIZATION,
}
_THRESHOLDS = tuple(half / 2 for half in range(11))
_REPLICATES = tuple(f"Run {index}" for index in range(1, 10))


def _pruned_resnet50(method: str, sparsity: str) -> Layout:
    return Layout(
        columns=(sparsity, "begin", "end", "freq", "label smoothing", "accuracy"),
        workload=RESNET50,
        settings=_PRUNING,
        runs=((Evaluation("accuracy", sparsity),),),
        read_value=times_100,
        method=_always(method),
        target=_stated,
    )


def _scratch_resnet50(initialization: str, values: tuple[str, ...]) -> Layout:
    return Layout(
        columns=("sparsity", "time multiplier", initialization, "begin", "end", "freq", "label smoothing", *values),
        workload=RESNET50,
        settings={"time multiplier": ("time_multiplier", number), initialization: _INITIALIZATION, **_PRUNING},
        runs=tuple((Evaluation(value, "sparsity"),) for value in values),
        read_value=times_100,
        method=_scratch,
        target=_stated,
    )


def _pruned_transformer(hparams: str, read_hparams: Parse, method: Callable[[Settings, str], tuple[str, Settings]]) -> Layout:
    return Layout(
        columns=(hparams, "MOSES BLEU", "Sparsity", *_TRANSFORMER_PRUNING),
        workload=TRANSFORMER,
        settings={hparams: ("hparams", read_hparams), **_TRANSFORMER_PRUNING},
        runs=((Evaluation("MOSES BLEU", "Sparsity"),),),
        read_value=per_cent,
        method=method,
        target=_nearest_hundredth,
    )


LAYOUTS: Mapping[str, Layout] = {
    "ResNet-50 baselines": Layout(
        columns=("Accuracy", "Training Steps", "Batch Size"),
        workload=RESNET50,
        settings={"Training Steps": ("steps", number), "Batch Size": ("batch_size", number)},
        runs=((Evaluation("Accuracy", None),),),
        read_value=per_cent,  # where the other files of ResNet-50 have fractions
        method=_always("dense"),
    ),
    "ResNet-50 magnitude pruning": _pruned_resnet50("magnitude", "Sparsity"),
    "ResNet-50 random pruning": _pruned_resnet50("random", "Target Sparsity"),
    "ResNet-50 variational dropout": Layout(
        columns=("DKL loss begin", "DKL loss saturate", "DKL loss coeff", "label_smoothing", "global sparsity", "Accuracy"),
        workload=RESNET50,
        settings={
            "DKL loss begin": ("begin", number),
            "DKL loss saturate": ("end", number),
            "DKL loss coeff": ("dkl_weight", number),
            "label_smoothing": ("label_smoothing", number),
        },
        runs=((Evaluation("Accuracy", "global sparsity", threshold=0.5),),),  # the one that the paper used on ResNet-50
        read_value=times_100,
        method=_always("variational-dropout"),
    ),
    "ResNet-50 L0 regularization": Layout(
        columns=("initial_log_alpha", "l0_norm_weight", "label_smoothing", "weight_decay", "global_sparsity", "accuracy"),
        workload=RESNET50,
        settings={
            "initial_log_alpha": ("initial_log_alpha", number),
            "l0_norm_weight": ("l0_norm_weight", number),
            # The authors' two columns are swapped: values near 1e-4 stand under label_smoothing, 0 and 0.1 under weight_decay.
            "label_smoothing": ("weight_decay", number),
            "weight_decay": ("label_smoothing", number),
        },
        runs=((Evaluation("accuracy", "global_sparsity"),),),
        read_value=times_100,
        method=_always("l0"),
    ),
    "ResNet-50 lottery tickets": Layout(
        columns=("begin", "end", "freq", "label smoothing", "sparsity", "accuracy"),
        workload=RESNET50,
        settings=_PRUNING,
        runs=((Evaluation("accuracy", "sparsity"),),),
        read_value=times_100,
        method=_always("lottery-ticket"),
        target=_stated,
    ),
    "ResNet-50 scratch": _scratch_resnet50("", ("accuracy",)),  # the column of the initialization has no name
    "ResNet-50 scratch, initialization named": _scratch_resnet50("init method", ("accuracy",)),
    "ResNet-50 scratch, nine runs a line": _scratch_resnet50("init method", _REPLICATES),
    "Transformer baselines": Layout(
        columns=("Tensor2Tensor HParams", "MOSES BLEU", "Training Steps", "Batch Size", "Dataset"),
        workload=TRANSFORMER,
        settings={
            "Tensor2Tensor HParams": ("hparams", text),
            "Training Steps": ("steps", number),
            "Batch Size": ("batch_size", number),
            "Dataset": ("dataset", text),
        },
        runs=((Evaluation("MOSES BLEU", None),),),
        read_value=per_cent,
        method=_always("dense"),
    ),
    "Transformer magnitude pruning, random pruning, scratch": _pruned_transformer(
        "Tensor2Tensor HParams", one_of(*_PRUNING_METHODS), _transformer_pruning
    ),
    "Transformer lottery tickets": _pruned_transformer("HParams", text, _always("lottery-ticket")),
    "Transformer variational dropout": Layout(
        columns=(
            "Tensor2Tensor HParams",
            "dkl_weight",
            "dkl_weight_fn",
            *_TRANSFORMER_RAMP,
            *(f"{name}:{threshold}" for threshold in _THRESHOLDS for name in ("MOSES BLEU", "Sparsity")),
        ),
        workload=TRANSFORMER,
        settings={
            "Tensor2Tensor HParams": ("hparams", text),
            "dkl_weight": ("dkl_weight", number),
            "dkl_weight_fn": _SHAPE,
            **_TRANSFORMER_RAMP,
        },
        runs=(tuple(Evaluation(f"MOSES BLEU:{at}", f"Sparsity:{at}", at) for at in _THRESHOLDS),),
        read_value=per_cent,
        method=_always("variational-dropout"),
    ),
    "Transformer L0 regularization": Layout(
        columns=("Tensor2Tensor HParams", "MOSES BLEU", "Sparsity", "l0_norm_weight", "l0_norm_weight_fn", *_TRANSFORMER_RAMP),
        workload=TRANSFORMER,
        settings={
            "Tensor2Tensor HParams": ("hparams", text),
            "l0_norm_weight": ("l0_norm_weight", number),
            "l0_norm_weight_fn": _SHAPE,
            **_TRANSFORMER_RAMP,
        },
        runs=((Evaluation("MOSES BLEU", "Sparsity"),),),
        read_value=per_cent,
        method=_always("l0"),
    ),
}
"""The layouts by the name that messages use."""
