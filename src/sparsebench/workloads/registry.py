"""The workloads that studies and the command line know by name."""

from __future__ import annotations

from sparsebench.registry import Registry
from sparsebench.workloads.images.digits import DIGITS
from sparsebench.workloads.images.named_sets import IMAGE_FAMILIES, NAMED_SETS
from sparsebench.workloads.translation.cldr_ende import CLDR_ENDE
from sparsebench.workloads.translation.named_corpora import MULTI30K, WMT14_ENDE
from sparsebench.workloads.translation.parallel_text import parallel_text
from sparsebench.workloads.translation.sizes import sizes_of
from sparsebench.workloads.workload import Workload

__all__ = ["WORKLOADS"]

WORKLOADS: Registry[Workload] = Registry(
    "workload",
    "sparsebench.workloads",
    [DIGITS, *NAMED_SETS, CLDR_ENDE, MULTI30K, WMT14_ENDE],
    IMAGE_FAMILIES
    | {corpus.name: sizes_of(corpus) for corpus in (CLDR_ENDE, MULTI30K, WMT14_ENDE)}
    | {"parallel": parallel_text},
)
