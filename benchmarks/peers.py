"""sparsebench beside other packages that prune, each in an environment of its own.

    python benchmarks/peers.py build all --environments /tmp/peers
    python benchmarks/peers.py run all --environments /tmp/peers --json peers.json  # goes on where an earlier run stopped
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
NETWORKS = {
    "mlp": "MLP, 0.27 M weights, batch 128",
    "resnet20": "ResNet-20, 0.27 M weights, 32 px, batch 128",
    "transformer-small": "small Transformer, 2,048 target tokens",
    "resnet50-short": "ResNet-50, 25.6 M weights, 64 px, batch 8",
    "transformer-base-short": "Transformer base, 60 M weights, 128 target tokens",
    "resnet50": "ResNet-50, 25.6 M weights, 224 px, batch 16",
    "transformer-base": "Transformer base, 60 M weights, 2,048 target tokens",
}


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
    """Measure packages one after another, but for what the file holds; what went wrong stands in its place."""
    known = chosen.environments / "failures.json"
    failures = json.loads(known.read_text()) if known.exists() else {}
    record: dict[str, Any] = {"facts": {}, "packages": {}}
    if chosen.json is not None and chosen.json.exists():
        record = json.loads(chosen.json.read_text())
    record["facts"] = facts(chosen.threads)
    for name in chosen.names:
        python = interpreter(chosen.environments, name)
        print(name, file=sys.stderr, flush=True)
        if name in failures or not python.exists():
            record["packages"][name] = {"about": {"failed": failures.get(name, "its environment is not built")}}
        else:
            found = record["packages"].setdefault(name, {})
            found.update(about=_trial(chosen, python, ["about", name]))
            for section in chosen.sections:
                _measure(chosen, python, name, section, found.setdefault(section, {}))
                write_json(chosen.json, record)
        write_json(chosen.json, record)
    return record


def _trial(chosen: argparse.Namespace, python: Path, arguments: list[str]) -> dict[str, Any]:
    try:
        return dict(run_trial(python, "peer_trial.py", arguments, chosen.threads, chosen.timeout))
    except TrialError as problem:
        return {"failed": str(problem)}


def _measure(chosen: argparse.Namespace, python: Path, name: str, section: str, found: dict[str, Any]) -> None:
    """Add to `found` what it lacks of a section."""
    if section == "checks":
        if not found or "failed" in found:
            # channels_last by itself: there are packages that it takes down with the process.
            layout = _trial(chosen, python, ["channels-last", name])
            crash = f"crashes: {layout.get('failed')}"
            found.clear()
            found.update(_trial(chosen, python, ["checks", name]) | {"channels_last": layout.get("channels_last", crash)})
        return
    timing = [f"--repetitions={chosen.repetitions}", f"--seconds={chosen.seconds}"] if section == "steps" else []
    for network in chosen.networks:
        if network in found and not found[network].get("failed", "").startswith("took longer"):
            continue
        found[network] = _trial(chosen, python, [section, name, network, *timing])
        if section == "memory" and "failed" not in found[network]:
            for control in ("dense", "control"):
                found[network][control] = _trial(chosen, python, ["dense-memory", name, network])


def show(record: dict[str, Any]) -> Iterator[str]:
    """The tables of what was measured."""
    yield "\n".join(f"- {fact}: {value}" for fact, value in record["facts"].items())
    packages = {name: record["packages"][name] for name in PACKAGES if name in record["packages"]}
    yield "\n### Packages\n"
    yield table(["", "version", "torch", "what is measured"], [_about(name, found["about"]) for name, found in packages.items()])
    yield "\n### Checks, on the MLP (modelopt: on the small Transformer; channels_last: on ResNet-20)\n"
    rows = [[_titled(name, found), *_checks(found["checks"])] for name, found in packages.items() if "checks" in found]
    yield table(["", *CHECKS], rows)
    for network in NETWORKS:
        rows = [[_titled(name, found), *_numbers(found, network)] for name, found in packages.items() if _has(found, network)]
        if rows:
            yield f"\n### Cost: {NETWORKS[network]}\n"
            header = [
                "",
                "step, x dense",
                "A/A control",
                "step, ms",
                "dense, ms",
                "mask update, ms",
                "peak memory, x dense",
                "A/A control",
            ]
            yield table([*header, "file at the end, x dense", "checkpoint in training, x dense"], rows)


def _about(name: str, about: dict[str, Any]) -> list[str]:
    if "failed" in about:
        return [name, "", "", f"not measured: {about['failed']}"]
    return [name, about["version"], about["torch"], about["way"]]


def _checks(found: dict[str, str]) -> list[str]:
    if "failed" in found:
        found = found | {CHECKS[0]: f"not checked: {found['failed']}"}
    return [found.get(check, "").replace("|", "/") for check in CHECKS]


def _titled(name: str, found: dict[str, Any]) -> str:
    return f"{name} {found['about'].get('version', '')}".strip()


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
    if memory and all("bytes" in part for part in (memory, memory.get("dense", {}), memory.get("control", {}))):
        row += [f"{part['bytes'] / memory['dense']['bytes']:.2f}" for part in (memory, memory["control"])]
    else:
        row += [_reason(memory), ""]
    if size and "failed" not in size:
        return [*row, f"{size['final'] / size['dense']:.3f}", f"{size['training'] / size['dense']:.3f}"]
    return [*row, _reason(size), ""]


def _reason(found: dict[str, Any] | None) -> str:
    reason = "" if found is None else str(found.get("failed", "")).replace("|", "/")
    for word in ("refused: ", "not offered: "):
        # These are ours, and say it without the name of the exception.
        reason = reason[reason.index(word) :] if word in reason else reason
    return reason


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    building, running = commands.add_parser("build", help="make environments"), commands.add_parser("run", help="measure")
    for command in (building, running):
        command.add_argument("names", nargs="+", choices=["all", BASE, *PACKAGES], metavar="NAME", help=", ".join(PACKAGES))
        command.add_argument("--environments", type=Path, required=True, help="folder that holds the environments")
    running.add_argument(
        "--networks", nargs="+", choices=list(NETWORKS), default=["mlp", "resnet50-short", "transformer-base-short"]
    )
    running.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    running.add_argument("--threads", type=int, default=2, help="threads of every process (default 2)")
    running.add_argument("--repetitions", type=int, default=20, help="steps at most (default 20)")
    running.add_argument("--seconds", type=float, default=8, help="seconds of timed steps for one network (default 8)")
    running.add_argument("--timeout", type=float, default=120, help="seconds after which a process is given up (default 120)")
    running.add_argument("--json", type=Path, help="the file of what is measured; what it holds already is not measured again")
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
