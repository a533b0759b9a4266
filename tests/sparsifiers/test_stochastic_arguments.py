"""Arguments out of range: one line that names the argument."""

import math

import numpy as np
import pytest

from sparsebench import SparsebenchError, l0_regularization, variational_dropout

BOTH = [
    ({"penalty": -1e-9}, "penalty=-1e-09"),
    ({"penalty": math.nan}, "penalty=nan"),
    ({"penalty": math.inf}, "penalty=inf"),
    ({"penalty": True}, "penalty=True"),
    ({"penalty": "1"}, "penalty='1'"),
    ({"penalty": None}, "penalty=None"),
    ({"begin": -1}, "begin=-1"),
    ({"begin": 1.5, "end": 3}, "begin=1.5"),
    ({"begin": True, "end": 3}, "begin=True"),
    ({"end": math.nan}, "end=nan"),
    ({"begin": 5, "end": 4}, "end=4 is before begin=5"),
    ({"shape": "quadratic"}, "shape='quadratic'"),
    ({"shape": None}, "shape=None"),
]
VD_ONLY = [
    ({"thresholds": 3.0}, r"thresholds=3.0"),
    ({"thresholds": ()}, r"thresholds=\(\)"),
    ({"thresholds": []}, r"thresholds=\(\)"),
    ({"thresholds": (3.0, math.nan)}, r"thresholds=\(3.0, nan\)"),
    ({"thresholds": (math.inf,)}, r"thresholds=\(inf,\)"),
    ({"thresholds": (True,)}, r"thresholds=\(True,\)"),
    ({"thresholds": ("3",)}, r"thresholds=\('3',\)"),
    ({"thresholds": (None,)}, r"thresholds=\(None,\)"),
    ({"noise": "batch"}, "noise='batch'"),
    ({"noise": None}, "noise=None"),
    ({"noise": ["example"]}, r"noise=\['example'\]"),
    ({"initial_log_sigma2": math.nan}, "initial_log_sigma2=nan"),
    ({"initial_log_sigma2": "-10"}, "initial_log_sigma2='-10'"),
    ({"initial_log_sigma2": True}, "initial_log_sigma2=True"),
]
L0_ONLY = [
    ({"initial_log_alpha": math.inf}, "initial_log_alpha=inf"),
    ({"initial_log_alpha": None}, "initial_log_alpha=None"),
    ({"initial_log_alpha": False}, "initial_log_alpha=False"),
]
CASES = [
    *((variational_dropout, *case) for case in BOTH + VD_ONLY),
    *((l0_regularization, *case) for case in BOTH + L0_ONLY),
]


@pytest.mark.parametrize(("method", "arguments", "message"), CASES)
def test_bad_arguments_are_named_in_one_line(method, arguments, message):
    with pytest.raises(SparsebenchError, match=rf"^{message}\b.*|^{message}:.*") as caught:
        method(**({"penalty": 1.0} | arguments))
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"thresholds": (3,)},
        {"thresholds": np.arange(0.0, 5.5, 0.5)},
        {"thresholds": np.arange(3, dtype=np.float32)},
        {"thresholds": [-1.0, -1.0]},
        {"begin": 4, "end": 4},
        {"penalty": 0},
        {"initial_log_sigma2": -8},
        {"noise": "position"},
    ],
)
def test_good_arguments_are_taken(arguments):
    variational_dropout(**({"penalty": 1.0} | arguments))


@pytest.mark.parametrize("method", [variational_dropout, l0_regularization])
def test_penalty_is_asked_for_and_all_arguments_by_name(method):
    with pytest.raises(TypeError):
        method()
    with pytest.raises(TypeError):
        method(1.0)
