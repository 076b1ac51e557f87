"""A search under every kind of mishap: nothing is lost, what happened is one line, and the same command goes on."""

import contextlib
import dataclasses
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from machines import PROBLEM, TRIALS, Killed, Machine
from optuna.trial import TrialState
from searches import points, wait_until

from regrow_lab import store
from regrow_lab.cli import main
from regrow_lab.tuning.errors import SearchError, in_a_line

GRID = dataclasses.replace(PROBLEM, grid=tuple((0.1, alpha, 100.0) for alpha in (0.1, 0.2, 0.3, 0.4, 0.5)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    machine = Machine(tmp_path_factory.mktemp("undisturbed"))
    events: list[str] = []
    machine.go(events.append)
    assert len(machine.trained) == 2 * TRIALS
    assert events.count("line") > 40
    return machine


Deaths = st.lists(st.tuples(st.integers(0, 70), st.booleans()), max_size=6)


@settings(max_examples=15, deadline=None)
@given(deaths=Deaths)
@example(deaths=[(9, False)] * 8)
@example(deaths=[(12, True)] * 8)
def test_no_death_at_any_moment_changes_what_is_tried(
    deaths: list[tuple[int, bool]], undisturbed: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = Machine(tmp_path_factory.mktemp("killed"))
    for moment, torn in deaths:
        machine.is_killed(moment, torn)
    machine.go()
    tried = machine.trials()
    assert points(tried) == points(undisturbed.trials())
    assert points(tried)[0] == {"alpha": 0.3, "dT": 100}
    assert {trial.state for trial in tried} <= {TrialState.COMPLETE, TrialState.FAIL}
    assert machine.trained == undisturbed.trained, "no run is trained twice, and none is missing"
    assert not list(machine.journal.parent.glob("*.lock"))


def test_a_death_before_the_first_sign_of_life_is_seen_at_once(undisturbed: Machine, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    for _ in range(TRIALS - 1):
        met: list[str] = []

        def die_before_the_second_lock(kind: str, met: list[str] = met) -> None:
            met.append(kind)
            if met.count("lock") >= 2:
                raise Killed

        with pytest.raises(Killed):
            machine.go(die_before_the_second_lock)
        assert machine.trials()[-1].state == TrialState.RUNNING
        assert not machine.trials()[-1].user_attrs
    machine.go()
    assert points(machine.trials()) == points(undisturbed.trials())
    assert machine.trained == undisturbed.trained


@settings(max_examples=10, deadline=None)
@given(deaths=Deaths)
def test_no_death_at_any_moment_loses_a_point_of_a_grid(
    deaths: list[tuple[int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    machine = Machine(tmp_path_factory.mktemp("grid"), GRID)
    for moment, torn in deaths:
        machine.is_killed(moment, torn)
    machine.go()
    assert sorted(point["point"] for point in points(machine.trials())) == [0, 1, 2, 3, 4]
    assert len(machine.trained) == len(set(machine.trained)) == 10


def test_a_search_that_is_told_to_stop_inside_a_trial_keeps_its_place(undisturbed: Machine, tmp_path: Path) -> None:
    machine = Machine(tmp_path)

    def stop(kind: str) -> None:
        if kind == "run" and len(machine.trained) == 5:
            raise store.StoppedError

    with pytest.raises(store.StoppedError):
        machine.go(stop)
    assert [trial.state for trial in machine.trials()] == [TrialState.COMPLETE] * 2 + [TrialState.FAIL]
    machine.go()
    assert points(machine.trials()) == points(undisturbed.trials())


@contextlib.contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow above so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_the_search_goes_on_once_there_is_room(
    undisturbed: Machine, tmp_path: Path
) -> None:
    machine = Machine(tmp_path)
    for size in (2_000, 3_001, 4_002, 6_003):
        with full_disk(size), pytest.raises(store.NotWrittenError) as caught:
            machine.go()
        said = in_a_line(caught.value, tmp_path)
        assert said.startswith(f"{machine.journal} could not be written (File too large)")
        assert "\n" not in said
        assert machine.journal.read_bytes().endswith(b"\n"), "what did not fit was taken back"
    machine.go()
    assert points(machine.trials()) == points(undisturbed.trials())
    assert machine.trained == undisturbed.trained


def line(text: str) -> Callable[[Path], None]:
    def act(out: Path) -> None:
        with (out / "tune" / "journal.log").open("a") as file:
            file.write(text + "\n")

    return act


def cut(out: Path) -> None:
    os.truncate(out / "tune" / "journal.log", 500)


def other_study(out: Path) -> None:
    store.write_json(out / "study.json", {"study": "digits", "seeds": 3})


def journal_anew(out: Path) -> None:
    (out / "tune" / "journal.log").unlink()


def as_it_was(out: Path) -> None:
    store.write_json(out / "study.json", {"study": "tune-digits", "seeds": 2})


def nothing(out: Path) -> None: ...


@pytest.mark.parametrize(
    ("act", "said", "remedy"),
    [
        (journal_anew, r"journal\.log was deleted while .*the same command begins it anew", nothing),
        (lambda out: shutil.rmtree(out / "tune"), r"journal\.log was deleted while", nothing),
        (line('{"op_code": 9, broken'), r"journal\.log is damaged \(line \d+ is none .*\): delete it", journal_anew),
        (cut, r"journal\.log is damaged \(lines that were there are gone\): delete it", journal_anew),
        (lambda out: (out / "study.json").unlink(), r"study\.json was deleted .*the same command goes on", nothing),
        (lambda out: shutil.rmtree(out), r" was deleted while .*the same command", nothing),
        (other_study, r"study\.json was changed .*'digits' now\): put it back and give the same command", as_it_was),
    ],
    ids=["journal", "tune", "no-json", "cut", "study.json", "folder", "other-study"],
)  # fmt: skip
def test_a_study_that_is_changed_under_a_search_is_one_line_and_mended_as_it_says(
    act: Callable[[Path], object], said: str, remedy: Callable[[Path], None], undisturbed: Machine, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    machine = Machine(out)

    def meddle(kind: str) -> None:
        if kind == "run" and len(machine.trained) == 3:
            act(out)

    with pytest.raises(SearchError, match=said) as caught:
        machine.go(meddle)
    assert str(out) in in_a_line(caught.value, out)
    remedy(out)
    machine.go()
    assert points(machine.trials()) == points(undisturbed.trials())
    assert sorted(path.parent.name for path in out.glob("runs/*/result.json")) == sorted(undisturbed.trained)


@pytest.mark.parametrize("text", ['{"op_code": 99}', '{"op_code": 0}', "[]", "not JSON"])
def test_a_journal_that_is_none_is_refused_with_its_remedy(text: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.go()
    line(text)(tmp_path)
    with pytest.raises(SearchError, match=r"journal\.log is damaged \(.*\): delete it, and the same command begins"):
        machine.go()


def test_runs_that_were_deleted_are_trained_again(undisturbed: Machine, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.go()
    shutil.rmtree(tmp_path / "runs")
    machine.go()
    assert machine.trained == undisturbed.trained * 2
    assert len(machine.trials()) == TRIALS


def test_what_nobody_foresaw_is_a_line_that_leads_to_the_traceback(tmp_path: Path) -> None:
    said = in_a_line(RuntimeError("two\nlines"), tmp_path)
    assert said == f"RuntimeError: two lines (see {tmp_path / 'error.txt'})"
    assert "RuntimeError: two" in (tmp_path / "error.txt").read_text()


@pytest.mark.parametrize("what", ["study.json", "runs"])
def test_the_command_says_it_in_a_line_with_code_1_and_goes_on(
    what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--trials", "3", "--seeds", "1", "--sparsities", "0.9", "--distributions", "erk", "--workers", "1"]
    command = ["tune", "digits", "--out", str(out), *options]

    def meddle() -> None:
        wait_until(lambda: list(out.glob("runs/*/metrics.jsonl")))
        if what == "runs":
            (out / "runs").rename(tmp_path / "elsewhere")
        else:
            (out / "study.json").unlink()

    thread = threading.Thread(target=meddle)
    thread.start()
    code = main(command)
    thread.join()
    said = capfd.readouterr().err
    assert code == 1
    assert said.startswith("regrow: ")
    assert said.count("\n") == 1
    assert "the same command goes on" in said
    assert main(command) == 0
    assert "Reference and tuned (alpha, dT)" in capfd.readouterr().out
    assert len(list(out.glob("runs/*/result.json"))) == 3
