"""Make a folder of results that can be passed on: tables, training curves and the page, without the runs.

    python results/publish.py runs/fashion-lenet results/fashion-lenet

copies the tables and `study.json`, whose command names no folder of one machine, writes `results.csv.gz`, keeps the weight
distributions and the training curves of the runs that the page draws (the first seed of every chosen configuration), and makes
the page anew from what it wrote.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparsebench.analysis.frontiers import Frontiers, find_frontiers
from sparsebench.analysis.page import write_page
from sparsebench.analysis.study_data import load_study
from sparsebench.analysis.training_curves import PASSED_ON
from sparsebench.records.export import export
from sparsebench.records.run_folder import RunFolder


def drawn_runs(frontiers: Frontiers, run_ids: dict[tuple[str, int], str]) -> list[str]:
    """The runs whose curves and weights the page draws."""
    chosen = [frontiers.dense, *(point for row in frontiers.chosen.values() for point in row)]
    return sorted({run_ids[point.configuration, point.seeds[0]] for point in chosen if point is not None})


def elsewhere(command: str, name: str) -> str:
    """The study's command with a results folder that anybody may have."""
    words = shlex.split(command)
    if "--out" in words:
        words[words.index("--out") + 1] = f"runs/{name}"
    return shlex.join(words)


def main(runs: Path, published: Path) -> None:
    """Write the folder."""
    data = load_study(runs)
    table = data.results.drop_duplicates("run_id")
    run_ids = dict(zip(zip(table["configuration"], table["seed"], strict=True), table["run_id"], strict=True))
    drawn = drawn_runs(find_frontiers(data), run_ids)
    curves = published / PASSED_ON
    curves.mkdir(parents=True, exist_ok=True)
    for stale in curves.iterdir():
        stale.unlink()
    for run_id in drawn:
        shutil.copyfile(RunFolder.of(runs, run_id).curve_path, curves / f"{run_id}.jsonl")
    note = json.loads((runs / "study.json").read_text(encoding="utf-8"))
    note["command"] = elsewhere(note["command"], published.name)
    (published / "study.json").write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    for file, name in (("results.parquet", "results"), ("results.csv.gz", "results"), ("layers.parquet", "layers")):
        export(runs, published / file, name)
    own = data.distributions.to_table(filter=pc.field("run_id").isin(drawn))
    pq.write_table(own, published / "distributions.parquet", compression="zstd")
    page = write_page(published)
    sys.stdout.write(f"{page}: {len(table)} runs, training curves of {len(drawn)} of them\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
