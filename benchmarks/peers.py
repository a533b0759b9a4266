"""sparsebench beside other packages that prune, each in an environment of its own.

    python benchmarks/peers.py build all --environments /tmp/peers
    python benchmarks/peers.py run all --environments /tmp/peers --json peers.json
    python benchmarks/peers.py show peers.json

Prints Markdown tables. What they mean is in docs/benchmarks.md. Needs nothing but Python; what cannot be installed, or cannot do
a thing, is a line with the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from driving import TrialError, facts, milliseconds, run_trial, table, write_json
from environments import BASE, PACKAGES, build, interpreter

CHECKS = ["count", "dropped weights stay zero", "resume", "deepcopy", "torch.compile", "DDP", "channels_last"]
SECTIONS = ["checks", "steps", "update", "memory", "size"]
NETWORKS = ["mlp", "resnet20", "transformer-small", "resnet50", "transformer-base"]


def build_all(folder: Path, names: list[str]) -> None:
    """Make environments and say which could not be made."""
    failures = {}
    for name in names:
        failure = build(folder, name)
        failures[name] = failure
        print(f"{name}: {failure or 'ready'}", flush=True)
    known = folder / "failures.json"
    before = json.loads(known.read_text()) if known.exists() else {}
    write_json(known, {name: failure for name, failure in (before | failures).items() if failure})


def run_all(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure packages one after another; what went wrong is recorded in place of what was to be measured."""
    known = chosen.environments / "failures.json"
    failures = json.loads(known.read_text()) if known.exists() else {}
    record: dict[str, Any] = {"facts": facts(chosen.threads), "packages": {}}
    for name in chosen.names:
        python = interpreter(chosen.environments, name)
        print(name, file=sys.stderr, flush=True)
        if name in failures or not python.exists():
            record["packages"][name] = {"about": {"failed": failures.get(name, "its environment is not built")}}
        else:
            record["packages"][name] = dict(_measure(chosen, python, name))
        write_json(chosen.json, record)
    return record


def _measure(chosen: argparse.Namespace, python: Path, name: str) -> Iterator[tuple[str, Any]]:
    def trial(section: str, network: str = "mlp", *more: str) -> Any:
        try:
            return run_trial(python, "peer_trial.py", [section, name, network, *more], chosen.threads, chosen.timeout)
        except TrialError as problem:
            return {"failed": str(problem)}

    yield "about", trial("about")
    if "checks" in chosen.sections:
        # By itself: there are packages that it takes down with the process.
        layout = trial("channels-last")
        yield "checks", trial("checks") | {"channels_last": layout.get("channels_last", f"crashes: {layout.get('failed')}")}
    for section in ("steps", "update", "memory", "size"):
        if section not in chosen.sections:
            continue
        found = {}
        for network in chosen.networks:
            timing = {"steps": [f"--repetitions={chosen.repetitions}", f"--seconds={chosen.seconds}"], "update": []}
            found[network] = trial(section, network, *timing.get(section, []))
            if section == "memory":
                found[network]["dense"] = trial("dense-memory", network)
        yield section, found


def show(record: dict[str, Any]) -> Iterator[str]:
    """The tables of what was measured."""
    yield "\n".join(f"- {fact}: {value}" for fact, value in record["facts"].items())
    packages = record["packages"]
    yield "\n### Packages\n"
    yield table(["", "version", "torch", "what is measured"], [_about(name, found["about"]) for name, found in packages.items()])
    yield "\n### Checks, on the MLP (channels_last: on ResNet-20)\n"
    rows = [[name, *_checks(found["checks"])] for name, found in packages.items() if "checks" in found]
    yield table(["", *CHECKS], rows)
    for network in NETWORKS:
        rows = [[name, *_numbers(found, network)] for name, found in packages.items() if _has(found, network)]
        if rows:
            yield f"\n### Cost: {network}\n"
            header = ["", "step, x dense", "A/A control", "step, ms", "dense, ms", "mask update, ms", "peak memory, x dense"]
            yield table([*header, "file at the end, x dense", "checkpoint in training, x dense"], rows)


def _about(name: str, about: dict[str, Any]) -> list[str]:
    if "failed" in about:
        return [name, "", "", f"not measured: {about['failed']}"]
    return [name, about["version"], about["torch"], about["way"]]


def _checks(found: dict[str, str]) -> list[str]:
    return [found.get(check, found.get("failed", "")).replace("|", "/") for check in CHECKS]


def _has(found: dict[str, Any], network: str) -> bool:
    return any(network in found.get(section, {}) for section in SECTIONS[1:])


def _numbers(found: dict[str, Any], network: str) -> list[str]:
    step, update, memory, size = (found.get(section, {}).get(network) for section in SECTIONS[1:])
    row = []
    if step and "failed" not in step:
        row += [f"{step['pruned']['ratio']:.3f}", f"{step['control']['ratio']:.3f}"]
        row += [milliseconds(step["pruned"]), milliseconds(step["dense"])]
    else:
        row += [_reason(step), "", "", ""]
    row.append(milliseconds(update) if update and "failed" not in update else _reason(update))
    if memory and "failed" not in memory and "failed" not in memory["dense"]:
        row.append(f"{memory['bytes'] / memory['dense']['bytes']:.2f}")
    else:
        row.append(_reason(memory))
    if size and "failed" not in size:
        return [*row, f"{size['final'] / size['dense']:.3f}", f"{size['training'] / size['dense']:.3f}"]
    return [*row, _reason(size), ""]


def _reason(found: dict[str, Any] | None) -> str:
    return "" if found is None else str(found.get("failed", "")).replace("|", "/")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building, running = commands.add_parser("build", help="make environments"), commands.add_parser("run", help="measure")
    for command in (building, running):
        command.add_argument("names", nargs="+", choices=["all", BASE, *PACKAGES], metavar="NAME", help=", ".join(PACKAGES))
        command.add_argument("--environments", type=Path, required=True, help="folder that holds the environments")
    running.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet20", "resnet50", "transformer-base"])
    running.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    running.add_argument("--threads", type=int, default=2, help="threads of every process (default 2)")
    running.add_argument("--repetitions", type=int, default=50, help="steps at most (default 50)")
    running.add_argument("--seconds", type=float, default=60, help="seconds of timed steps for one network (default 60)")
    running.add_argument("--timeout", type=float, default=900, help="seconds after which a process is given up (default 900)")
    running.add_argument("--json", type=Path, help="write everything measured to this file")
    running.add_argument("--quick", action="store_true", help="the MLP only, few repetitions: to see that it works")
    showing = commands.add_parser("show", help="the tables of files that `run` wrote; of two that measured the same, the later")
    showing.add_argument("files", nargs="+", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.command != "show" and "all" in chosen.names:
        chosen.names = list(PACKAGES)
    if chosen.command == "run" and chosen.quick:
        chosen.networks, chosen.repetitions, chosen.seconds = ["mlp"], 5, 5.0
    return chosen


def _merged(files: list[Path]) -> dict[str, Any]:
    record: dict[str, Any] = {"facts": {}, "packages": {}}
    for file in files:
        read = json.loads(file.read_text())
        record["facts"] = read["facts"]
        for name, found in read["packages"].items():
            for section, measured in found.items():
                held = record["packages"].setdefault(name, {}).setdefault(section, {})
                held.update(measured)
    return record


def main(arguments: list[str] | None = None) -> None:
    """Build, measure or show."""
    chosen = parse(arguments)
    if chosen.command == "build":
        build_all(chosen.environments, chosen.names)
        return
    record = run_all(chosen) if chosen.command == "run" else _merged(chosen.files)
    for line in show(record):
        print(line)


if __name__ == "__main__":
    main()
