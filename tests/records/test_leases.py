"""Leases between machines: the file lock, which reaches no further than one, is taken away here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.records import leases as module
from sparsebench.records.claims import ClaimLostError
from sparsebench.records.leases import Leases, disk_time
from sparsebench.records.run_folder import RunFolder
from sparsebench.studies.executors.executor import Outcome, give_up

SOON = 0.02


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs" / "one"


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Says on which machine this process is from now on; locks reach no further than one."""

    @contextlib.contextmanager
    def no_lock(path: Path, timeout: float) -> Iterator[bool]:
        yield True

    def be(name: str) -> None:
        monkeypatch.setattr(module, "_boot", lambda: name)

    monkeypatch.setattr(module, "locked", no_lock)
    be("a")
    return be


def leases_of(run: Path) -> list[str]:
    return sorted(file.name for file in (run.parent.parent / "leases").glob(f"{run.name}/*"))


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def is_lost(leases: Leases, run: Path) -> bool:
    try:
        leases.check(run)
    except ClaimLostError:
        return True
    return False


def test_one_holds_and_the_other_learns_so_until_it_is_given_back(run: Path, machines: Callable[[str], None]) -> None:
    first, second = Leases(), Leases()
    with first.hold(run) as ours:
        assert ours
        machines("b")
        with second.hold(run) as theirs:
            assert not theirs
        assert leases_of(run) == ["1"]
    assert leases_of(run) == []
    with second.hold(run) as theirs:
        assert theirs


def test_heartbeat_keeps_a_lease_for_longer_than_its_expiry(run: Path, machines: Callable[[str], None]) -> None:
    with Leases(heartbeat=0.05, expiry=1.0).hold(run) as ours:
        assert ours
        machines("b")
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            with Leases(heartbeat=0.05, expiry=1.0).hold(run) as theirs:
                assert not theirs
            time.sleep(0.1)


def test_lease_without_heartbeat_is_followed_and_its_holder_gives_up(run: Path, machines: Callable[[str], None]) -> None:
    """The first holder is suspended: its heartbeat comes only after it was followed."""
    late, follower = Leases(heartbeat=1.0), Leases(clock=lambda folder: disk_time(folder) + 61.0)
    with late.hold(run) as ours:
        assert ours
        machines("b")
        with follower.hold(run) as theirs:
            assert theirs
            assert leases_of(run) == ["1", "2"]
            wait_for(lambda: is_lost(late, run))
            assert not is_lost(follower, run)
            machines("c")
            with Leases().hold(run) as third:
                assert not third
    assert leases_of(run) == []


def test_late_holder_does_not_take_a_new_lease_for_its_own(run: Path, machines: Callable[[str], None]) -> None:
    """Followed, given back, and taken anew under the old number, all between two heartbeats."""
    late = Leases(heartbeat=1.0)
    with late.hold(run):
        machines("b")
        with Leases(clock=lambda folder: disk_time(folder) + 61.0).hold(run) as second:
            assert second
        with Leases().hold(run) as third:
            assert third
            assert leases_of(run) == ["1"]
            wait_for(lambda: is_lost(late, run))
            assert leases_of(run) == ["1"]


def test_what_a_dead_process_of_this_machine_left_is_free_at_once(run: Path, machines: Callable[[str], None]) -> None:
    """Where the file lock is ours, nobody on this machine is at the run."""
    folder = run.parent.parent / "leases" / "one"
    folder.mkdir(parents=True)
    (folder / "1").write_text("a 0123")
    with Leases().hold(run) as ours:
        assert ours
    (folder / "1").parent.mkdir()
    (folder / "1").write_text("b 0123")
    with Leases().hold(run) as ours:
        assert not ours


def test_unknown_machines_are_waited_for(run: Path, machines: Callable[[str], None]) -> None:
    machines("")
    with Leases().hold(run) as ours, Leases().hold(run) as theirs:
        assert (ours, theirs) == (True, False)


def test_many_at_once_one_holds(run: Path, machines: Callable[[str], None]) -> None:
    """Eight threads take and give back as fast as they can; a counter of holders never says two."""
    held, most, inside = [0] * 8, [0], [0]

    def work(number: int) -> None:
        leases = Leases(heartbeat=SOON)
        end = time.monotonic() + 20.0
        while sum(held) < 30 and time.monotonic() < end:
            with leases.hold(run) as ours:
                if ours:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    held[number] += 1
                    time.sleep(0.001)
                    inside[0] -= 1

    machines("")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert sum(held) >= 30
    assert leases_of(run) == []


def test_folder_that_another_removes_just_after_it_was_made_is_no_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def make_and_lose(path: Path, *arguments: Any, **named: Any) -> None:
        make(path, *arguments, **named)
        if path.name == "one":
            path.rmdir()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", make_and_lose)
        with Leases().hold(run) as ours:
            assert not ours
    with Leases().hold(run) as ours:
        assert ours


def test_result_of_a_lost_run_is_not_written(run: Path, machines: Callable[[str], None]) -> None:
    late = Leases(heartbeat=SOON)
    folder = RunFolder(run, late)
    with folder.claim():
        machines("b")
        (run.parent.parent / "leases" / "one" / "1").rename(run.parent.parent / "leases" / "one" / "2")
        wait_for(lambda: is_lost(late, run))
        run.mkdir()
        with pytest.raises(ClaimLostError, match="was taken over by another process"):
            folder.write_failure("it broke", "")
    assert list(run.iterdir()) == []
    assert leases_of(run) == ["2"]


def test_run_whose_process_died_is_not_failed_where_another_driver_has_it(run: Path, machines: Callable[[str], None]) -> None:
    run.mkdir()
    with Leases().hold(run):
        machines("b")
        assert give_up(RunFolder(run, Leases()), "it died") == Outcome("one", "held")
    assert give_up(RunFolder(run, Leases()), "it died") == Outcome("one", "failed", "it died")
    assert RunFolder(run).read_failure() == "it died"


def test_lease_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "leases").write_text("")
    with (
        pytest.raises(SparsebenchError, match=r"^cannot write the lease of \S+runs/one: Not a directory$"),
        Leases().hold(tmp_path / "runs" / "one"),
    ):
        pass
