"""Comparisons of speed: medians of turns, what is not trusted, and the files that they are kept in."""

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from regrow.compaction.timings import side_by_side, timing_cache
from regrow.compaction.timings.side_by_side import Timing

pytestmark = pytest.mark.usefixtures("runs_engine")
USUAL = (1.0, 1.0)
GOOD = Timing((3.0, 2.0), spread=0.1, rounds=5)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(timing_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(side_by_side, "load", lambda: 0.3)
    timing_cache.forget()
    yield tmp_path / "cache"
    timing_cache.forget()


def ask(*found: Timing, is_plausible: Callable[[Timing], bool] = lambda timing: True) -> tuple[tuple[float, ...], int]:
    """The ratios as a new process gets them if measuring gives these, and how often it measured."""
    timing_cache.forget()
    waiting = list(found)
    ratios = timing_cache.ratios(
        timing_cache.path_of("layer", 1), "layers", lambda: waiting.pop(0), is_plausible, USUAL
    )
    return ratios, len(found) - len(waiting)


def stored(folder: Path) -> dict[str, Any]:
    (file,) = folder.iterdir()
    return dict(json.loads(file.read_text()))


def change(folder: Path, **fields: Any) -> None:
    (file,) = folder.iterdir()
    file.write_text(json.dumps({**stored(folder), **fields}))


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def test_work_of_another_thread_does_not_count() -> None:
    """The clock is the thread's own: what the others of the process and the machine do leaves the ratio alone."""
    stop = False

    def busy() -> None:
        while not stop:
            sum(range(1000))

    others = [threading.Thread(target=busy) for _ in range(3)]
    for other in others:
        other.start()
    try:
        found = side_by_side.compare([lambda: sum(range(200_000)), lambda: sum(range(50_000))])
    finally:
        stop = True
        for other in others:
            other.join()
    assert 2.5 < found.ratios[0] < 6.0


def test_sleep_takes_no_processor_time_and_threads_are_timed_by_the_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "SECONDS", 0.0)
    runs = [lambda: time.sleep(0.02) or sum(range(100_000)), lambda: sum(range(100_000))]
    assert side_by_side.compare(runs).ratios[0] < 4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert side_by_side.clock() is time.perf_counter


def test_one_disturbed_round_changes_little_and_many_are_seen() -> None:
    calm = [[6.0, 3.0, 2.0]] * 8
    assert side_by_side.summary([*calm, [6.0, 60.0, 2.0]]) == Timing((2.0, 3.0), 0.0, 9)
    wild = side_by_side.summary([[6.0, 3.0 * factor, 2.0] for factor in (1, 4, 1, 9, 2, 1, 5, 8)])
    assert wild.spread > side_by_side.LARGEST_SPREAD


def test_long_runs_have_few_rounds_and_short_ones_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, now = 0.0, [0.0]

    def run() -> None:
        now[0] += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(side_by_side, "clock", lambda: lambda: now[0])
    for each, rounds in ((0.001, 250), (0.2, 5), (1.0, 3), (30.0, 3)):
        seconds = each
        assert side_by_side.compare([run, run]).rounds == pytest.approx(rounds, abs=1)


def test_it_is_kept_with_what_it_was_measured_under(folder: Path) -> None:
    assert ask(GOOD) == ((3.0, 2.0), 1)
    found = stored(folder)
    assert {name: found[name] for name in ("ratios", "trusted", "spread", "rounds", "load", "subject")} == {
        "ratios": [3.0, 2.0],
        "trusted": True,
        "spread": 0.1,
        "rounds": 5,
        "load": 0.3,
        "subject": "layers",
    }
    assert found["machine"] == timing_cache.machine()
    assert set(found["machine"]) == {"cpu", "instructions", "torch", "engine", "threads"}
    assert abs(datetime.fromisoformat(found["date"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert ask() == ((3.0, 2.0), 0)


def test_each_number_of_threads_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    one = timing_cache.path_of("layer", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert timing_cache.path_of("layer", 1) != one


def test_what_is_wide_or_cannot_be_is_measured_again_a_few_times_and_not_believed(folder: Path) -> None:
    wide, odd = Timing((9.0, 9.0), 0.9, 5), Timing((281.0, 2.0), 0.1, 5)
    assert ask(wide, odd, GOOD, is_plausible=lambda timing: timing is not odd) == ((3.0, 2.0), 3)
    (folder / os.listdir(folder)[0]).unlink()
    assert ask(wide, odd, wide, is_plausible=lambda timing: timing is not odd) == (USUAL, 3)
    assert stored(folder)["trusted"] is False
    assert ask() == (USUAL, 0), "the next process does not try again at once"
    change(folder, date=ago(2 * timing_cache.SOON))
    assert ask(GOOD) == ((3.0, 2.0), 1)


@pytest.mark.parametrize(
    ("fields", "load", "again"),
    [
        ({"date": ago(2 * timing_cache.OLD)}, 0.3, True),
        ({"date": ago(2 * timing_cache.OLD)}, 5.0, False),
        ({"date": ago(timing_cache.OLD / 2)}, 0.3, False),
        ({"date": ago(2 * timing_cache.SOON), "load": 5.0}, 0.3, True),
        ({"date": ago(2 * timing_cache.SOON), "load": 5.0}, 2.0, False),
        ({"date": ago(timing_cache.SOON / 2), "load": 5.0}, 0.3, False),
        ({"date": ago(-2 * timing_cache.OLD)}, 0.3, False),
    ],
)
def test_what_is_old_or_was_measured_under_load_is_measured_again_when_the_machine_is_quiet(
    fields: dict[str, Any], load: float, again: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(GOOD)
    change(folder, **fields)
    monkeypatch.setattr(side_by_side, "load", lambda: load)
    better = Timing((5.0, 4.0), 0.1, 5)
    assert ask(better) == ((better if again else GOOD).ratios, again)


def test_what_was_trusted_is_not_given_up_for_what_is_not(folder: Path) -> None:
    ask(GOOD)
    change(folder, date=ago(2 * timing_cache.OLD))
    wide = Timing((9.0, 9.0), 0.9, 5)
    assert ask(wide, wide, wide) == ((3.0, 2.0), 3)
    assert stored(folder)["ratios"] == [3.0, 2.0]


DAMAGE: list[tuple[str, str | dict[str, Any]]] = [
    ("empty", ""),
    ("cut", "{"),
    ("no object", "[]"),
    ("another one", "2.0"),
    ("an older form", '{"linear 128": {"0.02": 2.0}}'),
    ("brackets", "[" * 50_000),
    ("text for numbers", {"ratios": ["fast", "slow"]}),
    ("one text", {"ratios": "ab"}),
    ("too few", {"ratios": [1.0]}),
    ("too many", {"ratios": [1.0] * 3}),
    ("negative", {"ratios": [-1.0, 2.0]}),
    ("no number", {"ratios": [float("nan"), 2.0]}),
    ("endless", {"ratios": [float("inf"), 2.0]}),
    ("huge", {"ratios": [1e9, 2.0]}),
    ("a whole one beyond floats", {"ratios": [10**400, 2]}),
    ("nothing", {"ratios": None}),
    ("truth", {"ratios": [True, True]}),
    ("trust", {"trusted": "yes"}),
    ("load", {"load": "high"}),
    ("date", {"date": "yesterday"}),
    ("no zone", {"date": "2026-11-30T12:00:00"}),
    ("number", {"date": 5}),
    ("more", {"other": 5}),
]


@pytest.mark.parametrize(("what", "damage"), DAMAGE, ids=[what for what, _ in DAMAGE])
def test_a_damaged_file_is_measured_anew_with_one_warning(
    what: str, damage: str | dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask(GOOD)
    (file,) = folder.iterdir()
    file.write_text(damage if isinstance(damage, str) else json.dumps({**stored(folder), **damage}))
    caplog.clear()
    better = Timing((5.0, 4.0), 0.1, 5)
    assert ask(better) == (better.ratios, 1)
    (said,) = [record.getMessage() for record in caplog.records if "damaged" in record.getMessage()]
    assert said.startswith(f"regrow: {file} is damaged (")
    assert said.endswith("): it is measured anew")
    assert "\n" not in said
    caplog.clear()
    assert ask() == (better.ratios, 0)
    assert not caplog.records


@pytest.mark.parametrize("kind", ["fifo", "zero", "folder", "huge", "bytes"])
def test_a_file_that_is_none_does_not_hang(kind: str, folder: Path) -> None:
    ask(GOOD)
    (file,) = folder.iterdir()
    file.unlink()
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "zero":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_bytes(b" " * 10**7 if kind == "huge" else b"\xff\xfe\x00")
    better = Timing((5.0, 4.0), 0.1, 5)
    assert ask(better) == (better.ratios, 1)


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(timing_cache.VARIABLE, str(tmp_path / "file"))
    assert ask(GOOD) == ((3.0, 2.0), 1)


def _measure_together(number: int, barrier: Any, found: Any) -> None:
    def measure() -> Timing:
        barrier.wait()
        time.sleep(0.1 * number)
        return Timing((3.0 + number, 2.0), 0.1, 5)

    found[number] = timing_cache.ratios(
        timing_cache.path_of("layer", 1), "layers", measure, lambda timing: True, USUAL
    )[0]


def test_processes_that_measure_at_once_go_by_the_same_and_leave_nothing_behind(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(4), context.Array("d", 4)
    processes = [context.Process(target=_measure_together, args=(n, barrier, found)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(set(found)) == 1, "the first to have measured decides for all"
    assert list(folder.glob("*")) == [timing_cache.path_of("layer", 1)]
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


PROGRAM = """
import sys, torch, regrow
from torch import nn
torch.set_num_threads(1)
from regrow.compaction.timings import side_by_side
side_by_side.SECONDS = 0.0
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(2):
    regrow.attach(model, optimizer, regrow.static(sparsity=.9), storage="compact").detach()
"""


def test_a_script_says_what_is_timed_before_it_is_once_for_a_machine(folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "REGROW_COMPACT"}
    said = [
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
        for _ in range(2)
    ]
    assert said[0].stderr == (
        "regrow: timing its kernels on this machine, once for each kind of layer, about a second each; "
        f"kept in {folder}\n"
    )
    assert said[1].stderr == ""
    assert said[0].stdout == said[1].stdout == ""


def test_who_sets_up_logging_has_it_there(caplog: pytest.LogCaptureFixture) -> None:
    timing_cache._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        ask(GOOD)
    assert [(record.name, record.levelname) for record in caplog.records] == [("regrow", "WARNING")]
