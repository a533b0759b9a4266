from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from short_runs import STEPS, TECHNIQUES, InterruptedRunError, left_over, short, stop_at, what_must_be_equal

from sparsebench.errors import SparsebenchError
from sparsebench.records.run_folder import RunFolder
from sparsebench.training.run import train

PROGRAM = Path(__file__).with_name("killed_runs.py")
FOUR_WITH_BOTH_POLICIES = ["random, gone", "magnitude, returning", "magnitude, gone", "variational dropout", "l0"]


@pytest.fixture(scope="module", params=TECHNIQUES)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    technique: str = request.param
    folder = RunFolder(tmp_path_factory.mktemp("undisturbed") / "run")
    return technique, what_must_be_equal(folder, train(short(technique), folder))


def resumed(technique: str, path: Path, stops: list[int]) -> dict[str, Any]:
    folder = RunFolder(path / "run")
    for stop in stops:
        with pytest.raises(InterruptedRunError):
            train(short(technique), folder, checkpoint_seconds=0.0, observe=stop_at(stop))
        assert not folder.result_path.exists()
        torch.rand(100)  # the process goes on to other things, and so does its generator
    record = train(short(technique), folder, checkpoint_seconds=0.0)
    assert left_over(folder.path) == []
    return what_must_be_equal(folder, record)


def test_run_stopped_after_every_other_step_ends_with_the_same_bits(
    undisturbed: tuple[str, dict[str, Any]], tmp_path: Path
) -> None:
    """PEERS 4 and 7: optimizer, schedules, masks and noise go on where they were."""
    technique, expected = undisturbed
    # A stop at step k comes before the checkpoint of step k, so that the next process begins with step k.
    assert resumed(technique, tmp_path, list(range(1, STEPS + 1))) == expected


@pytest.mark.parametrize("stop", [13, STEPS])
def test_run_stopped_once_ends_with_the_same_bits(undisturbed: tuple[str, dict[str, Any]], tmp_path: Path, stop: int) -> None:
    technique, expected = undisturbed
    assert resumed(technique, tmp_path, [stop]) == expected


def test_run_without_any_checkpoint_begins_again(undisturbed: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    technique, expected = undisturbed
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short(technique), folder, checkpoint_seconds=1000.0, observe=stop_at(STEPS // 2))
    assert not folder.checkpoint_path.exists()
    first: list[int] = []
    record = train(short(technique), folder, observe=lambda progress: first.append(progress.step))
    assert first == list(range(1, STEPS + 1))
    assert what_must_be_equal(folder, record) == expected


def test_resumed_run_does_not_repeat_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short("l0"), folder, checkpoint_seconds=0.0, observe=stop_at(10))
    seen: list[int] = []
    train(short("l0"), folder, observe=lambda progress: seen.append(progress.step))
    assert seen == list(range(10, STEPS + 1))


def test_techniques_are_told_apart_by_the_comparison(tmp_path: Path) -> None:
    """What the other tests compare does differ between two policies, and between two seeds."""
    outcomes = []
    for name, config in (
        ("returning", short("magnitude, returning")),
        ("gone", short("magnitude, gone")),
        ("seed", short("magnitude, gone", seed=4)),
    ):
        outcomes.append(train(config, RunFolder(tmp_path / name)).weights_sha256)
    assert len(set(outcomes)) == 3


@pytest.mark.parametrize(
    ("setting", "value"), [("optimizer", "sgd"), ("warmup_steps", 8), ("learning_rate_schedule", "constant")]
)
def test_other_recipes_resume_too(tmp_path: Path, setting: str, value: object) -> None:
    config = short("magnitude, returning", **{setting: value, "weight_decay": 0.01, "label_smoothing": 0.1})
    calm, harried = RunFolder(tmp_path / "calm"), RunFolder(tmp_path / "harried")
    expected = what_must_be_equal(calm, train(config, calm))
    for stop in (6, 15):
        with pytest.raises(InterruptedRunError):
            train(config, harried, checkpoint_seconds=0.0, observe=stop_at(stop))
    assert what_must_be_equal(harried, train(config, harried)) == expected


def killed(tmp_path: Path, kills: int, seed: int, techniques: list[str]) -> dict[str, list[str]]:
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(kills), str(seed), *techniques]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert killed(tmp_path, 2, 1, FOUR_WITH_BOTH_POLICIES) == {technique: [] for technique in FOUR_WITH_BOTH_POLICIES}


def test_killed_translation_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an epoch, too: of a text that is so short, 24 steps are more than one."""
    pytest.importorskip("sentencepiece")
    pytest.importorskip("sacrebleu")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "words"
    folder.mkdir()
    for split, count in (("train", 300), ("val", 4), ("test", 4)):
        for language in ("en", "de"):
            lines = (f"{language} {number % 7} {language * (number % 3)} {number}\n" for number in range(count))
            (folder / f"{split}.{language}").write_text("".join(lines))
    workload = f"parallel:tiny@{folder}:en-de"
    assert killed(tmp_path / "runs", 2, 1, [workload]) == {workload: []}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_run_killed_many_times_ends_with_the_same_bits(tmp_path: Path, seed: int) -> None:
    assert killed(tmp_path, 12, seed, list(TECHNIQUES)) == {technique: [] for technique in TECHNIQUES}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut short"),
        pytest.param(lambda data: b"not a checkpoint at all", id="another file"),
        pytest.param(lambda data: data.replace(b"PK", b"KP"), id="scrambled"),
    ],
)
def test_damaged_checkpoint_gives_one_line_that_says_what_to_do(tmp_path: Path, damage: Any) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short("magnitude, gone"), folder, checkpoint_seconds=0.0, observe=stop_at(5))
    folder.checkpoint_path.write_bytes(damage(folder.checkpoint_path.read_bytes()))
    with pytest.raises(SparsebenchError, match=r"checkpoint\.pt is damaged .*delete it") as caught:
        train(short("magnitude, gone"), folder)
    assert "\n" not in str(caught.value)
    assert not folder.result_path.exists()
    folder.checkpoint_path.unlink()
    assert train(short("magnitude, gone"), folder).steps == STEPS


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.pop("noise"),
        lambda saved: saved.update(model={}),
        lambda saved: saved.update(model=5),
        lambda saved: saved.update(optimizer=None),
        lambda saved: saved.update(sparsifier={"step": 1}),
        lambda saved: saved["sparsifier"]["masks"].clear(),
        lambda saved: saved["sparsifier"]["description"].update(policy="returning"),
        lambda saved: saved.pop("step"),
    ],
)
def test_checkpoint_of_something_else_gives_one_line_that_says_what_to_do(tmp_path: Path, change: Any) -> None:
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InterruptedRunError):
        train(short("magnitude, gone"), folder, checkpoint_seconds=0.0, observe=stop_at(5))
    saved = torch.load(folder.checkpoint_path, weights_only=True)
    change(saved)
    torch.save(saved, folder.checkpoint_path)
    with pytest.raises(SparsebenchError, match=r"checkpoint\.pt .*delete it, and the run begins again") as caught:
        train(short("magnitude, gone"), folder)
    assert "\n" not in str(caught.value)


def test_checkpoint_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Dangerous:
        def __reduce__(self) -> Any:
            return Path.write_text, (tmp_path / "executed", "yes")

    folder = RunFolder(tmp_path / "run")
    folder.create(short("dense").model_dump(mode="json"))
    torch.save({"step": Dangerous()}, folder.checkpoint_path)
    with pytest.raises(SparsebenchError, match="damaged"):
        train(short("dense"), folder)
    assert not (tmp_path / "executed").exists()


def test_half_written_checkpoint_of_a_killed_process_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(short("dense").model_dump(mode="json"))
    (folder.path / ".checkpoint.pt.abc123.part").write_bytes(b"half")
    train(short("dense"), folder)
    assert left_over(folder.path) == []
